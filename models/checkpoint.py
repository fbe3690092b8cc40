"""Loads checkpoints: a file, strictly checked, becomes a network in eval mode."""

import hashlib
import io
import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pocketsam.errors import CheckpointError
from pocketsam.models.sam import Sam, architecture_of, build, seeded

SEEDED = "seeded"
"""In place of a path: untrained weights of seed 0. ``seeded:7`` means seed 7."""

DEFAULT = "default"
"""In place of a path: the trained weights in this package; see ``MODEL_CARD.md``."""
DEFAULT_FILE = Path(__file__).parent / "mobile_sam_512.safetensors"
DEFAULT_IMAGE_SIZE = 512
"""Side of the canvas, in pixels, that ``default`` was trained at."""


def default_image_size(source: str) -> int:
    """Returns the canvas, in pixels, to use a checkpoint at: 512 for ``default``, else SAM's 1024."""
    return DEFAULT_IMAGE_SIZE if source == DEFAULT else 1024


@dataclass(frozen=True)
class Loaded:
    """A network and where its weights came from.

    Attributes:
        model: the network in eval mode, float32, on the CPU.
        architecture: a key of ``sam.ARCHITECTURES``.
        name: the name of the file, without its folder; or ``seeded:N``.
        sha256: of the file, in hexadecimal digits; for seeded weights, of the tensors.
        trained: False for seeded weights.
    """

    model: Sam
    architecture: str
    name: str
    sha256: str
    trained: bool


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
    if name == DEFAULT:
        name = str(DEFAULT_FILE)
    state, digest = _read(name)
    architecture = architecture_of(state)
    model = build(architecture, image_size)
    _check_state(f"{name}: does not fit {architecture}", state, model.state_dict())
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})
    return Loaded(model.eval(), architecture, Path(name).name, digest, trained=True)


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
        raise CheckpointError(f"{name}: {error.strerror}") from None
    return _parse(name, data), hashlib.sha256(data).hexdigest()


def _parse(name: str, data: bytes) -> dict[str, Tensor]:
    """Returns the state dict in a file's bytes."""
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".safetensors":
            return load_safetensors(data)
        if suffix in (".pt", ".pth"):
            return _parse_torch(name, data)
    except SafetensorError as error:
        raise CheckpointError(f"{name}: damaged safetensors file: {error}") from None
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
