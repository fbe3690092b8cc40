"""Masks for a click or a box that need no training: what a trained network must beat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.models.prompted import Masks

_RADIUS = 0.2
"""Radius of the disk, as a share of the image's shorter side."""


def at_clicks(pixels: NDArray[np.uint8], clicks: NDArray[np.float64]) -> dict[str, Masks]:
    """Returns masks ``[P, h, w]`` by name: a disk around each click, and the segment under it.

    Scikit-image computes the segments, after Felzenszwalb and Huttenlocher 2004.

    Args:
        pixels: ``[h, w, 3]`` RGB in 0..255.
        clicks: ``[P, 2]``, (x, y) in pixels.
    """
    from skimage import segmentation

    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    away = np.hypot(x - clicks[:, 0, None, None], y - clicks[:, 1, None, None])
    felzenszwalb: Any = segmentation.felzenszwalb
    labels = felzenszwalb(pixels, scale=400, sigma=0.8, min_size=max(1, height * width // 1000))
    columns, rows = clicks.round().astype(int).T
    return {
        "disk": away <= _RADIUS * min(height, width),
        "Felzenszwalb's segment": labels == labels[rows, columns][:, None, None],
    }


def filled_boxes(boxes: NDArray[np.float32], shape: tuple[int, ...]) -> Masks:
    """Returns masks ``[P, h, w]``, the boxes themselves.

    Args:
        boxes: ``[P, 2, 2]``, the corners (x, y) in pixels.
        shape: starts with (h, w).
    """
    y, x = np.mgrid[: shape[0], : shape[1]]
    (x0, y0), (x1, y1) = boxes.transpose(1, 2, 0)[..., None, None]
    filled: Masks = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return filled
