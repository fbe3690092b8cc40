"""Measures a network's answers to clicks on objects whose masks are known, by the objects' size.

Each object gets a click at its deepest pixel. ``first`` is the IoU of the best-scored of the three
masks, which a user sees; ``best`` of the best of the three; ``pair`` of the answer to that click and a
second one; ``box`` of the answer to the object's box; ``disk`` of a disk around the click, which needs
no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pocketsam.constants import MASK_THRESHOLD
from pocketsam.models import prompted
from pocketsam.models.images import scaled
from pocketsam.models.prompted import Mask, Masks, Prompts
from pocketsam.models.sam import Sam
from pocketsam.models.training.photographs.photo import TrainingPhoto
from pocketsam.models.training.scenes import MIN_AREA

SIZES = {"small": 0.01, "medium": 0.1, "large": 1.01}
"""Classes of objects, and the share of the image below which an object belongs to each."""
RADIUS = 0.2
"""Radius of the disk, as a share of the image's shorter side."""
_AT_A_TIME = 8


@dataclass(frozen=True)
class Answers:
    """A network's answers to prompts for the N objects of an image, or of several images.

    Attributes:
        areas: ``[N]``, share of the image that each object covers.
        scores: ``[N, 3]``, predicted IoU of the three masks.
        ious: ``[N, 3]``, their IoU with the object.
        pairs: ``[N]``, IoU at two clicks.
        boxes: ``[N]``, IoU at the box.
        disks: ``[N]``, IoU of the disk.
    """

    areas: NDArray[np.float64]
    scores: NDArray[np.float64]
    ious: NDArray[np.float64]
    pairs: NDArray[np.float64]
    boxes: NDArray[np.float64]
    disks: NDArray[np.float64]


class SizeRow(TypedDict):
    """The number of objects of a class, and their mean IoU; see the module."""

    objects: int
    first: float
    best: float
    pair: float
    box: float
    disk: float


@torch.inference_mode()
def answer_clicks(model: Sam, embedding: Tensor, truth: Masks) -> Answers:
    """Returns a network's answers on an image.

    Args:
        model: the network.
        embedding: of the image, from ``prompted.embed``.
        truth: ``[N, h, w]``, the objects, none empty; (h, w) is the image's shape on the canvas.
    """
    shape = truth.shape[1:]
    clicks = np.array([prompted.deepest_pixel(mask) for mask in truth], np.float64)
    points = prompted.point_prompts(clicks[:, None])
    second = np.array([second_click(*each) for each in zip(truth, clicks, strict=True)], np.float64)
    pairs, boxes = (
        prompted.predict(model, embedding, prompts, shape)
        for prompts in (
            prompted.point_prompts(np.stack([clicks, second], 1)),
            prompted.bounding_box_prompts(truth),
        )
    )
    wanted = torch.from_numpy(truth)
    scores, ious = [], []
    for first in range(0, len(truth), _AT_A_TIME):
        some = slice(first, first + _AT_A_TIME)
        asked = Prompts(points.coords[some], points.labels[some]).to(embedding.device)
        decoded = prompted.decode(model, embedding, asked)
        scores.append(decoded.scores[:, 1:].double().cpu())
        masks = _full_size(decoded.masks[:, 1:], model.image_size, shape)
        ious.append(prompted.iou(masks, wanted[some, None]).double())
    return Answers(
        truth.mean((1, 2)),
        torch.cat(scores).numpy(),
        torch.cat(ious).numpy(),
        prompted.iou(torch.from_numpy(pairs), wanted).double().numpy(),
        prompted.iou(torch.from_numpy(boxes), wanted).double().numpy(),
        prompted.iou(torch.from_numpy(disks_at(clicks, shape)), wanted).double().numpy(),
    )


def _full_size(low_res: Tensor, size: int, shape: tuple[int, ...]) -> Tensor:
    """Returns boolean masks ``[P, 3, h, w]`` for logits ``[P, 3, S/4, S/4]``."""
    full = F.interpolate(low_res, (size, size), mode="bilinear", align_corners=False)
    return (full[..., : shape[0], : shape[1]] > MASK_THRESHOLD).cpu()


def second_click(mask: Mask, first: NDArray[np.float64]) -> tuple[int, int]:
    """Returns (x, y) of the deepest pixel of what the largest disk around the first click leaves.

    Args:
        mask: ``[h, w]``, not empty.
        first: (x, y) of its deepest pixel.
    """
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    away = np.hypot(x - first[0], y - first[1])
    outside = np.pad(~mask, 1, constant_values=True)
    rows, columns = np.nonzero(outside)
    depth = np.hypot(columns - 1 - first[0], rows - 1 - first[1]).min()
    rest = mask & (away >= depth)
    return prompted.deepest_pixel(rest if rest.any() else mask)


def disks_at(clicks: NDArray[np.float64], shape: tuple[int, ...]) -> Masks:
    """Returns a disk around each click, ``[P, h, w]``.

    Args:
        clicks: ``[P, 2]``, (x, y) in pixels.
        shape: starts with (h, w).
    """
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width]
    away = np.hypot(x - clicks[:, 0, None, None], y - clicks[:, 1, None, None])
    disks: Masks = away <= RADIUS * min(height, width)
    return disks


def join_answers(parts: Sequence[Answers]) -> Answers:
    """Returns the answers on several images as one."""
    names = [field.name for field in fields(Answers)]
    return Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def by_size(answers: Answers) -> dict[str, SizeRow]:
    """Returns the means over ``all`` objects, and over each class of ``SIZES`` that has any."""
    limits = np.array(list(SIZES.values()))
    numbers = np.searchsorted(limits, answers.areas, side="right")
    groups = {"all": np.ones(len(numbers), bool)}
    groups |= {name: numbers == number for number, name in enumerate(SIZES)}
    first = np.take_along_axis(answers.ious, answers.scores.argmax(1)[:, None], 1)[:, 0]

    def mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float:
        return round(float(values[chosen].mean()), 4)

    return {
        name: SizeRow(
            objects=int(chosen.sum()),
            first=mean(first, chosen),
            best=mean(answers.ious.max(1), chosen),
            pair=mean(answers.pairs, chosen),
            box=mean(answers.boxes, chosen),
            disk=mean(answers.disks, chosen),
        )
        for name, chosen in groups.items()
        if chosen.any()
    }


def score_error(answers: Answers) -> float:
    """Returns the mean distance of predicted and true IoU, over the three masks of all clicks."""
    return round(float(np.abs(answers.scores - answers.ious).mean()), 4)


def size_table(answers: Answers) -> str:
    """Returns ``by_size`` and ``score_error`` as text for people."""
    columns = ("first", "best", "pair", "box", "disk")
    lines = [f"{'IoU at a click, by size':<25}{'objects':>9}" + "".join(f"{c:>9}" for c in columns)]
    for name, row in by_size(answers).items():
        means: dict[str, Any] = {**row}
        values = "".join(f"{means[column]:>9.3f}" for column in columns)
        lines.append(f"  {name:<23}{row['objects']:>9}{values}")
    error = f"predicted and true IoU differ by {score_error(answers):.3f} on average"
    return "\n".join([*lines, error])


def object_masks(labels: NDArray[np.integer[Any]], shape: tuple[int, ...]) -> Masks:
    """Returns ``[N, h, w]``, the objects of a label map that cover ``MIN_AREA``, scaled to (h, w)."""
    height, width = labels.shape
    rows = (np.arange(shape[0]) + 0.5) * height / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * width / shape[1]
    small = labels[rows.astype(int)[:, None], columns.astype(int)]
    values, areas = np.unique(small, return_counts=True)
    wanted = values[(values != 0) & (areas >= MIN_AREA * small.size)]
    found: Masks = small == wanted[:, None, None]
    return found


def measure_clicks(model: Sam, photos: Sequence[TrainingPhoto]) -> dict[str, Any]:
    """Returns ``by_size`` of the objects in photographs, and ``score_error``; nothing without objects.

    Args:
        model: the network; it decides the canvas.
        photos: with masks that people drew.
    """
    parts = []
    for photo in photos:
        pixels = scaled(Image.fromarray(photo.image), model.image_size)
        truth = np.concatenate([object_masks(layer, pixels.shape) for layer in photo.layers])
        if len(truth):
            parts.append(answer_clicks(model, prompted.embed(model, pixels), truth))
    if not parts:
        return {}
    answers = join_answers(parts)
    return {**by_size(answers), "score_error": score_error(answers)}
