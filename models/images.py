"""Folders of images for training: what can be read becomes the network's input, the rest is counted."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pocketsam.constants import PIXEL_MEAN, PIXEL_STD
from pocketsam.errors import ImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST_SIDE = 16
"""Images with a shorter side hold less than one cell of the embedding."""


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, in a fixed order.

    Raises:
        ImageError: the folder is missing, or holds no image.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ImageError(f"{folder}: no images ({', '.join(SUFFIXES)})")
    return found


def check_images(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Those that can be decoded and are large enough, and for each other one a line that says why."""
    good, skipped = [], []
    for path in paths:
        try:
            with open_image(path) as image:
                if min(image.size) < SMALLEST_SIDE:
                    raise ImageError(f"{path}: {image.width}x{image.height} pixels are too few")
                image.load()
            good.append(path)
        except ImageError as error:
            skipped.append(str(error))
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            skipped.append(f"{path}: cannot be read: {error}")
    return good, skipped


def open_image(path: Path) -> Image.Image:
    """Opens a file; Pillow's complaints become ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: cannot be read: {error}") from None


def load_rgb(path: Path) -> Image.Image:
    """RGB, turned as EXIF says."""
    with open_image(path) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def load_pixels(path: Path, image_size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """``[h, w, 3]`` uint8 RGB, turned as EXIF says, its longest side ``image_size``."""
    return scaled(load_rgb(path), image_size)


def scaled(image: Image.Image, image_size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """``[h, w, 3]`` of an RGB image, its longest side ``image_size``."""
    scale = image_size / max(image.size)
    width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def load_truth(
    path: Path, name: str, image: Image.Image
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The label map ``[H, W]`` of the image of that name: integers, 0 where there is no object.

    Raises:
        ImageError: the file is missing or unreadable, is no label map, or has another size.
    """
    with open_image(path) as opened:
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


def to_pixel_values(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], image_size: int) -> Tensor:
    """``[h, w, 3]`` to ``pixel_values [3, S, S]``: normalised, zeros on the right and below."""
    mean, std = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    values = (pixels.astype(np.float32) - mean) / std
    canvas = np.zeros((3, image_size, image_size), np.float32)
    canvas[:, : pixels.shape[0], : pixels.shape[1]] = values.transpose(2, 0, 1)
    return torch.from_numpy(canvas)
