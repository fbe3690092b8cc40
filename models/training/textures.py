"""Photographs that scenes are painted with, from scikit-image's wheel."""

import numpy as np
from numpy.typing import NDArray

TRAINING = (
    *("astronaut", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry"),
    *("brick", "gravel", "camera", "coins", "moon", "retina"),
)
HELD_OUT = ("chelsea", "grass", "page", "cell")
"""Never trained on."""


def load_textures(names: tuple[str, ...] = TRAINING) -> list[NDArray[np.uint8]]:
    """Returns scikit-image's photographs of these names, ``[H, W, 3]`` uint8 each."""
    from skimage import data

    images = [np.asarray(getattr(data, name)()) for name in names]
    return [np.repeat(x[..., None], 3, axis=2) if x.ndim == 2 else x[..., :3] for x in images]
