"""Draws views of photographs: a crop or the whole, with prompts and what each prompt may mean.

A click is ambiguous: it may mean an object, a part of it, or the region that both belong to. So a view
carries up to three masks for each click. The first is what the click asks for: a mask that a person
drew where there is one, otherwise a region; it decides the scores. The others are further masks and
regions under the click.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.constants import LABEL_NOT_A_POINT
from pocketsam.models.prompted import Mask
from pocketsam.models.training.photographs.photo import TrainingPhoto
from pocketsam.models.training.photographs.prompts import CLICK, MOST_POINTS, draw_prompt
from pocketsam.models.training.photographs.windows import (
    GRID,
    Maps,
    draw_window,
    features_of,
    maps_of,
    show,
)

MEANINGS = 3
"""Masks of each prompt, those that are absent among them."""
CELL = 4
"""Side of a mask's cell in pixels of the canvas, as in the decoder's output."""
_SAME = 0.8
"""IoU from which on two masks count as one."""
_LEVELS = (0.0, 0.2, 0.3, 0.3, 0.2)
"""How often a prompt means a region of each of ``regions.LEVELS``, where it means no person's mask."""


@dataclass(frozen=True)
class View:
    """A training example on a canvas of S pixels, with P prompts.

    Attributes:
        image: ``[S, S, 3]`` uint8 RGB; zeros right of and below the photograph.
        extent: ``[2]`` int64, height and width of the photograph on the canvas.
        coords: ``[P, N, 2]`` float32, (x, y) in pixels; N is ``MOST_POINTS``.
        labels: ``[P, N]`` float32, as in ``pocketsam.constants``.
        padding: ``[P, N]`` float32, 1 for a point that is padding.
        masks: ``[P, 3, S/4, S/4]`` uint8, the share of each cell that the mask covers, times 255.
        meant: ``[P, 3]`` bool, whether there is such a mask.
        features: ``[S/16, S/16, FEATURES]`` float16, to imitate.
        known: ``[S/16, S/16]`` bool, cells with features.
    """

    image: NDArray[np.uint8]
    extent: NDArray[np.int64]
    coords: NDArray[np.float32]
    labels: NDArray[np.float32]
    padding: NDArray[np.float32]
    masks: NDArray[np.uint8]
    meant: NDArray[np.bool_]
    features: NDArray[np.float16]
    known: NDArray[np.bool_]


def draw_view(photo: TrainingPhoto, size: int, prompts: int, rng: np.random.Generator) -> View:
    """Returns a random view of a photograph, with random prompts.

    Args:
        photo: to look at.
        size: side of the canvas in pixels, a multiple of 16.
        prompts: number of prompts.
        rng: draws everything.
    """
    window = draw_window(photo.image.shape, size, rng)
    maps = maps_of(photo, window, size)
    coords = np.zeros((prompts, MOST_POINTS, 2), np.float32)
    labels = np.full((prompts, MOST_POINTS), LABEL_NOT_A_POINT, np.float32)
    padding = np.ones((prompts, MOST_POINTS), np.float32)
    masks = np.zeros((prompts, MEANINGS, size // CELL, size // CELL), np.uint8)
    meant = np.zeros((prompts, MEANINGS), bool)
    for i in range(prompts):
        wanted = _draw_wanted(maps, rng)
        points, kinds = draw_prompt(wanted, rng)
        coords[i, : len(points)], labels[i, : len(points)] = points, kinds
        padding[i, : len(points)] = 0
        meanings = [wanted]
        if kinds == CLICK:
            x, y = np.minimum(points[0].astype(int) // GRID, size // GRID - 1)  # float32 may round up
            meanings = _meanings(maps, wanted, (int(y), int(x)), rng)
        for j, mask in enumerate(meanings):
            masks[i, j], meant[i, j] = _shares(mask), True
    extent = np.array([window.height, window.width])
    image, imitated = show(photo, window, size), features_of(photo, window, size)
    return View(image, extent, coords, labels, padding, masks, meant, *imitated)


def stack_views(views: list[View]) -> list[Tensor]:
    """Returns the fields of views of the same size, stacked, in the order of ``View``."""
    return [
        torch.from_numpy(np.stack([getattr(view, field.name) for view in views]))
        for field in fields(View)
    ]


def _draw_wanted(maps: Maps, rng: np.random.Generator) -> Mask:
    """Returns what a prompt asks for: in seven of ten draws a person's mask, if any; else a region."""
    drawn = maps.all_drawn()
    if drawn and rng.random() < 0.7:
        return drawn[rng.integers(len(drawn))]
    inside = np.flatnonzero(maps.basins.ravel() < maps.merged.shape[1] - 1)
    levels = _LEVELS if len(maps.merged) == len(_LEVELS) else None
    mask = maps.basins < maps.merged.shape[1] - 1
    for _ in range(8):
        level = int(rng.choice(len(maps.merged), p=levels))
        places = inside
        if rng.random() < 0.5:  # every region is as likely, otherwise every pixel
            regions = maps.merged[level][maps.basins.ravel()[inside]]
            places = inside[regions == rng.choice(np.unique(regions))]
        y, x = divmod(int(rng.choice(places)), maps.basins.shape[1])
        mask = maps.region(level, y, x)
        if maps.fits(mask):
            return mask
    return drawn[rng.integers(len(drawn))] if drawn else mask


def _meanings(maps: Maps, wanted: Mask, click: tuple[int, int], rng: np.random.Generator) -> list[Mask]:
    """Returns up to ``MEANINGS`` masks that a click at an element (y, x) may mean, ``wanted`` first."""
    found = [wanted]
    levels = rng.permutation(len(maps.merged))
    for mask in maps.drawn(*click) + [maps.region(int(level), *click) for level in levels]:
        if len(found) == MEANINGS:
            break
        if maps.fits(mask) and all(_iou(mask, other) < _SAME for other in found):
            found.append(mask)
    return found


def _iou(one: Mask, other: Mask) -> float:
    """Returns the IoU of two masks, of which one has a pixel."""
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def _shares(mask: Mask) -> NDArray[np.uint8]:
    """Returns the share of each cell that a mask covers, times 255."""
    times = CELL // GRID
    cells = len(mask) // times
    share = mask.reshape(cells, times, cells, times).mean((1, 3), dtype=np.float32)
    return (share * 255).astype(np.uint8)
