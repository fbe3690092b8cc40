"""Trains the shipped weights on photographs: ``make weights PHOTOS=FOLDER``.

``python -m pocketsam.models.training.photographs.train PHOTOS --output RUN --hours N`` finetunes the
whole network on views of the photographs that ``prepare`` wrote. The time is given; learning rate and
canvases follow it. After a kill the same command resumes, and with more ``--hours`` a run goes on.
``kill -STOP`` and ``-CONT`` with the number in ``RUN/pid`` pause it.
"""

import argparse
import copy
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pocketsam.errors import PocketSamError, UsageError
from pocketsam.files import held_folder, make_folder, write_bytes
from pocketsam.models.checkpoint import (
    DEFAULT,
    DEFAULT_IMAGE_SIZE,
    Settings,
    load_model,
    save_checkpoint,
)
from pocketsam.models.sam import Sam
from pocketsam.models.training.answers import measure_clicks
from pocketsam.models.training.photographs.batches import Batches
from pocketsam.models.training.photographs.imitation import Imitation
from pocketsam.models.training.photographs.photo import TrainingPhoto
from pocketsam.models.training.photographs.prepare import PhotoSet, load_photo_set
from pocketsam.models.training.photographs.recipe import PhotoRecipe
from pocketsam.models.training.photographs.replicas import Replicas, run_replicas
from pocketsam.models.training.photographs.step import at_canvas, loss_of, parameter_groups
from pocketsam.models.training.run import (
    Run,
    average_into,
    batches_of,
    check_finite,
    flush_denormals,
    identity_of,
    learning_rate,
    restore,
    set_learning_rate,
    snapshot,
)

WEIGHTS_NAME, PID_NAME = "weights.safetensors", "pid"
LOG_EVERY, SAVE_EVERY, MEASURE_EVERY = 30.0, 600.0, 1200.0
"""Seconds of training."""
_PAUSE = 120.0
"""Seconds; a step that took longer was paused."""


class _Every:
    """Tells when a number of seconds has passed again.

    Args:
        seconds: between two times.
        now: seconds at the beginning.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds, self._last = seconds, now

    def due(self, now: float) -> bool:
        """Returns whether it is time, and then begins again."""
        due = now - self._last >= self._seconds
        self._last = now if due else self._last
        return due


class Training:
    """A training run of one of several replicas.

    Args:
        recipe: what to do.
        run: the folder.
        model: the network to start from; it is changed.
        photos: to train on.
        replicas: this process and the others.
        seconds: of training, those of earlier processes among them.

    Attributes:
        average: the averaged network.
        was_ended: whether ``end`` was called.
    """

    def __init__(
        self,
        recipe: PhotoRecipe,
        run: Run,
        model: Sam,
        photos: Sequence[TrainingPhoto],
        replicas: Replicas,
        seconds: float,
    ) -> None:
        self.recipe, self.run, self.model, self.replicas = recipe, run, model, replicas
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self._imitation = Imitation(model.image_encoder, photos).to(next(model.parameters()).device)
        self._trained = torch.nn.ModuleList([model, self._imitation])
        groups = parameter_groups(self._trained, recipe.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        state = run.resume()
        self.step = restore(state, model, self.average, self._optimizer)
        if state:
            self._imitation.load_state_dict(state["imitation"])
        self.spent, self._seconds = float(state.get("spent", 0.0)), seconds
        self.share = torch.tensor([min(1.0, self.spent / seconds)]).share_memory_()
        self.was_ended = False
        self._last = time.monotonic()
        self._shown: dict[str, float] = {}
        torch.manual_seed(recipe.seed + 64 * self.step + replicas.rank)
        model.train()
        for module in model.modules():  # a step sees too few photographs for statistics of its own
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()

    def end(self, *_: object) -> None:
        """Ends the run after the current step; the state is saved."""
        self.was_ended = True

    @property
    def is_over(self) -> bool:
        """Returns whether the time is up, or the run was ended."""
        return self.share.item() >= 1

    def count_time(self) -> None:
        """Adds the time since the last call, or the last step, but no pause."""
        now = time.monotonic()
        self.spent += min(_PAUSE, now - self._last)
        self._last = now

    def skip_time(self) -> None:
        """Leaves out the time since the last call, or the last step."""
        self._last = time.monotonic()

    def take_step(self, batch: Sequence[Tensor]) -> dict[str, Any]:
        """Trains on a batch, and returns the figures for the log."""
        recipe, share = self.recipe, self.share.item()
        rate = learning_rate(
            recipe.learning_rate, round(share * 1e4), 10_000, round(recipe.warmup * 1e4)
        )
        set_learning_rate(self._optimizer, rate)
        weight = recipe.imitation * (1 - share)
        loss, figures = loss_of(self.model, self._imitation, weight, batch)
        torch.autograd.backward(loss)
        self.count_time()
        spent = 1.0 if self.was_ended else min(1.0, self.spent / self._seconds)
        self.share[0] = self.replicas.average(self._trained, spent)
        norm = torch.nn.utils.clip_grad_norm_(self._trained.parameters(), 1.0)
        check_finite(norm, self.run.folder, self.step)  # of all replicas, so that all of them end
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        average_into(self.average, self.model, self.step, recipe.ema)
        for name, value in {"loss": loss.detach(), **figures}.items():
            self._shown[name] = 0.95 * self._shown.get(name, value.item()) + 0.05 * value.item()
        shown = {name: round(value, 4) for name, value in self._shown.items()}
        minutes = round(self.spent / 60, 2)
        return {"step": self.step, "minutes": minutes, "rate": rate, "size": batch[0].shape[1], **shown}

    def save(self) -> None:
        """Saves the state to resume from, and the averaged weights in float16."""
        state = snapshot(self.step, self.model, self.average, self._optimizer)
        self.run.save({**state, "spent": self.spent, "imitation": self._imitation.state_dict()})
        self._save_average(WEIGHTS_NAME)

    def _save_average(self, name: str) -> None:
        settings = Settings(DEFAULT_IMAGE_SIZE)
        save_checkpoint(self.run.folder / name, self.average.state_dict(), settings)

    def measure(self, held_back: Sequence[TrainingPhoto]) -> None:
        """Measures the averaged network, logs the figures, and keeps its weights."""
        minutes = round(self.spent / 60)
        self._save_average(f"weights-{minutes:05d}.safetensors")
        at_canvas(self.average, DEFAULT_IMAGE_SIZE)
        figures = measure_clicks(self.average, held_back)
        self.run.log({"step": self.step, "minutes": minutes, "held_back": figures})
        self.skip_time()


def train(
    recipe: PhotoRecipe,
    folder: Path,
    photos: PhotoSet,
    *,
    hours: float,
    start: str = DEFAULT,
    processes: int = 1,
) -> Path:
    """Runs, or resumes, a training, and returns the path of the averaged weights in float16.

    Args:
        recipe: what to do.
        folder: of the run and its result.
        photos: to train and to measure on.
        hours: of training, those of earlier processes among them.
        start: checkpoint to start from.
        processes: that train together, on a CPU with a thread each.

    Raises:
        UsageError: there is no time or no process.
        PocketSamError: the folder holds the run of another recipe, checkpoint or set of photographs,
            the loss is not finite, or the disk is full.
        CheckpointError: ``start`` cannot be loaded.
    """
    if not hours > 0 or processes < 1:
        raise UsageError(f"hours and processes must be positive, not {hours} and {processes}")
    origins = {"start": identity_of(start), "photographs": photos.fingerprint}
    run = Run(folder, {**asdict(recipe), **origins})
    run.resume()  # refuses the folder of another run before anything is computed
    with held_folder(folder):
        write_bytes(folder / PID_NAME, str(os.getpid()).encode())
        run_replicas(processes, lambda replicas: _train(recipe, run, photos, start, hours, replicas))
    return folder / WEIGHTS_NAME


@contextmanager
def _ends_on_sigterm(training: Training) -> Iterator[None]:
    """Ends a training, with its state saved, when this process gets SIGTERM."""
    before = signal.signal(signal.SIGTERM, training.end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _train(
    recipe: PhotoRecipe, run: Run, photos: PhotoSet, start: str, hours: float, replicas: Replicas
) -> None:
    """Trains in one of the processes; the first writes all files."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move: Callable[..., Sam] = load_model(start, DEFAULT_IMAGE_SIZE).model.to
    model = move(device, memory_format=torch.channels_last).requires_grad_(True)
    training = Training(recipe, run, model, photos.photos, replicas, hours * 3600)
    batches = Batches(photos.photos, recipe, replicas.rank, training.share)
    steps: Any = count(training.step)
    workers = 1 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 1)
    loader: Any = DataLoader(batches, None, sampler=steps, num_workers=workers, prefetch_factor=3)
    every = [_Every(s, training.spent) for s in (LOG_EVERY, SAVE_EVERY, MEASURE_EVERY)]
    training.skip_time()
    with _ends_on_sigterm(training) if replicas.first else nullcontext():
        for batch in batches_of(loader) if not training.is_over else ():
            figures = training.take_step([tensor.to(device) for tensor in batch])
            if replicas.first:
                log, save, measure = (each.due(training.spent) or training.is_over for each in every)
                if log:
                    run.log(figures)
                if save:
                    training.save()
                if measure and photos.held_back and not training.was_ended:
                    training.measure(photos.held_back)
            if training.is_over:
                break


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description="Train on photographs.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder that `prepare` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run and its result")
    parser.add_argument("--hours", type=float, default=8.0, help="of training, also for a resumed run")
    parser.add_argument("--start", default=DEFAULT, metavar="CHECKPOINT", help="to start from")
    cpus = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    parser.add_argument("--processes", type=int, default=cpus, help="that train together")
    args = parser.parse_args()
    flush_denormals()
    try:
        make_folder(args.output)
        photos = load_photo_set(args.photos)
        print(
            train(
                PhotoRecipe(),
                args.output,
                photos,
                hours=args.hours,
                start=args.start,
                processes=args.processes,
            )
        )
    except PocketSamError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
