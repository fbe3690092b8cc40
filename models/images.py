"""Reads folders of images for training and evaluation, and turns images into the network's input."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pocketsam.constants import IMAGE_SUFFIXES, PIXEL_MEAN, PIXEL_STD, resized_shape
from pocketsam.errors import ImageError

SMALLEST_SIDE = 16
"""In pixels: one cell of the embedding. An image with a shorter side is refused."""


def list_images(folder: Path) -> list[Path]:
    """Returns the paths of all image files below a folder, sorted.

    Raises:
        ImageError: the folder is missing, or holds no image file.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ImageError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def check_images(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Returns the images that can be used, and says why others cannot.

    Returns:
        (good, skipped): the paths of images that can be decoded and are large enough, and for every
        other image a line that names it and says why.
    """
    good, skipped = [], []
    for path in paths:
        try:
            with _open_image(path) as image:
                if min(image.size) < SMALLEST_SIDE:
                    raise ImageError(f"{path}: {image.width}x{image.height} pixels are too few")
                image.load()
            good.append(path)
        except ImageError as error:
            skipped.append(str(error))
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            skipped.append(f"{path}: cannot be read: {error}")
    return good, skipped


def _open_image(path: Path) -> Image.Image:
    """Returns a file opened with Pillow; Pillow's errors and warnings become ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: cannot be read: {error}") from None


def load_rgb(path: Path) -> Image.Image:
    """Returns an image file as RGB, rotated as its EXIF says.

    Raises:
        ImageError: the file cannot be read.
    """
    with _open_image(path) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def load_pixels(path: Path, image_size: int) -> NDArray[np.uint8]:
    """Returns an image file as ``[h, w, 3]`` uint8 RGB, scaled to a longest side of ``image_size``.

    Raises:
        ImageError: the file cannot be read.
    """
    return scaled(load_rgb(path), image_size)


def scaled(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """Returns an RGB image as ``[h, w, 3]`` uint8, scaled to a longest side of ``image_size``."""
    height, width = resized_shape(image.height, image.width, image_size)
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def load_truth(path: Path, name: str, image: Image.Image) -> NDArray[np.int64]:
    """Returns a label map ``[H, W]``: the number of the object at each pixel, 0 for no object.

    Args:
        path: the label map, an image file of one channel.
        name: of the image, for error messages.
        image: the image, which has the same size.

    Raises:
        ImageError: the file is missing or unreadable, is no label map, or has another size.
    """
    with _open_image(path) as opened:
        try:
            labels = np.array(opened)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ImageError(f"{path}: cannot be read: {error}") from None
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ImageError(f"{path}: a label map has one channel of whole numbers")
    if labels.shape != image.size[::-1]:
        sizes = f"{labels.shape[1]}x{labels.shape[0]}, and {name} {image.width}x{image.height}"
        raise ImageError(f"{path}: {sizes}")
    return labels.astype(np.int64)


def to_pixel_values(pixels: NDArray[np.uint8], image_size: int) -> Tensor:
    """Returns ``pixel_values [3, S, S]`` float32: normalised, zeros on the right and below.

    Args:
        pixels: ``[h, w, 3]`` RGB in 0..255, neither side longer than S.
        image_size: S, the side of the canvas in pixels.
    """
    values = normalise(torch.tensor(pixels).permute(2, 0, 1))
    height, width = pixels.shape[:2]
    return F.pad(values, (0, image_size - width, 0, image_size - height))


def normalise(images: Tensor) -> Tensor:
    """Returns float32 ``pixel_values`` of the same shape: zero mean and unit deviation per channel.

    Args:
        images: ``[..., 3, H, W]`` RGB in 0..255, of any dtype.
    """
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (images.float() - mean) / std
