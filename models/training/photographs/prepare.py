"""Prepares photographs for ``weights``: finds regions and features, collects masks that people drew.

``python -m pocketsam.models.training.photographs.prepare FOLDER... --output PHOTOS``. A folder holds
``images/``, and ``masks/NAME.png`` for photographs that have masks: a label map, 0 is unlabelled, any
other value an object. Objects that overlap those of the first file stand in ``NAME_2.png``, and so on.
Photographs named in ``heldback.txt`` are never trained on, but measured on. A folder without
``images/`` holds photographs itself. After a kill, the same command resumes.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketsam import terminal
from pocketsam.errors import ImageError, PocketSamError, UsageError, first_line
from pocketsam.files import make_folder, write_bytes
from pocketsam.images import list_folder
from pocketsam.models.images import check_images, image_stems, label_maps, load_rgb, load_truth, scaled
from pocketsam.models.training.photographs.photo import TrainingPhoto, load_photo, nest, save_photo
from pocketsam.models.training.photographs.regions import LEVELS, Edges, find_regions

LONGEST = 640
"""Longest side of a prepared photograph in pixels; larger ones are scaled."""
FORMAT = 2
"""Of a prepared photograph's file; 2 has features."""
INDEX_NAME, HELD_BACK_NAME = "photos.json", "heldback.txt"


@dataclass(frozen=True)
class Source:
    """A photograph in a folder.

    Attributes:
        path: of the image.
        label_maps: files of the masks that people drew.
        held_back: is never trained on.
    """

    path: Path
    label_maps: tuple[Path, ...]
    held_back: bool

    @property
    def name(self) -> str:
        """Returns the file's name without its suffix."""
        return self.path.stem

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that the prepared photograph follows from."""
        parts = (self.name, self.held_back, LEVELS, LONGEST, FORMAT)
        digest = hashlib.sha256(repr(parts).encode())
        for path in (self.path, *self.label_maps):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class PhotoSet:
    """Prepared photographs.

    Attributes:
        fingerprint: SHA-256 of the photographs' own.
        photos: to train on.
        held_back: with masks, to measure on.
    """

    fingerprint: str
    photos: list[TrainingPhoto]
    held_back: list[TrainingPhoto]


def find_sources(folders: Sequence[Path]) -> tuple[list[Source], list[str]]:
    """Returns the photographs of all folders, and a line for each file that cannot be used as meant.

    Raises:
        UsageError: two photographs have the same name, or ``heldback.txt`` names none.
        ImageError: a folder is missing or holds no image.
    """
    sources: dict[str, Source] = {}
    notes: list[str] = []
    for folder in folders:
        found, lines = _find_in(folder)
        notes += lines
        for source in found:
            other = sources.setdefault(source.name, source)
            if other is not source:
                raise UsageError(f"{other.path} and {source.path} have the same name")
    return list(sources.values()), notes


def _find_in(folder: Path) -> tuple[list[Source], list[str]]:
    """Returns a folder's photographs and what is wrong with other files."""
    images = folder / "images" if (folder / "images").is_dir() else folder
    if not images.is_dir():
        raise ImageError(f"{images}: no such folder")
    paths, unknown = list_folder(images)
    held_back = _held_back(folder, paths)
    stems = image_stems([images])
    unused = {path.stem for path in (folder / "masks").glob("*.png")}
    good, skipped = check_images(paths)
    notes = [f"left out: {line}" for line in unknown + skipped]
    sources = []
    for path in good:
        mine = tuple(label_maps(folder / "masks", path.stem, stems))
        unused -= {each.stem for each in mine}
        wrong = [message for each in mine if (message := _wrong_with(each, path))]
        if wrong:
            notes.append(f"left out: {path.name}: {wrong[0]}")
            continue
        if (folder / "masks").is_dir() and not mine:
            notes.append(f"no masks, used with its regions alone: {path.name}")
        sources.append(Source(path, mine, path.name in held_back))
    lost = [folder / "masks" / f"{stem}.png" for stem in sorted(unused - stems)]
    return sources, notes + [f"no photograph of this name: {path}" for path in lost]


def _held_back(folder: Path, paths: Sequence[Path]) -> set[str]:
    """Returns the names in ``heldback.txt``; raises UsageError if a name is none of the images'."""
    file = folder / HELD_BACK_NAME
    if not file.exists():
        return set()
    names = set(file.read_text(encoding="utf-8").split())
    unknown = names - {path.name for path in paths}
    if unknown:
        raise UsageError(f"{file}: {', '.join(sorted(unknown))}: no such photograph")
    return names


def _wrong_with(label_map: Path, path: Path) -> str:
    """Returns what is wrong with a label map, or nothing."""
    try:
        load_truth(label_map, path.name, load_rgb(path))
    except ImageError as error:
        return str(error)
    return ""


def prepare_photo(source: Source, edges: Edges) -> TrainingPhoto:
    """Returns a photograph with its masks, and with regions and features if it is trained on."""
    original = load_rgb(source.path)
    image = np.asarray(original)
    if max(original.size) > LONGEST:
        image = scaled(original, LONGEST)
    shape = image.shape[:2]
    layers = [
        _resized(load_truth(path, source.path.name, original), shape) for path in source.label_maps
    ]
    drawn = np.stack(layers) if layers else np.zeros((0, *shape), np.uint16)
    if source.held_back:
        return TrainingPhoto(source.name, image, *nest(np.zeros((1, *shape), np.uint16)), drawn)
    regions, features = find_regions(edges, image)
    return TrainingPhoto(source.name, image, *nest(regions), drawn, features)


def _resized(labels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Returns a label map of another size, with objects numbered from 1."""
    values, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape) + (values[0] != 0)
    picture = Image.fromarray(numbers.astype(np.int32))
    small = picture.resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(small).astype(np.uint16)


_edges: Edges
"""In a worker process: the network that finds edges."""


def _start_worker() -> None:
    """Prepares a worker process."""
    global _edges
    torch.set_num_threads(1)
    edges: Any = Edges().eval()
    _edges = edges.to(memory_format=torch.channels_last)


def _prepare(job: tuple[Source, Path]) -> None:
    """Prepares a photograph in a worker process."""
    source, path = job
    save_photo(path, prepare_photo(source, _edges))


def prepare(folders: Sequence[Path], output: Path, workers: int) -> list[str]:
    """Prepares all photographs of some folders that are not prepared yet.

    Args:
        folders: of photographs.
        output: folder, made if it does not exist; it gets ``photos.json`` when all are ready.
        workers: processes.

    Returns:
        A line for each file that cannot be used as meant.

    Raises:
        UsageError: two photographs have the same name, or ``heldback.txt`` names none.
        ImageError: a folder is missing or holds no image, or no image can be used.
        PocketSamError: a file cannot be written.
    """
    sources, notes = find_sources(folders)
    if not any(not source.held_back for source in sources):
        raise ImageError("no photograph to train on")
    make_folder(output)
    files = {f"{source.name}-{source.fingerprint()[:16]}.npz": source for source in sources}
    missing = [
        (source, output / name) for name, source in files.items() if not (output / name).exists()
    ]
    if missing:
        fork = multiprocessing.get_context("fork")
        with fork.Pool(min(workers, len(missing)), _start_worker) as pool:
            for done, _ in enumerate(pool.imap_unordered(_prepare, missing), start=1):
                terminal.show_progress(f"{done} of {len(missing)} photographs", done == len(missing))
    index = {
        "photos": sorted(name for name, source in files.items() if not source.held_back),
        "held_back": sorted(
            name for name, source in files.items() if source.held_back and source.label_maps
        ),
    }
    write_bytes(output / INDEX_NAME, json.dumps(index, indent=1).encode())
    return notes


def load_photo_set(folder: Path) -> PhotoSet:
    """Returns the photographs that ``prepare`` wrote.

    Raises:
        PocketSamError: the folder holds none, or not all of them.
    """
    try:
        text = (folder / INDEX_NAME).read_text(encoding="utf-8")
        index: dict[str, list[str]] = json.loads(text)
        return PhotoSet(
            hashlib.sha256(text.encode()).hexdigest(),
            [load_photo(folder / name) for name in index["photos"]],
            [load_photo(folder / name) for name in index["held_back"]],
        )
    except FileNotFoundError as error:
        raise PocketSamError(f"{error.filename}: missing; run prepare first") from None
    except (OSError, MemoryError) as error:
        raise PocketSamError(f"{folder}: cannot be read: {error}") from None
    except Exception as error:  # json, zipfile and numpy raise whatever damage makes them raise
        raise PocketSamError(
            f"{folder}: damaged ({first_line(error)}); remove it, and run prepare again"
        ) from None


def _summary(photos: Iterable[TrainingPhoto]) -> str:
    """Returns how many photographs and masks there are, for people."""
    counts = [sum(len(np.unique(layer[layer > 0])) for layer in photo.layers) for photo in photos]
    return f"{len(counts)} photographs, {sum(map(bool, counts))} of them with {sum(counts)} masks"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Prepare photographs to train on.")
    parser.add_argument("folders", type=Path, nargs="+", help="with images/ and masks/, or of images")
    parser.add_argument("--output", type=Path, required=True, help="folder of the prepared photographs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: %(default)s")
    args = parser.parse_args()
    try:
        for line in prepare(args.folders, args.output, args.workers):
            terminal.say(line)
        ready = load_photo_set(args.output)
    except PocketSamError as error:
        parser.exit(1, f"{error}\n")
    print(f"to train on: {_summary(ready.photos)}")
    print(f"held back: {_summary(ready.held_back)}")


if __name__ == "__main__":
    main()
