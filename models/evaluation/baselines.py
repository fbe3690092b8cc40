"""Masks for a click or a box that need no training: what a trained network must beat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.models.prompted import Masks
from pocketsam.models.training.answers import disks_at


def at_clicks(pixels: NDArray[np.uint8], clicks: NDArray[np.float64]) -> dict[str, Masks]:
    """Returns masks ``[P, h, w]`` by name: a disk around each click, and the segment under it.

    Scikit-image computes the segments, after Felzenszwalb and Huttenlocher 2004.

    Args:
        pixels: ``[h, w, 3]`` RGB in 0..255.
        clicks: ``[P, 2]``, (x, y) in pixels.
    """
    from skimage import segmentation

    height, width = pixels.shape[:2]
    felzenszwalb: Any = segmentation.felzenszwalb
    labels = felzenszwalb(pixels, scale=400, sigma=0.8, min_size=max(1, height * width // 1000))
    columns, rows = clicks.round().astype(int).T
    return {
        "disk": disks_at(clicks, pixels.shape),
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
