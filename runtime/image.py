"""Turns pixels into the encoder's input."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam.constants import resized_shape
from pocketsam.errors import ImageError
from pocketsam.images import Pixels, StrPath, check_size, load_image
from pocketsam.runtime.contract import IMAGE, PIXEL_VALUES, RESIZED_SIZE
from pocketsam.runtime.manifest import Manifest
from pocketsam.traits import SAM_PIXELS, Normalisation

ImageLike = Pixels | Image.Image | StrPath

_OR_FILE = ", a PIL image or a path"
FORMATS = {"RGB": 3, "BGR": 3, "RGBA": 4, "BGRA": 4, "GRAY": 1}
"""Orders of an array's channels, and how many there are; GRAY may be ``[H, W]``."""


def as_pixels(image: ImageLike, image_format: str = "RGB") -> Pixels:
    """Returns ``[H, W, 3]`` uint8 RGB; transparent pixels of an array are laid over white.

    Args:
        image: a uint8 array ``[H, W, C]``, a PIL image or a path.
        image_format: the array's channels, one of ``FORMATS``.

    Raises:
        ImageError: the image cannot be read or used.
    """
    if not isinstance(image_format, str) or image_format not in FORMATS:
        raise ImageError(f"image_format must be one of {', '.join(FORMATS)}, not {image_format!r}")
    if isinstance(image, Image.Image | str | os.PathLike):
        return load_image(image)
    if image_format == "RGB":
        return check_pixels(image, _OR_FILE)
    pixels = _check_uint8(image, _OR_FILE)
    if image_format == "GRAY" and pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] != FORMATS[image_format] or 0 in pixels.shape:
        wanted = f"[H, W, {FORMATS[image_format]}]"
        raise ImageError(f"an image in {image_format} has the shape {wanted}, not {list(pixels.shape)}")
    check_size(pixels.shape[0], pixels.shape[1], "image")
    if image_format == "GRAY":
        return np.repeat(pixels, 3, axis=2)
    colours = pixels[..., 2::-1] if image_format.startswith("BGR") else pixels[..., :3]
    if not image_format.endswith("A"):
        return colours
    return load_image(Image.fromarray(np.dstack([colours, pixels[..., 3]])))


def _check_uint8(image: Any, or_what: str = "") -> NDArray[np.uint8]:
    """Returns the array, or raises ImageError, which may say what else is taken, unless it is uint8."""
    if not isinstance(image, np.ndarray):
        what = type(image).__name__
        raise ImageError(f"image must be a uint8 array [H, W, 3]{or_what}, not {what}")
    if image.dtype != np.uint8:
        fix = "convert it first"
        if image.dtype.kind == "f":
            fix += ", such as (image * 255).astype(numpy.uint8) if its values are in 0..1"
        raise ImageError(f"image must be a uint8 array, not {image.dtype}; {fix}")
    return np.asarray(image)  # a masked array or a matrix would behave in ways of its own


def check_pixels(image: Any, or_what: str = "") -> Pixels:
    """Returns the array, or raises ImageError unless it is ``[H, W, 3]`` uint8 and not empty.

    Args:
        image: the array.
        or_what: what else the caller takes, for the message.
    """
    pixels = _check_uint8(image, or_what)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        hints = {
            (2, 0): "; say image_format='GRAY' for a grey image",
            (3, 1): "; say image_format='GRAY' for a grey image",
            (3, 4): "; say image_format='RGBA' or 'BGRA', or pass image[..., :3]",
        }
        hint = hints.get((pixels.ndim, pixels.shape[2] if pixels.ndim == 3 else 0), "")
        raise ImageError(f"image must have the shape [H, W, 3], not {list(pixels.shape)}{hint}")
    check_size(pixels.shape[0], pixels.shape[1], "image")
    return pixels


def preprocess(
    image: Pixels, image_size: int, normalisation: Normalisation = SAM_PIXELS
) -> NDArray[np.float32]:
    """Returns ``[H, W, 3]`` uint8 RGB as the encoder's ``pixel_values`` ``[1, 3, S, S]`` float32.

    Scales the longest side to S (Pillow's antialiased bilinear filter), normalises, pads with zeros on
    the right and below: segment-anything's ``ResizeLongestSide`` and ``Sam.preprocess``.
    """
    values = _resized(image, image_size)
    _, height, width = values.shape
    mean, std = (
        np.array(numbers, np.float32).reshape(3, 1, 1) for numbers in normalisation.statistics(values)
    )
    canvas = np.zeros((1, 3, image_size, image_size), np.float32)
    canvas[0, :, :height, :width] = (values - mean) / std
    return canvas


def preprocess_raw(image: Pixels, image_size: int) -> dict[str, NDArray[np.float32]]:
    """Returns ``image`` ``[1, 3, S, S]`` and ``resized_size`` ``[2]``, for encoders that normalise."""
    values = _resized(image, image_size)
    canvas = np.zeros((1, 3, image_size, image_size), np.float32)
    canvas[0, :, : values.shape[1], : values.shape[2]] = values
    return {IMAGE: canvas, RESIZED_SIZE: np.array(values.shape[1:], np.float32)}


def encoder_feeds(image: Pixels, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """Returns the inputs of a bundle's encoder.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        manifest: of the bundle.
    """
    size = manifest.image_size
    if manifest.preprocessing.input == IMAGE:
        return preprocess_raw(image, size)
    return {PIXEL_VALUES: preprocess(image, size, manifest.traits.normalisation)}


def _resized(image: Pixels, image_size: int) -> NDArray[np.float32]:
    """Returns ``[H, W, 3]`` uint8 as ``[3, h, w]`` float32, scaled to a longest side of S."""
    height, width = resized_shape(image.shape[0], image.shape[1], image_size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)
