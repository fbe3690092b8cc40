"""Loads checkpoints: a file, strictly checked, becomes a network in eval mode."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pocketsam.archives import describe_stranger, is_torch_archive
from pocketsam.errors import CheckpointError
from pocketsam.files import write_bytes
from pocketsam.images import StrPath
from pocketsam.models.download import CHECKPOINTS, cached
from pocketsam.models.image_encoder_vit import PATCH
from pocketsam.models.sam import (
    POSITIONS,
    STEM,
    TRAITS,
    Sam,
    architecture_of,
    build,
    fit,
    grid_of,
    seeded,
)
from pocketsam.models.unwrap import read_torch, unwrap
from pocketsam.reading import read_regular, regular_size
from pocketsam.thresholds import Thresholds
from pocketsam.traits import Traits

Say = Callable[[str], object]
SEEDED = "seeded"
"""In place of a path: untrained weights of seed 0. ``seeded:7`` means seed 7."""

DEFAULT = "default"
"""In place of a path: the trained weights in this package; see ``MODEL_CARD.md``."""
DEFAULT_FILE = Path(__file__).parent / "mobile_sam_512.safetensors"
DEFAULT_IMAGE_SIZE = 512
"""Side of the canvas, in pixels, that ``default`` was trained at."""

TORCH_SUFFIXES = ".pt", ".pth", ".ckpt", ".bin"
LARGEST = 16 << 30
"""Bytes of the largest file that is read: SAM ViT-H with its optimizer's state."""


@dataclass(frozen=True)
class Settings:
    """What a checkpoint works best with; a ``.safetensors`` file may say it in its metadata.

    Attributes:
        image_size: side of the canvas, in pixels, that it was trained at.
        thresholds: of ``everything``.
        is_known: whether the file says its canvas; otherwise it is SAM's.
    """

    image_size: int = 1024
    thresholds: Thresholds = field(default_factory=Thresholds)
    is_known: bool = field(default=False, compare=False)

    def to_metadata(self) -> dict[str, str]:
        """Returns the metadata that ``read_settings`` understands."""
        values = {"image_size": self.image_size, **vars(self.thresholds)}
        return {key: str(value) for key, value in values.items()}


def read_settings(source: StrPath) -> Settings:
    """Returns what a checkpoint works best with: SAM's values unless its file says others.

    A ``.safetensors`` file may say it in its metadata. The position tables of SAM's own encoders have
    the size of the canvas that they were trained at, whatever the format.

    Args:
        source: as for ``load_model``; an official checkpoint is downloaded if it is not there.

    Raises:
        CheckpointError: the file cannot be read, or its metadata makes no sense.
        DownloadError: an official checkpoint cannot be had.
    """
    if _is_seeded(os.fspath(source)):
        return Settings()
    path = _path_of(source)
    _check_kind(path)
    if path.suffix.lower() in TORCH_SUFFIXES:
        found = unwrap(str(path), _map_torch(path))
        return _settings_of({key: tensor.shape for key, tensor in found.state.items()})
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            shapes = {
                name: file.get_slice(key).get_shape()
                for name in (POSITIONS, STEM)
                for key in file.keys()  # noqa: SIM118
                if key.endswith(name.removeprefix("image"))  # transformers says vision_encoder
            }
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    usual = _settings_of(shapes)
    thresholds = {name: metadata.get(name, value) for name, value in vars(Thresholds()).items()}
    try:
        size = int(metadata.get("image_size", usual.image_size))
        limits = Thresholds(**{name: float(value) for name, value in thresholds.items()})
        return Settings(size, limits, is_known=usual.is_known or "image_size" in metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata makes no sense: {error}") from None


def _settings_of(shapes: Mapping[str, Sequence[int]]) -> Settings:
    """Returns what a network says by the shapes of its tensors, by name: SAM's own by its tables."""
    grid, traits = grid_of(shapes.get(POSITIONS)), TRAITS.get(architecture_of(shapes))
    if grid is None:
        return Settings() if traits is None else Settings(traits.image_size, is_known=True)
    return Settings(image_size=-(-grid * PATCH // 64) * 64, is_known=True)


def _is_seeded(name: str) -> bool:
    return name == SEEDED or name.startswith(f"{SEEDED}:")


def _path_of(source: StrPath) -> Path:
    """Returns the path of a checkpoint's file; an official one is downloaded if it is not there.

    Raises:
        CheckpointError: ``default`` has no file here.
        DownloadError: an official checkpoint cannot be had.
    """
    name = os.fspath(source)
    if name in CHECKPOINTS:
        return cached(name)
    if name != DEFAULT:
        return Path(name)
    if not DEFAULT_FILE.exists():
        raise CheckpointError(
            f"`{DEFAULT}` is models/{DEFAULT_FILE.name} of a clone of pocketsam, and an installed "
            "package carries only a bundle made from it, which needs no export; give the file's path"
        )
    return DEFAULT_FILE


def default_image_size(source: StrPath) -> int:
    """Returns a checkpoint's canvas in pixels; raises CheckpointError for one that no network has."""
    size = read_settings(source).image_size
    if size < 64 or size % 64:
        raise CheckpointError(f"{source}: is for a canvas of {size} pixels; give a multiple of 64")
    return size


@dataclass(frozen=True)
class Loaded:
    """A network and where its weights came from.

    Attributes:
        model: the network in eval mode, float32, on the CPU.
        architecture: a key of ``sam.ARCHITECTURES``.
        name: the name of the file, without its folder; or ``seeded:N``.
        sha256: of the file, in hexadecimal digits; for seeded weights, of the tensors.
        trained: False for seeded weights.
        settings: what it works best with.
        note: what was unwrapped, renamed and ignored, in one line; "" for nothing.
    """

    model: Sam
    architecture: str
    name: str
    sha256: str
    trained: bool
    settings: Settings = field(default_factory=Settings)
    note: str = ""


def load_model(source: StrPath, image_size: int = 1024, say: Say = lambda _: None) -> Loaded:
    """Returns the network that a checkpoint holds: MobileSAM, SAM, or this project's teacher.

    Args:
        source: a ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.safetensors`` file, which may also be a
            training state (see ``unwrap``); ``default``, the weights in this package; ``seeded``,
            ``seeded:N``; or a name in ``download.CHECKPOINTS``, which is downloaded once. Weights of
            other floating-point types become float32.
        image_size: side of the canvas in pixels, a multiple of 64.
        say: called with ``Loaded.note``, if there is one.

    Raises:
        CheckpointError: the file is missing, unreadable, or could run code; its keys, shapes or types
            do not fit the network, or it holds NaN.
        DownloadError: an official checkpoint cannot be had.
        ValueError: ``image_size`` is not a positive multiple of 64.
    """
    name = os.fspath(source)
    if _is_seeded(name):
        return _load_seeded(name, image_size)
    settings = read_settings(name)
    path = _path_of(name)
    content, digest = _read(path)
    found = unwrap(str(path), content)
    shapes = {key: tensor.shape for key, tensor in found.state.items()}
    architecture, grid = architecture_of(shapes), grid_of(shapes.get(POSITIONS))
    largest = TRAITS.get(architecture, Traits()).largest_image_size
    if image_size > largest:
        raise CheckpointError(f"{path}: its canvas is at most {largest} pixels, not {image_size}")
    is_large = POSITIONS in shapes  # then no memory is taken before the shapes are known to fit
    with torch.device("meta" if is_large else "cpu"):
        model = build(architecture, image_size, grid)
    message = f"{path}: does not fit {architecture}"
    state, note = fit(message, found.state, model.state_dict(), found.extra)
    if is_large:
        model = build(architecture, image_size, grid)
    model.load_state_dict(model.state_dict() | state)
    note = "; ".join(line for line in (found.note, note) if line)
    if note:
        say(f"{path.name}: {note}")
    return Loaded(model.eval(), architecture, path.name, digest, True, settings, note)


def save_checkpoint(path: Path, state: Mapping[str, Tensor], settings: Settings) -> None:
    """Writes a ``.safetensors`` file with float16 weights, and settings in its metadata.

    Args:
        path: of the file; one that is there gives way when the new one is complete.
        state: a network's ``state_dict``.
        settings: what the checkpoint works best with.

    Raises:
        PocketSamError: the file cannot be written.
    """
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    tensors = {key: value.contiguous().cpu() for key, value in halves.items()}
    write_bytes(path, save_safetensors(tensors, settings.to_metadata()))


def _load_seeded(name: str, image_size: int) -> Loaded:
    number = name.removeprefix(SEEDED).removeprefix(":") or "0"
    if not number.isdecimal():
        raise CheckpointError(f"{name}: the seed must be a whole number, as in {SEEDED}:7")
    model = seeded(image_size, int(number))
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    return Loaded(model, "mobile_sam", f"{SEEDED}:{number}", digest.hexdigest(), trained=False)


def _read(path: Path) -> tuple[Any, str]:
    """Returns what a file holds and its sha256, both of the bytes of a single read.

    A file that is replaced meanwhile cannot give the weights of one and the hash of the other.
    """
    suffix = path.suffix.lower()
    try:
        data = read_regular(path, LARGEST)
        if suffix == ".safetensors":
            content = load_safetensors(data)
        else:
            is_torch_archive(str(path), io.BytesIO(data))
            content = read_torch(str(path), io.BytesIO(data))
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    return content, hashlib.sha256(data).hexdigest()


def _check_kind(path: Path) -> None:
    """Raises CheckpointError for anything but a regular file with a suffix that is known."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: a folder; name the file with the weights in it")
        regular_size(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    known = (*TORCH_SUFFIXES, ".safetensors")
    if path.suffix.lower() not in known:
        raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(known)}")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Returns the error for a file that cannot be read, or not as safetensors."""
    if isinstance(error, SafetensorError):
        with path.open("rb") as file:
            what = describe_stranger(file.read(512))
        why = f"no safetensors file, but {what}" if what else f"damaged safetensors file: {error}"
        return CheckpointError(f"{path}: {why}")
    reason = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError) and not path.suffix:
        reason = f"{reason}, and not one of the names {', '.join((DEFAULT, SEEDED, *CHECKPOINTS))}"
    return CheckpointError(f"{str(path).replace(chr(0), '?')}: {reason or error}")


def _map_torch(path: Path) -> Any:
    """Returns what a torch file holds; of the usual format, only what is looked at is read."""
    try:
        with path.open("rb") as file:
            mappable = is_torch_archive(str(path), file)
        return read_torch(str(path), str(path)) if mappable else _read(path)[0]
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
