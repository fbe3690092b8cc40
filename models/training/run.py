"""What every training run needs: a folder that survives a kill, a schedule, averaged weights, a log."""

import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketsam.errors import PocketSamError

STATE_NAME, LOG_NAME = "state.pt", "log.jsonl"


def has_bfloat16() -> bool:
    """Whether this machine computes in bfloat16; elsewhere it is emulated, slower than float32."""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def usual_precision() -> str:
    """lightning-fabric's name of the precision to train in on this machine."""
    return "bf16-mixed" if has_bfloat16() else "32-true"


class Run:
    """A training run in a folder.

    Args:
        folder: made if it is not there.
        recipe: what the run does; a folder that holds another recipe's run is refused.

    Raises:
        PocketSamError: the folder cannot be made.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PocketSamError(f"{folder}: {error.strerror}") from None
        self.folder, self.recipe = folder, dict(recipe)
        self._started: tuple[float, int] | None = None

    def resume(self) -> dict[str, Any]:
        """What the last ``save`` was given; empty in a new folder.

        Raises:
            PocketSamError: the folder holds another recipe's run.
        """
        path = self.folder / STATE_NAME
        if not path.exists():
            return {}
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["recipe"] != self.recipe:
            raise PocketSamError(f"{self.folder}: holds a run of another recipe, {state['recipe']}")
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Keeps the state to resume from; the old one stays until the new one is whole.

        Raises:
            PocketSamError: the disk takes no more.
        """
        write_whole(self.folder / STATE_NAME, {"recipe": self.recipe, **state})

    def log(self, entry: dict[str, Any]) -> None:
        """Adds a line to ``log.jsonl`` and prints it."""
        line = json.dumps(entry)
        print(line, flush=True)
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def minutes_left(self, step: int, steps: int) -> float:
        """By the pace since the first call."""
        now = time.monotonic()
        started, first = self._started = self._started or (now, step)
        return (now - started) / max(1, step - first) * (steps - step) / 60


def flush_denormals() -> None:
    """Numbers below 1e-38 become 0 in this process: a CPU computes them up to thirty times slower, and
    gradients and their squares are full of them. Threads inherit it, so call it before any start.
    """
    torch.set_flush_denormal(True)


def snapshot(step: int, model: nn.Module, average: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What ``restore`` needs to go on after ``step``."""
    models = {"model": model.state_dict(), "average": average.state_dict()}
    return {"step": step, "optimizer": optimizer.state_dict(), **models}


def restore(state: Mapping[str, Any], model: nn.Module, average: nn.Module, optimizer: Any) -> int:
    """Puts back what ``snapshot`` took, if there is anything; returns the step."""
    if not state:
        return 0
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def half(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with its floating-point tensors in float16."""
    return {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}


def write_whole(path: Path, value: Any) -> None:
    """``torch.save``, by way of ``write_bytes_whole``."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes_whole(path, buffer.getbuffer())


def write_bytes_whole(path: Path, data: bytes | memoryview) -> None:
    """Writes a sibling and renames it when it is whole.

    Raises:
        PocketSamError: the disk takes no more; the old file stays.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PocketSamError(f"{path}: cannot be written: {error.strerror}") from None


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights and statistics; short at first, then ``decay``."""
    keep = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value.to(mean), 1 - keep)
        else:
            mean.copy_(value)


def check_finite(loss: torch.Tensor, folder: Path, step: int) -> None:
    """Raises PocketSamError if the loss is no number; what was saved last is good."""
    if not loss.isfinite():
        raise PocketSamError(
            f"{folder}: the loss is {loss.item()} at step {step}; the last state is kept"
        )
