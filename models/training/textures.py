"""Photographs that scenes are painted with: those in scikit-image's wheel, or a folder of one's own."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAINING = (
    *("astronaut", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry"),
    *("brick", "gravel", "camera", "coins", "moon", "retina"),
)
HELD_BACK = ("chelsea", "grass", "page", "cell")
"""Evaluation only."""


def load_textures(
    names: tuple[str, ...] = TRAINING, folder: Path | None = None
) -> list[NDArray[np.uint8]]:
    """``[H, W, 3]`` uint8 images: scikit-image's of these names, and all pictures of a folder."""
    from PIL import Image
    from skimage import data

    images = [np.asarray(getattr(data, name)()) for name in names]
    if folder is not None:
        images += [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]
    return [np.repeat(x[..., None], 3, axis=2) if x.ndim == 2 else x[..., :3] for x in images]
