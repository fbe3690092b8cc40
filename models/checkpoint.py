"""Loads checkpoints: a file, strictly checked, becomes a network in eval mode."""

import hashlib
import io
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pocketsam.errors import CheckpointError
from pocketsam.files import write_bytes
from pocketsam.models.sam import Sam, architecture_of, build, seeded
from pocketsam.thresholds import Thresholds

SEEDED = "seeded"
"""In place of a path: untrained weights of seed 0. ``seeded:7`` means seed 7."""

DEFAULT = "default"
"""In place of a path: the trained weights in this package; see ``MODEL_CARD.md``."""
DEFAULT_FILE = Path(__file__).parent / "mobile_sam_512.safetensors"
DEFAULT_IMAGE_SIZE = 512
"""Side of the canvas, in pixels, that ``default`` was trained at."""


@dataclass(frozen=True)
class Settings:
    """What a checkpoint works best with; a ``.safetensors`` file may say it in its metadata.

    Attributes:
        image_size: side of the canvas, in pixels, that it was trained at.
        thresholds: of ``everything``.
    """

    image_size: int = 1024
    thresholds: Thresholds = field(default_factory=Thresholds)

    def to_metadata(self) -> dict[str, str]:
        """Returns the metadata that ``read_settings`` understands."""
        values = {"image_size": self.image_size, **vars(self.thresholds)}
        return {key: str(value) for key, value in values.items()}


def read_settings(source: str | os.PathLike[str]) -> Settings:
    """Returns what a checkpoint works best with: SAM's values unless its file says others.

    Args:
        source: as for ``load_model``; only the head of a file is read.

    Raises:
        CheckpointError: a ``.safetensors`` file cannot be read, or its metadata makes no sense.
    """
    path = _path_of(source)
    if path.suffix.lower() != ".safetensors":
        return Settings()
    try:
        path.open("rb").close()  # its errors say more than the library's
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    thresholds = {name: metadata.get(name, value) for name, value in vars(Thresholds()).items()}
    try:
        return Settings(
            int(metadata.get("image_size", Settings.image_size)),
            Thresholds(**{name: float(value) for name, value in thresholds.items()}),
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata makes no sense: {error}") from None


def _path_of(source: str | os.PathLike[str]) -> Path:
    """Returns the path of a checkpoint's file; raises CheckpointError where ``default`` has none."""
    if os.fspath(source) != DEFAULT:
        return Path(source)
    if not DEFAULT_FILE.exists():
        raise CheckpointError(
            f"`{DEFAULT}` is models/{DEFAULT_FILE.name} of a clone of pocketsam, and an installed "
            "package carries only a bundle made from it, which needs no export; give the file's path"
        )
    return DEFAULT_FILE


def default_image_size(source: str | os.PathLike[str]) -> int:
    """Returns the canvas, in pixels, to use a checkpoint at; see ``read_settings``."""
    return read_settings(source).image_size


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
    """

    model: Sam
    architecture: str
    name: str
    sha256: str
    trained: bool
    settings: Settings = field(default_factory=Settings)


def load_model(source: str | os.PathLike[str], image_size: int = 1024) -> Loaded:
    """Returns the network that a checkpoint holds: MobileSAM, SAM, or this project's teacher.

    Args:
        source: a ``.pt``/``.pth`` or ``.safetensors`` file with the official key names; ``default``,
            the weights in this package; or ``seeded``, ``seeded:N``. Weights in float16 become float32.
        image_size: side of the canvas in pixels, a multiple of 64.

    Raises:
        CheckpointError: the file is missing, unreadable, or could run code; its keys or shapes do not
            fit the network, or it holds NaN.
        ValueError: ``image_size`` is not a positive multiple of 64.
    """
    name = os.fspath(source)
    if name == SEEDED or name.startswith(f"{SEEDED}:"):
        return _load_seeded(name, image_size)
    settings = read_settings(name)
    name = str(_path_of(name))
    state, digest = _read(name)
    architecture = architecture_of(state)
    model = build(architecture, image_size)
    _check_state(f"{name}: does not fit {architecture}", state, model.state_dict())
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})
    return Loaded(model.eval(), architecture, Path(name).name, digest, True, settings)


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


def _read(name: str) -> tuple[dict[str, Tensor], str]:
    """Returns a file's state dict and sha256, both of the bytes of a single read.

    A file that is replaced meanwhile cannot give the weights of one and the hash of the other.
    """
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from None
    return _parse(name, data), hashlib.sha256(data).hexdigest()


def _unreadable(name: str | Path, error: OSError | SafetensorError) -> CheckpointError:
    """Returns the error for a file that cannot be read, or not as safetensors."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return CheckpointError(f"{name}: {reason}")
    return CheckpointError(f"{name}: damaged safetensors file: {error}")


def _parse(name: str, data: bytes) -> dict[str, Tensor]:
    """Returns the state dict in a file's bytes."""
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".safetensors":
            return load_safetensors(data)
        if suffix in (".pt", ".pth"):
            return _parse_torch(name, data)
    except SafetensorError as error:
        raise _unreadable(name, error) from None
    raise CheckpointError(f"{name}: unknown suffix {suffix!r}; known are .pt, .pth, .safetensors")


def _parse_torch(name: str, data: bytes) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old pickles, then refuses them
            state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors, and loading it could run code"
        if "Weights only load failed" not in str(error):
            reason = str(error).splitlines()[0]
        raise CheckpointError(f"{name}: refused: {reason}") from None
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: not a torch checkpoint, or truncated: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise CheckpointError(f"{name}: not a flat dictionary of tensors by name")
    return state


def _check_state(message: str, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raises one CheckpointError that lists every missing, unexpected, misshapen or non-finite key."""
    problems = [f"missing: {key}" for key in wanted if key not in state]
    problems += [f"unexpected: {key}" for key in state if key not in wanted]
    for key in wanted.keys() & state.keys():
        found, want = state[key], wanted[key]
        if found.shape != want.shape:
            problems.append(f"shape of {key}: {list(found.shape)}, not {list(want.shape)}")
        elif not found.isfinite().all():
            problems.append(f"NaN or infinity in {key}")
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise CheckpointError(f"{message} ({len(problems)} keys):\n  {listed}")
