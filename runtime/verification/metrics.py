"""How far two tensors, two sets of scores, or two sets of masks are apart.

A figure that cannot be computed, of values so large that their squares overflow, is NaN, and NaN is
outside of any tolerance.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SNR_CEILING_DB = 200.0
"""Reported where the error is zero, or so small that its square underflows."""
SMALL = 0.005
"""Share of a picture's pixels below which a mask is judged by its pixels changed: a pixel of its edge
would move its IoU more than a wrong mask of the usual size."""
TIE = 0.01
"""Predicted IoUs nearer to each other than this are a tie, and either mask may be the best."""


def tensor_figures(expected: NDArray[Any], found: NDArray[Any]) -> dict[str, float]:
    """Returns max_abs, mean_abs, scale (the reference's standard deviation), error, cosine and snr_db.

    Where either holds NaN or infinity, or the shapes differ, they are infinitely far apart.
    """
    if not _comparable(expected, found):
        worst = float("inf")
        return {
            "max_abs": worst,
            "mean_abs": worst,
            "scale": 0.0,
            "error": worst,
            "cosine": -1.0,
            "snr_db": -worst,
        }
    with np.errstate(all="ignore"):
        return _finite_figures(expected.astype(np.float64).ravel(), found.astype(np.float64).ravel())


def _finite_figures(reference: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    difference = np.abs(reference - other)
    scale = float(reference.std()) or 1.0
    signal, noise = float(reference @ reference), float(difference @ difference)
    norms = np.sqrt(signal * float(other @ other))
    ratio = 10 * np.log10(signal / noise) if noise and signal else SNR_CEILING_DB
    if noise and not signal:
        ratio = -SNR_CEILING_DB
    return {
        "max_abs": float(difference.max(initial=0)),
        "mean_abs": float(difference.mean()) if difference.size else 0.0,
        "scale": scale,
        "error": float(difference.max(initial=0)) / scale if np.isfinite(scale) else math.nan,
        "cosine": float(reference @ other / norms) if norms else float(noise == 0),
        "snr_db": min(float(ratio), SNR_CEILING_DB),
    }


def score_figures(expected: NDArray[Any], found: NDArray[Any]) -> dict[str, Any]:
    """Returns how far predicted IoUs ``[B, 4]`` are apart, and how many best masks are the same.

    Only the last three masks compete, as for a click. Prompts whose best two are a tie are left out.

    Returns:
        ``score``, the largest |Δ|; ``prompts`` without a tie; ``kept``, of these with the same best.
    """
    if not _comparable(expected, found):
        return {"score": float("inf"), "prompts": max(len(expected), 1), "kept": 0}
    ranked = np.sort(expected[:, 1:], axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > TIE
    same = expected[:, 1:].argmax(axis=1) == found[:, 1:].argmax(axis=1)
    return {
        "score": float(np.abs(expected.astype(np.float64) - found).max()),
        "prompts": int(clear.sum()),
        "kept": int((same & clear).sum()),
    }


def _comparable(expected: NDArray[Any], found: NDArray[Any]) -> bool:
    finite = bool(np.isfinite(expected).all() and np.isfinite(found).all())
    return finite and expected.shape == found.shape


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels of ``[..., H, W]`` masks whose right or lower neighbour differs."""
    edge = np.zeros_like(mask)
    edge[..., :, :-1] |= mask[..., :, :-1] != mask[..., :, 1:]
    edge[..., :-1, :] |= mask[..., :-1, :] != mask[..., 1:, :]
    return edge


def mask_ious(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the IoU of masks ``[..., H, W]`` pair by pair, ``[...]``; 1 where both are empty."""
    common, union = (masks.sum(axis=(-2, -1)) for masks in (first & second, first | second))
    ious: NDArray[np.float64] = common / np.maximum(union, 1) + (union == 0)
    return ious


def agreements(
    expected: NDArray[np.bool_], found: NDArray[np.bool_], small: float = SMALL
) -> NDArray[np.float64]:
    """Returns how alike masks ``[..., H, W]`` are pair by pair: their IoU, or for a small mask 1 less
    the pixels changed, as a share of the size that would not be small."""
    changed, size = _changed(expected, found), _small_size(expected, small)
    is_small = expected.sum(axis=(-2, -1)) < size
    return np.where(is_small, 1 - changed / size, mask_ious(expected, found))


def _changed(expected: NDArray[np.bool_], found: NDArray[np.bool_]) -> NDArray[np.int64]:
    pixels: NDArray[np.int64] = (expected != found).sum(axis=(-2, -1))
    return pixels


def _small_size(masks: NDArray[np.bool_], small: float) -> float:
    return float(max(small * masks.shape[-2] * masks.shape[-1], 1.0))


def mask_figures(
    expected: NDArray[np.bool_], found: NDArray[np.bool_], small: float = SMALL
) -> dict[str, Any]:
    """Returns how masks differ, each compared with its own counterpart.

    Args:
        expected, found: thresholded masks ``[..., H, W]``.
        small: share of the picture below which a mask of the reference is small.

    Returns:
        ``mask_iou``, the least of the masks that are not small (1 without any), and ``iou_sum`` of
        them; ``small_changed``, the most pixels that a small mask changed by, as a share of the size
        that would not be small; ``masks`` and ``small``, how many there are of either; ``changed`` and
        ``boundary``, pixels of all masks.
    """
    ious, changed = mask_ious(expected, found), _changed(expected, found)
    size = _small_size(expected, small)
    is_small = expected.sum(axis=(-2, -1)) < size
    return {
        "mask_iou": float(ious[~is_small].min(initial=1.0)),
        "iou_sum": float(ious[~is_small].sum()),
        "small_changed": float(changed[is_small].max(initial=0)) / size,
        "masks": int((~is_small).sum()),
        "small": int(is_small.sum()),
        "changed": int(changed.sum()),
        "boundary": int(boundary(expected).sum()),
    }
