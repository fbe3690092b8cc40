"""Reads images: files to RGB pixels, pixels to the encoder's input."""

import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pocketsam.constants import IMAGE_SUFFIXES, PIXEL_MEAN, PIXEL_STD, resized_shape
from pocketsam.errors import ImageError
from pocketsam.runtime.contract import IMAGE, PIXEL_VALUES, RESIZED_SIZE

Pixels = NDArray[np.uint8]
"""``[H, W, 3]`` RGB."""
StrPath = str | os.PathLike[str]
ImageLike = Pixels | Image.Image | StrPath

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused: their masks would not fit in a small device's memory."""
MAX_SIDE = 100_000
"""Images with a longer side are refused: so would the matrices that scale masks to it."""


def find_images(path: StrPath) -> list[Path]:
    """Returns the image files in a folder, sorted by name; of anything else, the path itself.

    Raises:
        ImageError: a folder without images, or one that cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}") from None
    if not found:
        raise ImageError(f"{folder}: a folder without images")
    return found


def load_image(source: StrPath | Image.Image) -> Pixels:
    """Returns a file's (or a PIL image's) pixels as RGB, the way a viewer shows them.

    EXIF rotation is applied. Grayscale, palette, CMYK and 16-bit images are converted (16 bits keep
    their upper 8). Transparent pixels are laid over white. Of an animation, the first frame.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        ImageError: missing, not an image, truncated, too large (``check_size``), or of float pixels.
    """
    name = "image" if isinstance(source, Image.Image) else os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS limits them
            with Image.open(name) as image:
                return _to_rgb(image, name)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # Pillow's plugins raise whatever damage makes their format raise
        raise ImageError(f"{name}: cannot be read: {error}") from None


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    width, height = image.size
    check_size(height, width, name)
    if image.mode == "F":
        raise ImageError(f"{name}: float pixels have no agreed range; convert to 8 or 16 bits first")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _to_8_bits(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def check_size(height: int, width: int, name: str) -> None:
    """Raises ImageError, with the name, unless an image of this size in pixels can be used."""
    if height < 1 or width < 1:
        raise ImageError(f"{name}: an image without pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels, a side longer than {MAX_SIDE:,}")


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Returns the upper 8 of 16 bits (Pillow itself clips); a transparent value becomes white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: integer pixels outside 0..65535")
    transparent = image.info.get("transparency")
    return Image.fromarray(np.where(values == transparent, 255, values >> 8).astype(np.uint8))


def as_pixels(image: ImageLike, image_format: str = "RGB") -> Pixels:
    """Returns ``[H, W, 3]`` uint8 RGB.

    Args:
        image: an array ``[H, W, 3]`` uint8, a PIL image or a path.
        image_format: channel order of an array, RGB or BGR.

    Raises:
        ImageError: the image cannot be read or used.
    """
    if image_format not in ("RGB", "BGR"):
        raise ImageError(f"image_format must be RGB or BGR, not {image_format!r}")
    if isinstance(image, Image.Image | str | os.PathLike):
        return load_image(image)
    pixels = check_pixels(image)
    return pixels[..., ::-1] if image_format == "BGR" else pixels


def check_pixels(image: Any) -> Pixels:
    """Returns the array, or raises ImageError unless it is ``[H, W, 3]`` uint8 and not empty."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        what = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"image must be a uint8 array [H, W, 3], a PIL image or a path, not {what}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"image must have the shape [H, W, 3], not {list(image.shape)}")
    check_size(image.shape[0], image.shape[1], "image")
    return image


def preprocess(image: Pixels, image_size: int) -> NDArray[np.float32]:
    """Returns ``[H, W, 3]`` uint8 RGB as the encoder's ``pixel_values`` ``[1, 3, S, S]`` float32.

    Scales the longest side to S (Pillow's antialiased bilinear filter), normalises, pads with zeros on
    the right and below: segment-anything's ``ResizeLongestSide`` and ``Sam.preprocess``.
    """
    values = _resized(image, image_size)
    _, height, width = values.shape
    mean = np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(PIXEL_STD, np.float32).reshape(3, 1, 1)
    canvas = np.zeros((1, 3, image_size, image_size), np.float32)
    canvas[0, :, :height, :width] = (values - mean) / std
    return canvas


def preprocess_raw(image: Pixels, image_size: int) -> dict[str, NDArray[np.float32]]:
    """Returns ``image`` ``[1, 3, S, S]`` and ``resized_size`` ``[2]``, for encoders that normalise."""
    values = _resized(image, image_size)
    canvas = np.zeros((1, 3, image_size, image_size), np.float32)
    canvas[0, :, : values.shape[1], : values.shape[2]] = values
    return {IMAGE: canvas, RESIZED_SIZE: np.array(values.shape[1:], np.float32)}


def encoder_feeds(
    image: Pixels, image_size: int, inputs: Collection[str]
) -> dict[str, NDArray[np.float32]]:
    """Returns an encoder's inputs.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        image_size: side of the canvas, in pixels.
        inputs: names of the tensors that the encoder takes.
    """
    if IMAGE in inputs:
        return preprocess_raw(image, image_size)
    return {PIXEL_VALUES: preprocess(image, image_size)}


def _resized(image: Pixels, image_size: int) -> NDArray[np.float32]:
    """Returns ``[H, W, 3]`` uint8 as ``[3, h, w]`` float32, scaled to a longest side of S."""
    height, width = resized_shape(image.shape[0], image.shape[1], image_size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)
