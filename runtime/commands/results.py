"""Writes the objects that were found as a mask, a picture or JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import UsageError
from pocketsam.files import make_folder, write_file
from pocketsam.runtime.commands.overlay import draw_overlay, label_map
from pocketsam.runtime.everything.generator import MaskRecord
from pocketsam.runtime.prompts import Box, Point
from pocketsam.runtime.rle import from_rle, mask_box, to_rle
from pocketsam.runtime.segmenter import Segmenter

PICTURES = (".jpg", ".jpeg", ".webp")
LAST = "masks.json"
"""The file that ``write_all`` writes last: where it is, all files are."""


@dataclass(frozen=True)
class Found:
    """An object that was prompted: the prompt, the mask ``[H, W]`` and its score (predicted IoU)."""

    points: list[Point]
    boxes: list[Box]
    mask: NDArray[np.bool_]
    score: float

    @property
    def entry(self) -> dict[str, Any]:
        """The object in JSON; as in COCO: RLE, XYWH box, area in pixels."""
        return {
            "segmentation": to_rle(self.mask),
            "bbox": mask_box(self.mask),
            "area": int(self.mask.sum()),
            "predicted_iou": self.score,
            "point_coords": [list(point[:2]) for point in self.points],
            "point_labels": [point[2] for point in self.points],
            "boxes": [list(box) for box in self.boxes],
        }


@dataclass(frozen=True)
class Outlined:
    """A record of ``MaskGenerator.generate``, in COCO's RLE until it is drawn."""

    entry: MaskRecord
    points: Sequence[Point] = ()
    boxes: Sequence[Box] = ()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask ``[H, W]``, decoded."""
        return from_rle(self.entry["segmentation"])


@dataclass(frozen=True)
class Results:
    """What writers need: the image's name and pixels ``[H, W, 3]``, and its objects."""

    name: str
    image: NDArray[np.uint8]
    found: Sequence[Found | Outlined]
    segmenter: Segmenter

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of a JSON file."""
        return {
            "image": self.name,
            "size": list(self.image.shape[:2]),
            **self.about,
            "masks": [item.entry for item in self.found],
        }

    @property
    def about(self) -> dict[str, Any]:
        """The canvas and the checkpoint that the masks come from."""
        return {
            "image_size": self.segmenter.image_size,
            "checkpoint_sha256": self.segmenter.manifest.model.checkpoint_sha256,
        }


@dataclass(frozen=True)
class Dataset(Results):
    """Results whose JSON is a COCO dataset of one image and one category."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of a JSON file."""
        height, width = self.image.shape[:2]
        return {
            "info": self.about,
            "images": [{"id": 1, "file_name": self.name, "width": width, "height": height}],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, **item.entry}
                for number, item in enumerate(self.found, start=1)
            ],
        }


Writer = Callable[[Path, Results], list[Path]]
"""Writes results to a path; returns the files that it wrote."""


def writer_for(path: Path) -> Writer:
    """Returns the writer for a path, by its suffix; a path without suffix is a directory for all.

    Raises:
        UsageError: an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return write_mask
    if suffix == ".json":
        return write_json
    if suffix in PICTURES:
        return write_overlay
    if not suffix or path.is_dir():
        return write_all
    known = ", ".join((".png", ".json", *PICTURES))
    raise UsageError(f"{path}: unknown suffix {suffix!r}; known are {known}")


def write_mask(path: Path, results: Results) -> list[Path]:
    """Writes a label map: an object in black and white, or several as numbers; returns the file."""
    size = (results.image.shape[0], results.image.shape[1])
    picture = label_map((item.mask for item in results.found), len(results.found), size)
    return _write(path, lambda work: picture.save(work))


def write_overlay(path: Path, results: Results) -> list[Path]:
    """Writes the photograph with masks and prompts drawn on it; returns the file."""
    points = [point for item in results.found for point in item.points]
    boxes = [box for item in results.found for box in item.boxes]
    picture = draw_overlay(results.image, (item.mask for item in results.found), points, boxes)
    return _write(path, lambda work: picture.save(work, quality=92))


def write_json(path: Path, results: Results) -> list[Path]:
    """Writes ``record`` as JSON; returns the file."""
    text = json.dumps(results.record, indent=2, ensure_ascii=False)
    return _write(path, lambda work: work.write_text(text + "\n", encoding="utf-8"))


def write_all(path: Path, results: Results) -> list[Path]:
    """Writes mask, picture and JSON into a directory; returns the files."""
    make_folder(path)
    return [
        *write_mask(path / "mask.png", results),
        *write_overlay(path / "overlay.png", results),
        *write_json(path / LAST, results),
    ]


def _write(path: Path, write: Callable[[Path], object]) -> list[Path]:
    write_file(path, write)
    return [path]
