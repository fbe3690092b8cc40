"""The images that a network is evaluated on, with their true masks where those are known."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import ImageError
from pocketsam.models.images import image_stems, label_maps, load_rgb, load_truth, scaled
from pocketsam.models.prompted import Masks
from pocketsam.models.training.answers import object_masks
from pocketsam.models.training.scenes import MIN_AREA
from pocketsam.models.training.validation import held_out_scenes


@dataclass(frozen=True)
class Example:
    """An image with its true masks.

    Attributes:
        name: of the file or scene.
        pixels: ``[h, w, 3]`` uint8 RGB; the longest side is the canvas.
        truth: ``[N, h, w]``; N is 0 where the true masks are unknown.
    """

    name: str
    pixels: NDArray[np.uint8]
    truth: Masks


def scene_examples(count: int, size: int) -> Iterator[Example]:
    """Yields generated scenes that are never trained on; see ``validation.held_out_scenes``."""
    for number, scene in enumerate(held_out_scenes(count, size)):
        yield Example(f"scene {number}", scene.image, scene.masks)


def folder_examples(
    paths: Iterable[Path], truth: Path | None, size: int, skipped: list[str]
) -> Iterator[Example]:
    """Yields image files, with the label maps of a folder as truth.

    Args:
        paths: images that can be read.
        truth: folder of label maps, ``STEM.png`` of the image's size: 0 is no object, any other value
            is an object; ``STEM_2.png`` and so on hold objects that overlap those. None: the true masks
            are unknown.
        size: side of the canvas in pixels.
        skipped: gets a line for each image that has no usable label map.
    """
    paths = list(paths)
    stems = image_stems({path.parent for path in paths})
    for path in paths:
        image = load_rgb(path)
        pixels = scaled(image, size)
        masks = np.zeros((0, *pixels.shape[:2]), bool)
        if truth is not None:
            label_map = truth / f"{path.stem}.png"
            try:
                maps = list(label_maps(truth, path.stem, stems)) or [label_map]
                layers = [load_truth(layer, path.name, image) for layer in maps]
                masks = np.concatenate([object_masks(x, pixels.shape[:2]) for x in layers])
            except ImageError as error:
                skipped.append(str(error))
                continue
            if not len(masks):
                skipped.append(f"{label_map}: no object covers {MIN_AREA:.2%} of the image")
                continue
        yield Example(path.name, pixels, masks)
