"""Draws prompts for a mask: clicks, boxes, and several points."""

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import (
    LABEL_BACKGROUND,
    LABEL_BOX_FIRST,
    LABEL_BOX_SECOND,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
)
from pocketsam.models.prompted import Mask, deepest_pixel
from pocketsam.models.training.photographs.windows import GRID

MOST_POINTS = 4
"""The longest prompt: three points and SAM's not-a-point."""
CLICK = [LABEL_FOREGROUND, LABEL_NOT_A_POINT]
"""Labels of a click: a point, and the not-a-point that follows points without a box."""
_COARSE = 64


def draw_prompt(mask: Mask, rng: np.random.Generator) -> tuple[NDArray[np.float32], list[int]]:
    """Returns a random prompt for a mask: six of ten are clicks, two boxes, two several points.

    Of several points the last may lie outside the mask.

    Args:
        mask: ``[S/2, S/2]``, not empty.
        rng: draws.

    Returns:
        Points ``[N, 2]``, (x, y) in pixels of the canvas, N at most ``MOST_POINTS``; and their labels.
    """
    draw = rng.random()
    if draw < 0.2:
        return draw_box(mask, rng), [LABEL_BOX_FIRST, LABEL_BOX_SECOND]
    if draw < 0.8:
        click = _draw_click(mask, rng)
        return np.stack([click, np.zeros_like(click)]), CLICK
    points = [_draw_click(mask, rng), _draw_point(mask, rng)]
    labels = [LABEL_FOREGROUND, LABEL_FOREGROUND]
    around = ~mask & _near(mask)
    if rng.random() < 0.5 and around.any():
        points.append(_draw_point(around, rng))
        labels.append(LABEL_BACKGROUND)
    return np.stack([*points, np.zeros_like(points[0])]), [*labels, LABEL_NOT_A_POINT]


def draw_box(mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns the corners ``[2, 2]`` of a mask's box, each moved by about a tenth of a side.

    At most by 20 pixels: SAM moves boxes as much in training (arXiv:2304.02643, appendix A).
    """
    (y0, x0), (y1, x1) = _corners(mask)
    corners = np.array([[x0, y0], [x1, y1]], np.float32) * GRID
    noise = rng.normal(size=(2, 2)) * 0.1 * (corners[1] - corners[0])
    moved = (corners + noise.clip(-20, 20)).clip(0, len(mask) * GRID)
    return np.sort(moved, axis=0).astype(np.float32)


def _draw_click(mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns a point in a mask: half of them anywhere, half where a person clicks, in the middle."""
    if rng.random() < 0.5:
        return _draw_point(mask, rng)
    times = max(1, len(mask) // _COARSE)  # the distances to all edges of a large mask take long
    coarse = mask[times // 2 :: times, times // 2 :: times]
    if not coarse.any():
        return _draw_point(mask, rng)
    middle = np.array(deepest_pixel(coarse)) * times + times // 2
    return ((middle + rng.random(2)) * GRID).astype(np.float32)


def _draw_point(mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns a point anywhere in a mask."""
    y, x = divmod(int(rng.choice(np.flatnonzero(mask.ravel()))), mask.shape[1])
    return ((np.array([x, y]) + rng.random(2)) * GRID).astype(np.float32)


def _near(mask: Mask) -> Mask:
    """Returns the mask's bounding box, larger by half its side in each direction."""
    (y0, x0), (y1, x1) = _corners(mask)
    dy, dx = (y1 - y0) // 2 + 2, (x1 - x0) // 2 + 2
    near = np.zeros_like(mask)
    near[max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx] = True
    return near


def _corners(mask: Mask) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (y, x) of a mask's first row and column, and of those after its last."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(ys[0]), int(xs[0])), (int(ys[-1]) + 1, int(xs[-1]) + 1)
