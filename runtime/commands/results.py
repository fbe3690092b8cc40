"""Writes the objects that were found as a mask, a picture or JSON."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import PocketSamError, UsageError
from pocketsam.files import make_folder, write_files
from pocketsam.images import Pixels
from pocketsam.runtime.embedding import hash_pixels
from pocketsam.runtime.everything.coco import CATEGORIES, annotations_of
from pocketsam.runtime.everything.generator import MaskRecord
from pocketsam.runtime.manifest import Manifest
from pocketsam.runtime.overlay import MOST_NUMBERED, draw_overlay, label_map
from pocketsam.runtime.prompts import Box, Point
from pocketsam.runtime.rle import from_rle, mask_box, to_rle

PICTURES = (".jpg", ".jpeg", ".webp")
SIDES = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels of the longest side that a format holds."""
LAST = "masks.json"
"""The file that ``write_all`` writes last: where it is, all files are."""
ALL_NAMES = (LAST, "mask.png", "overlay.jpg", "overlay.png")
"""The files that ``write_all`` may write."""


@dataclass(frozen=True)
class Found:
    """An object that was prompted: the prompt, the mask in COCO's RLE, its score (predicted IoU).

    A mask of a large picture takes megabytes, encoded some kilobytes, so it is decoded to be drawn.
    """

    points: list[Point]
    boxes: list[Box]
    segmentation: dict[str, Any]
    bbox: list[int]
    area: int
    score: float

    @classmethod
    def encoded(
        cls, points: list[Point], boxes: list[Box], mask: NDArray[np.bool_], score: float
    ) -> "Found":
        """Returns the object of a mask ``[H, W]``."""
        return cls(points, boxes, to_rle(mask), mask_box(mask), int(mask.sum()), score)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask ``[H, W]``, decoded."""
        return from_rle(self.segmentation)

    @property
    def place(self) -> None:
        """No number is drawn: the prompt shows which object is meant."""

    @property
    def entry(self) -> dict[str, Any]:
        """The object in JSON; as in COCO: RLE, XYWH box, area in pixels."""
        return {
            "segmentation": self.segmentation,
            "bbox": self.bbox,
            "area": self.area,
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
    def place(self) -> tuple[float, float]:
        """Where the object's number is written: the click that found it, in pixels."""
        x, y = self.entry["point_coords"][0]
        return x, y

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask ``[H, W]``, decoded."""
        return from_rle(self.entry["segmentation"])


@dataclass(frozen=True)
class Results:
    """What writers need: the image's name, its pixels ``[H, W, 3]``, its objects, the manifest."""

    name: str
    image: NDArray[np.uint8]
    found: Sequence[Found | Outlined]
    manifest: Manifest

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
            "image_size": self.manifest.image_size,
            "checkpoint_sha256": self.manifest.model.checkpoint_sha256,
        }


@dataclass(frozen=True)
class Dataset(Results):
    """Results whose JSON is a COCO dataset of one image and one category.

    Attributes:
        parameters: what the search was asked for, for the dataset's ``info``; ``polygons``: whether
            segmentations are polygons.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of a JSON file; masks without a pixel are left out."""
        height, width = self.image.shape[:2]
        return {
            "info": self.info(self.image, self.manifest, self.parameters),
            "images": [{"id": 1, "file_name": self.name, "width": width, "height": height}],
            "categories": CATEGORIES,
            "annotations": annotations_of(
                (item.entry for item in self.found), polygons=bool(self.parameters.get("polygons"))
            ),
        }

    @staticmethod
    def info(image: Pixels, manifest: Manifest, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns all that a dataset follows from: the same info means the same masks."""
        return {
            "image_size": manifest.image_size,
            "checkpoint_sha256": manifest.model.checkpoint_sha256,
            "encoder_sha256": manifest.encoder.sha256,
            "decoder_sha256": manifest.decoder.sha256,
            "image_sha256": hash_pixels(image),
            "parameters": dict(parameters),
        }


Writer = Callable[[Path, Results], list[Path]]
"""Writes results to a path; returns the files that it wrote."""


def plan_outputs(names: Sequence[str], image: str, *others: str) -> list[tuple[Path, Writer]]:
    """Returns the paths to write and their writers, before any work is done.

    Args:
        names: what ``--output`` said.
        image: path of the image, which no output may replace.
        others: paths of further files that are read.

    Raises:
        UsageError: an unknown suffix, or a path that nothing should be written to.
        PocketSamError: a path that nothing can be written to.
    """
    planned = []
    for name in names:
        if name in ("", "-"):
            raise UsageError(f"--output {name!r}: name a file or a folder")
        path = Path(name)
        planned.append((path, write_all if name.endswith(("/", os.sep)) else writer_for(path)))
        is_folder = planned[-1][1] is write_all
        for file in [path / name for name in ALL_NAMES] if is_folder else [path]:
            for read in (image, *others):
                if file.exists() and Path(read).exists() and file.samefile(read):
                    what = "the image" if read == image else "read by this command"
                    raise UsageError(f"{file}: is {what}; choose another --output")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if is_folder and path.exists():
            parent = path
        if not parent.is_dir():
            raise UsageError(f"{path}: {parent} is a file, not a directory")
        if not is_folder and parent != path.absolute().parent:
            raise PocketSamError(f"{path}: there is no directory {path.parent}")
        if not os.access(parent, os.W_OK):
            raise PocketSamError(f"{path}: {parent} may not be written to")
        if path.is_dir() and path.suffix.lower() in (".png", ".json", *PICTURES):
            raise UsageError(f"{path}: is a directory")
    return planned


def check_sides(planned: Sequence[tuple[Path, Writer]], image: Pixels) -> None:
    """Raises UsageError if a format cannot hold a picture of an image's size."""
    side = max(image.shape[:2])
    for path, _ in planned:
        limit = SIDES.get(path.suffix.lower(), side)
        if side > limit:
            raise UsageError(f"{path}: {path.suffix} holds sides of at most {limit} pixels, not {side}")


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
    raise UsageError(f"{path}: unknown suffix {suffix!r}; known are {known}; a folder ends in /")


def write_mask(path: Path, results: Results) -> list[Path]:
    """Writes a label map: an object in black and white, or several as numbers; returns the file."""
    return _write([(path, partial(_save_mask, results))])


def write_overlay(path: Path, results: Results) -> list[Path]:
    """Writes the photograph with masks and prompts drawn on it; returns the file."""
    return _write([(path, partial(_save_overlay, results))])


def write_json(path: Path, results: Results) -> list[Path]:
    """Writes ``record`` as JSON; returns the file."""
    return _write([(path, partial(_save_json, results))])


def write_all(path: Path, results: Results) -> list[Path]:
    """Writes mask, picture and JSON into a directory, all or none; returns the files."""
    make_folder(path)
    jobs = [  # the JSON takes its place last
        (path / LAST, partial(_save_json, results)),
        (path / overlay_name(results.image), partial(_save_overlay, results)),
        (path / "mask.png", partial(_save_mask, results)),
    ]
    return _write(jobs)[::-1]


def overlay_name(image: Pixels) -> str:
    """Returns the name of the picture in a directory: a JPEG, unless the image is too large for one."""
    return "overlay.jpg" if max(image.shape[:2]) <= SIDES[".jpg"] else "overlay.png"


def _save_mask(results: Results, work: Path) -> None:
    size = (results.image.shape[0], results.image.shape[1])
    label_map((item.mask for item in results.found), len(results.found), size).save(work)


def _save_overlay(results: Results, work: Path) -> None:
    points = [point for item in results.found for point in item.points]
    boxes = [box for item in results.found for box in item.boxes]
    numbers = [place for item in results.found if (place := item.place)]
    masks = (item.mask for item in results.found)
    shown = numbers if len(numbers) <= MOST_NUMBERED else []
    draw_overlay(results.image, masks, points, boxes, shown).save(work, quality=92)


def _save_json(results: Results, work: Path) -> None:
    text = json.dumps(results.record, indent=2, ensure_ascii=False)
    # the bytes of a file name that is no UTF-8 become JSON's own \udcXX
    work.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _write(jobs: Sequence[tuple[Path, Callable[[Path], object]]]) -> list[Path]:
    write_files(jobs)
    return [path for path, _ in jobs]
