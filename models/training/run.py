"""What every training run needs: a folder to resume from, a log, a learning rate, averaged weights."""

import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketsam import terminal
from pocketsam.errors import PocketSamError, first_line
from pocketsam.files import make_folder, write_bytes
from pocketsam.models.checkpoint import DEFAULT, DEFAULT_FILE
from pocketsam.models.download import hash_file

STATE_NAME, LOG_NAME = "state.pt", "log.jsonl"


class Run:
    """A training run in a folder.

    Args:
        folder: made if it does not exist.
        recipe: what the run does, as JSON's types; it is saved, and compared when the run resumes.
        may_grow: names of numbers in it that may be larger when the run resumes.

    Raises:
        PocketSamError: the folder cannot be made.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], may_grow: Sequence[str] = ()) -> None:
        make_folder(folder)
        self.folder, self.recipe, self._may_grow = folder, dict(recipe), may_grow
        self._started: tuple[float, int] | None = None

    def resume(self) -> dict[str, Any]:
        """Returns the state that the last ``save`` was given; an empty one in a new folder.

        Raises:
            PocketSamError: the folder holds a run of another recipe, or its state is damaged.
        """
        path = self.folder / STATE_NAME
        if not path.exists():
            return {}
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            before = dict(state["recipe"])
        except (OSError, MemoryError) as error:
            raise PocketSamError(f"{path}: cannot be read: {error}") from None
        except Exception as error:  # zipfile, pickle and torch raise whatever damage makes them raise
            raise PocketSamError(
                f"{path}: damaged ({first_line(error)}); remove it to start from the beginning"
            ) from None
        changed = [name for name in before | self.recipe if before.get(name) != self.recipe.get(name)]
        for name in self._may_grow:
            if name in changed and before[name] < self.recipe[name]:
                changed.remove(name)
        if changed:
            names = ", ".join(f"{name} was {before.get(name)!r}" for name in changed)
            raise PocketSamError(f"{self.folder}: holds a run of another recipe: {names}")
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Saves the state to resume from; the old one stays until the new one is complete.

        Raises:
            PocketSamError: the file cannot be written.
        """
        save_tensors(self.folder / STATE_NAME, {"recipe": self.recipe, **state})

    def log(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to ``log.jsonl``, and prints it to stderr."""
        line = json.dumps(entry)
        terminal.say(line)
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def minutes_left(self, step: int, steps: int) -> float:
        """Returns the minutes until ``steps``, at the pace since the first call."""
        now = time.monotonic()
        started, first = self._started = self._started or (now, step)
        return (now - started) / max(1, step - first) * (steps - step) / 60


def identity_of(start: str | None) -> str | None:
    """Returns what tells a checkpoint to start from from others: the hash of its file, or its name."""
    path = DEFAULT_FILE if start == DEFAULT else Path(start or "")
    return hash_file(path) if start and path.is_file() else start


def has_bfloat16() -> bool:
    """Returns whether this machine computes in bfloat16; others emulate it, slower than float32."""
    if torch.cuda.is_available():
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN, as on Apple Silicon
        return False


def default_compute() -> str:
    """Returns the number format to train in on this machine: ``bf16`` or ``fp32``."""
    return "bf16" if has_bfloat16() else "fp32"


def flush_denormals() -> None:
    """Makes this process compute numbers below 1e-38 as 0.

    Gradients and their squares are full of them, and a CPU computes them up to thirty times slower.
    Threads inherit the setting from the thread that starts them, so call it first.
    """
    torch.set_flush_denormal(True)


def snapshot(step: int, model: nn.Module, average: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Returns the state that ``restore`` needs to go on after ``step`` steps."""
    models = {"model": model.state_dict(), "average": average.state_dict()}
    return {"step": step, "optimizer": optimizer.state_dict(), **models}


def restore(state: Mapping[str, Any], model: nn.Module, average: nn.Module, optimizer: Any) -> int:
    """Loads a ``snapshot``; returns the number of steps done, 0 for an empty state."""
    if not state:
        return 0
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_tensors(path: Path, value: Any) -> None:
    """Writes a file with ``torch.save``, complete or not at all.

    Raises:
        PocketSamError: the file cannot be written; an old file stays.
    """
    buffer = io.BytesIO()  # for OSError: torch.save raises another error where the disk is full
    torch.save(value, buffer)
    write_bytes(path, buffer.getbuffer())


def set_learning_rate(optimizer: Any, value: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Returns a step's learning rate: a linear warm-up, then half a cosine down to a fiftieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Updates the exponential moving average of a network's weights and statistics.

    Args:
        average: changed.
        model: the network after ``step`` steps.
        step: in the first steps, the average reaches back less far.
        decay: share of the old average that is kept, later.
    """
    kept = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value.to(mean), 1 - kept)
        else:
            mean.copy_(value)


def check_finite(value: Tensor, folder: Path, step: int) -> None:
    """Raises PocketSamError if a loss, or the norm of gradients, is NaN or infinite.

    The state saved last is still good.
    """
    if not value.isfinite():
        raise PocketSamError(
            f"{folder}: loss or gradients are {value.item()} at step {step}; the last state is kept"
        )


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """Yields a loader's batches; what went wrong in its process is said without that traceback."""
    try:
        yield from loader
    except PocketSamError as error:
        if "Original Traceback" not in str(error):
            raise
        last = str(error).strip().splitlines()[-1]
        raise PocketSamError(last.partition(": ")[2]) from None
