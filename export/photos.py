"""Photographs to verify on: those that scikit-image brings, or a user's own."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketsam.runtime.image import find_images, load_image

BUNDLED = ("astronaut", "chelsea", "rocket")
"""Square and landscape, all in scikit-image's own wheel: nothing is downloaded."""


CALIBRATION = ("coffee", "hubble_deep_field", "immunohistochemistry")
"""Likewise, for ranges: other photographs than those that are verified on."""


def load_photos(
    paths: Sequence[str] = (), bundled: Sequence[str] = BUNDLED
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Names and ``[H, W, 3]`` uint8 images: the given files and folders, or the bundled ones.

    Raises:
        ImageError: a file that cannot be read, or a folder without images.
    """
    if not paths:
        from skimage import data

        return [(name, getattr(data, name)()) for name in bundled]
    files = [file for path in paths for file in find_images(path)]
    return [(file.name, load_image(file)) for file in files]
