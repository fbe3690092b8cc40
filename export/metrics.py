"""How far two tensors, or two sets of masks, are apart; and how far they may be."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SNR_CEILING_DB = 200.0
"""Reported where the error is zero, or so small that its square underflows."""


@dataclass(frozen=True)
class Tolerance:
    """What a tensor and a mask may lose.

    Attributes:
        error: largest |Δ| of a tensor, in standard deviations of the reference tensor.
        snr_db: lowest signal-to-noise ratio of a tensor, in dB.
        cosine: lowest cosine of the angle between the tensors.
        mask_iou: lowest IoU of the thresholded masks of one prompt, pooled over its masks.
    """

    error: float
    snr_db: float
    cosine: float
    mask_iou: float


FP32 = Tolerance(error=4e-4, snr_db=80.0, cosine=0.999999, mask_iou=0.999)
"""4e-4 of a scale of 5 is 2e-3 of a logit."""
FP16 = Tolerance(error=0.15, snr_db=35.0, cosine=0.9995, mask_iou=0.99)
WEIGHTS_8_BIT = Tolerance(error=0.6, snr_db=20.0, cosine=0.99, mask_iou=0.97)
"""8-bit weights, float activations."""
LOOSE = Tolerance(error=2.0, snr_db=12.0, cosine=0.97, mask_iou=0.85)
FOUR_BITS = Tolerance(error=8.0, snr_db=2.0, cosine=0.8, mask_iou=0.3)
"""What was reached, with some room: a file that falls below it is broken."""


@dataclass
class Row:
    """The worst that was seen of one tensor (or of its masks), over all cases.

    Attributes:
        part: encoder, decoder or end to end.
        tensor: its name.
        figures: metric to value; for masks also counts.
        ok: whether every case was within the tolerance.
        worst_case: the case that came out worst.
    """

    part: str
    tensor: str
    ok: bool = True
    worst_case: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``part tensor``, as reports show it."""
        return f"{self.part} {self.tensor}"


def tensor_figures(expected: NDArray[Any], found: NDArray[Any]) -> dict[str, float]:
    """max_abs, mean_abs, scale (the reference's standard deviation), error, cosine and snr_db.

    A tensor that holds NaN or infinity, or has another shape, is infinitely far away.
    """
    if expected.shape != found.shape or not np.isfinite(found).all():
        worst = float("inf")
        return {
            "max_abs": worst,
            "mean_abs": worst,
            "scale": 0.0,
            "error": worst,
            "cosine": -1.0,
            "snr_db": -worst,
        }
    reference, other = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    difference = np.abs(reference - other)
    scale = float(reference.std()) or 1.0
    signal, noise = float(reference @ reference), float(difference @ difference)
    norms = np.sqrt(signal * float(other @ other))
    ratio = 10 * np.log10(signal / noise) if noise and signal else SNR_CEILING_DB
    return {
        "max_abs": float(difference.max(initial=0)),
        "mean_abs": float(difference.mean()) if difference.size else 0.0,
        "scale": scale,
        "error": float(difference.max(initial=0)) / scale,
        "cosine": float(reference @ other / norms) if norms else float(noise == 0),
        "snr_db": min(float(ratio), SNR_CEILING_DB),
    }


def tensor_ok(figures: dict[str, float], tolerance: Tolerance) -> bool:
    """Whether a tensor is within the tolerance."""
    return (
        figures["error"] <= tolerance.error
        and figures["snr_db"] >= tolerance.snr_db
        and figures["cosine"] >= tolerance.cosine
    )


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of ``[..., H, W]`` masks whose right or lower neighbour differs."""
    edge = np.zeros_like(mask)
    edge[..., :, :-1] |= mask[..., :, :-1] != mask[..., :, 1:]
    edge[..., :-1, :] |= mask[..., :-1, :] != mask[..., 1:, :]
    return edge


def mask_ious(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of masks ``[..., H, W]`` pair by pair, ``[...]``; 1 where both are empty."""
    common, union = (masks.sum(axis=(-2, -1)) for masks in (first & second, first | second))
    ious: NDArray[np.float64] = common / np.maximum(union, 1) + (union == 0)
    return ious


def mask_figures(
    expected: NDArray[np.bool_], found: NDArray[np.bool_], scores: tuple[NDArray[Any], NDArray[Any]]
) -> dict[str, Any]:
    """Of the masks ``[B, C, H, W]`` of one case: IoU, pixels changed, boundary pixels, best mask kept.

    Args:
        expected, found: thresholded masks.
        scores: ``[B, C]`` each, expected and found; the best mask is the one that scores highest.
    """
    union = int((expected | found).sum())
    intersection = int((expected & found).sum())
    return {
        "iou": intersection / union if union else 1.0,
        "changed": int((expected != found).sum()),
        "boundary": int(boundary(expected).sum()),
        "prompts": len(scores[0]),
        "same_best": int((scores[0].argmax(axis=1) == scores[1].argmax(axis=1)).sum()),
    }
