"""Makes a bundle's golden vectors: a small photograph, prompts with masks worth comparing, answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam import constants
from pocketsam.errors import ParityError
from pocketsam.export.cases import Case, DecoderCase, Photo, all_encoder_feeds
from pocketsam.export.target import Arrays
from pocketsam.export.traced import Decoder, Encoder, run_outputs
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime import prompts
from pocketsam.runtime.verification import golden
from pocketsam.runtime.verification.metrics import TIE
from pocketsam.runtime.verification.tolerance import Tolerance

WIDTH, HEIGHT = 128, 91
"""Of the photograph before its pixels are repeated; the height is odd, so that rounding it matters."""
CONTRAST = 16
"""Of the chequers, of 255."""
GRID = 4
"""Places in a row of those where prompts are tried."""
MASK_LOGIT = 8.0
"""Of the mask input, inside the mask; outside, it is negative."""
IOU_CAP = 0.98
"""A thinned mask has few pixels, so one that moves costs more than in a whole mask."""


def draw_scene(image_size: int) -> Photo:
    """Returns a photograph, ``[H, W, 3]``, half as large again as the canvas.

    scikit-image's astronaut (NASA, public domain) in large square pixels compresses to a few dozen
    kilobytes. A device must scale it down as it does a photograph of its camera, and the fine chequers
    on it come out differently by every filter.
    """
    from skimage import data

    small = Image.fromarray(data.astronaut()[:364]).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    times = -(-3 * image_size // (2 * WIDTH))
    large = np.asarray(small).astype(np.int16).repeat(times, axis=0).repeat(times, axis=1)
    y, x = np.mgrid[: large.shape[0], : large.shape[1]] // 2
    chequers = np.where((x + y) % 2, CONTRAST, -CONTRAST)[..., None]
    return np.clip(large + chequers, 0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Golden:
    """Golden prompts and PyTorch's answers.

    Attributes:
        case: the photograph and its prompts as parity compares them.
        arrays: what ``golden.npz`` holds of them, see ``runtime.verification.golden``.
    """

    case: Case
    arrays: Arrays

    def with_own(self, answers: Mapping[str, Mapping[str, NDArray[Any]]]) -> Arrays:
        """Returns the arrays with the answers of a file of a lossy precision among them."""
        own: Arrays = {}
        for name, answer in answers.items():
            own[f"{name}_own_scores"] = answer["scores"]
            own[f"{name}_own_low_res_masks"] = answer["low_res_masks"].astype(np.float16)
        return self.arrays | own

    def tolerance(
        self, tolerance: Tolerance, answers: Mapping[str, Mapping[str, NDArray[Any]]]
    ) -> Tolerance:
        """Returns what a device's answers may differ by from PyTorch's.

        Args:
            tolerance: that parity kept.
            answers: of the files, here; they passed parity.

        Returns:
            The tolerance; where files that passed parity exceed it on thinned masks, that much with
            some room, so that a device is compared with what left.

        Raises:
            ParityError: an answer holds NaN or infinity, which no room would cover.
        """
        found = [
            golden.compare({key: self.arrays[f"{name}_{key}"] for key in answer}, dict(answer))
            for name, answer in answers.items()
        ]
        if not np.isfinite([list(one.values()) for one in found]).all():
            raise ParityError("the files' answers to the golden prompts are no finite numbers")
        wide = {
            "error": max(tolerance.error, 1.2 * max(one["error"] for one in found)),
            "snr_db": min(tolerance.snr_db, min(one["snr_db"] for one in found) - 1),
            "cosine": min(tolerance.cosine, *(1 - 1.3 * (1 - one["cosine"]) for one in found)),
            "score": max(tolerance.score, 1.2 * max(one["score"] for one in found)),
            "best_kept": min(one["best_kept"] for one in found),
            "mask_iou_mean": min(
                tolerance.mask_iou_mean, IOU_CAP, min(one["mask_iou_mean"] for one in found) - 0.02
            ),
        }
        mask_iou = min(one["mask_iou"] for one in found)
        least = min(mask_iou, 1 - max(one["small_changed"] for one in found))
        wide["mask_iou"] = min(tolerance.mask_iou, IOU_CAP, least - 0.02)
        return replace(tolerance, **wide)


def thinned(tolerance: Tolerance) -> Tolerance:
    """Returns a precision's tolerance as it is for thinned masks."""
    least, mean = min(tolerance.mask_iou, IOU_CAP), min(tolerance.mask_iou_mean, IOU_CAP)
    return replace(tolerance, mask_iou=least, mask_iou_mean=mean)


def make_golden(model: Sam) -> Golden:
    """Returns golden prompts whose masks are neither empty nor full, with PyTorch's answers.

    Of a grid of clicks, boxes and pairs of clicks, each kind's prompt is the one whose four masks are
    the furthest from being empty or full.
    """
    image = draw_scene(model.image_size)
    pixels = model.traits.normalisation
    feeds = all_encoder_feeds(image, model.image_size, pixels)
    outputs = run_outputs(Encoder(model), feeds)
    embedding = outputs[c.IMAGE_EMBEDDINGS]
    arrays: Arrays = {"image": image}
    cases = []
    previous: Arrays = {}
    for name, candidates in _candidates(image.shape[0], image.shape[1]):
        if name == "refine":  # a mask of the box, in two values: it compresses to nothing
            mask = np.where(previous[c.LOW_RES_MASKS][:, 1:2] > 0, MASK_LOGIT, -MASK_LOGIT)
            candidates = {
                "point_coords": arrays["point_point_coords"],
                "point_labels": arrays["point_point_labels"],
                "mask_inputs": mask.astype(np.float32),
            }
        chosen, case = _best_prompt(model, image, embedding, name, candidates)
        cases.append(case)
        previous = case.outputs if name == "box" else previous
        arrays |= {f"{name}_{key}": array for key, array in chosen.items()}
        arrays[f"{name}_scores"] = case.outputs[c.IOU_PREDICTIONS]
        arrays[f"{name}_low_res_masks"] = golden.thin(case.outputs[c.LOW_RES_MASKS])
    size = (image.shape[0], image.shape[1])
    whole = Case("golden", image, size, model.image_size, outputs, {}, tuple(cases), pixels)
    return Golden(whole, arrays)


def _candidates(height: int, width: int) -> Iterator[tuple[str, Arrays]]:
    """Yields each kind of prompt with the prompts to try, B of each."""
    places = (np.arange(GRID) + 0.5) / GRID
    xy = np.stack(np.meshgrid(places * width, places * height), axis=-1).reshape(-1, 1, 2)
    xy = xy.round().astype(np.float32)
    ones = np.ones((len(xy), 1), np.float32)
    half = np.array([width, height], np.float32) / GRID
    corners = np.clip(np.concatenate([xy - half, xy + half], axis=1), 0, (width, height))
    background = np.roll(xy, len(xy) // 2, axis=0)
    yield "point", {"point_coords": xy, "point_labels": ones}
    yield "box", {"boxes": corners.reshape(-1, 4).astype(np.float32)}
    yield (
        "points",
        {
            "point_coords": np.concatenate([xy, background], axis=1),
            "point_labels": np.concatenate([ones, 0 * ones], axis=1),
        },
    )
    yield "refine", {}


def _best_prompt(
    model: Sam, image: Photo, embedding: NDArray[np.float32], name: str, candidates: Arrays
) -> tuple[Arrays, DecoderCase]:
    """Returns the best of some prompts, alone, with the case that PyTorch answers."""
    found = _decode(model, image, embedding, candidates)
    areas = (found[c.LOW_RES_MASKS] > constants.MASK_THRESHOLD).mean(axis=(-2, -1))
    ranked = np.sort(found[c.IOU_PREDICTIONS][:, 1:], axis=1)
    is_clear = ranked[:, -1] - ranked[:, -2] > TIE  # else the best mask would not be compared
    sides = np.minimum(areas, 1 - areas)
    best = max(range(len(sides)), key=lambda i: (bool(is_clear[i]), sides[i].min(), sides[i].mean()))
    chosen = {key: array[best : best + 1] for key, array in candidates.items()}
    size = (image.shape[0], image.shape[1])
    feeds = _feeds(model, image, embedding, chosen)
    outputs = run_outputs(Decoder(model), feeds)
    return chosen, DecoderCase(f"golden, {name}", size, model.image_size, feeds, outputs, {})


def _decode(model: Sam, image: Photo, embedding: NDArray[np.float32], given: Arrays) -> Arrays:
    outputs: Arrays = run_outputs(Decoder(model), _feeds(model, image, embedding, given))
    return outputs


def _feeds(model: Sam, image: Photo, embedding: NDArray[np.float32], given: Arrays) -> Arrays:
    """Returns the decoder's inputs for B prompts, as ``Segmenter.predict_batch`` takes them."""
    size, side = (image.shape[0], image.shape[1]), model.mask_side
    coords, labels = prompts.assemble(
        given.get("point_coords"), given.get("point_labels"), given.get("boxes"), size, model.image_size
    )
    mask = given.get("mask_inputs")
    (feeds,) = prompts.batches(coords, labels, mask, side, len(coords))
    return feeds | {c.IMAGE_EMBEDDINGS: embedding, c.ORIG_IM_SIZE: np.array(size, np.float32)}
