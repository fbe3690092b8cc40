"""Reads folders of images for training and evaluation, and turns images into the network's input."""

import itertools
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pocketsam.constants import resized_shape
from pocketsam.errors import ImageError, UsageError
from pocketsam.images import IMAGE_SUFFIXES, list_folder, load_image
from pocketsam.traits import SAM_PIXELS, Normalisation

SMALLEST_SIDE = 16
"""In pixels: one cell of the embedding. An image with a shorter side is refused."""


def check_folder(folder: Path, outputs: Sequence[Path] = ()) -> tuple[list[Path], list[str]]:
    """Returns the images below a folder that can be used, and says why others cannot.

    Args:
        folder: of images.
        outputs: folders that are written; what lies in them is left out.

    Returns:
        As ``check_images``; images that Pillow cannot read by their suffix are among the skipped.

    Raises:
        ImageError: the folder is missing, or holds no image file.
        UsageError: it is one of the outputs.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    whole = folder.resolve()
    written = {path.resolve() for path in outputs if whole in (path.resolve(), *path.resolve().parents)}
    if whole in written:
        raise UsageError(f"{folder}: holds the images; write to another folder")
    found, unknown = list_folder(folder, deep=True)
    found = [path for path in found if written.isdisjoint(path.resolve().parents)]
    good, skipped = check_images(found)
    return good, unknown + skipped


def check_images(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Returns the images that can be used, and says why others cannot.

    Returns:
        (good, skipped): the paths of images that can be read and are large enough, and for every other
        image a line that names it and says why.
    """
    good, skipped = [], []
    for path in paths:
        try:
            height, width, _ = load_image(path).shape
            if min(height, width) < SMALLEST_SIDE:
                raise ImageError(f"{path}: {width}x{height} pixels; each side needs {SMALLEST_SIDE}")
            good.append(path)
        except ImageError as error:
            skipped.append(str(error))
    return good, skipped


def load_rgb(path: Path) -> Image.Image:
    """Returns an image file as RGB, as the runtime's ``load_image`` reads it.

    Raises:
        ImageError: the file cannot be read.
    """
    return Image.fromarray(load_image(path))


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


def image_stems(folders: Iterable[Path]) -> set[str]:
    """Returns the names, without their suffixes, of all images in folders, also of unreadable ones."""
    files = (path for folder in folders for path in folder.iterdir())
    return {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}


def label_maps(folder: Path, stem: str, stems: Collection[str]) -> Iterator[Path]:
    """Yields the label maps of an image: ``STEM.png``, then ``STEM_2.png`` and so on, if they exist.

    Args:
        folder: of label maps.
        stem: the image's name without its suffix.
        stems: of all images; where ``STEM_2`` is another one, so are its maps.
    """
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    for name in names:
        path = folder / f"{name}.png"
        if not path.exists() or (name != stem and name in stems):
            return
        yield path


def load_truth(path: Path, name: str, image: Image.Image) -> NDArray[np.int64]:
    """Returns a label map ``[H, W]``: the number of the object at each pixel, 0 for no object.

    Args:
        path: the label map, an image file of one channel.
        name: of the image, for error messages.
        image: the image, which has the same size.

    Raises:
        ImageError: the file is missing or unreadable, is no label map, or has another size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                labels = np.array(opened)
    except Exception as error:  # Pillow's plugins raise whatever damage makes their format raise
        raise ImageError(f"{path}: cannot be read: {error}") from None
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ImageError(f"{path}: a label map has one channel of whole numbers")
    if labels.shape != image.size[::-1]:
        sizes = f"{labels.shape[1]}x{labels.shape[0]}, and {name} {image.width}x{image.height}"
        raise ImageError(f"{path}: {sizes}")
    return labels.astype(np.int64)


def to_pixel_values(
    pixels: NDArray[np.uint8], image_size: int, normalisation: Normalisation = SAM_PIXELS
) -> Tensor:
    """Returns ``pixel_values [3, S, S]`` float32: normalised, zeros on the right and below.

    Args:
        pixels: ``[h, w, 3]`` RGB in 0..255, neither side longer than S.
        image_size: S, the side of the canvas in pixels.
        normalisation: the network's.
    """
    values = normalise(torch.tensor(pixels).permute(2, 0, 1), normalisation)
    height, width = pixels.shape[:2]
    return F.pad(values, (0, image_size - width, 0, image_size - height))


def normalise(images: Tensor, normalisation: Normalisation = SAM_PIXELS) -> Tensor:
    """Returns float32 ``pixel_values`` of the same shape: zero mean and unit deviation per channel.

    Args:
        images: ``[..., 3, H, W]`` RGB in 0..255, of any dtype; a single one to stretch.
        normalisation: the network's.
    """
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1)
        for values in normalisation.statistics(images)
    )
    return (images.float() - mean) / std
