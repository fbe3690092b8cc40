"""Distils a teacher's image encoder into MobileSAM's (Zhang et al. 2023, arXiv:2306.14289).

*Decoupled*: the student imitates the teacher's embeddings, which are computed once; no decoder runs.
*Semi-coupled* and *coupled*: masks at random prompts are compared, through the teacher's decoder, which
is frozen in the first and trained in the second. *Finetune*: the decoder alone is trained, under an
encoder that was distilled before.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pocketsam import terminal
from pocketsam.constants import LABEL_BOX_FIRST, LABEL_BOX_SECOND, LABEL_FOREGROUND, LABEL_NOT_A_POINT
from pocketsam.errors import CheckpointError
from pocketsam.files import held_folder
from pocketsam.models import prompted
from pocketsam.models.checkpoint import Loaded, Settings, load_model, save_checkpoint
from pocketsam.models.images import load_pixels, to_pixel_values
from pocketsam.models.sam import Sam, build
from pocketsam.models.training.embedding_cache import EmbeddingCache
from pocketsam.models.training.losses import overlap_loss
from pocketsam.models.training.plots import draw_loss
from pocketsam.models.training.recipe import COMPUTE, MODES, Recipe, check_recipe
from pocketsam.models.training.run import (
    Run,
    average_into,
    batches_of,
    check_finite,
    identity_of,
    learning_rate,
    restore,
    set_learning_rate,
    snapshot,
)

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, number done, number in all)."""

STUDENT_NAME = "student.safetensors"


class _Examples(Dataset[tuple[Tensor, Tensor]]):
    """Yields ``pixel_values [3, S, S]`` and the teacher's embedding, in a random order per epoch.

    Args:
        paths: of the images, in the order of the cache.
        cache: the teacher's embeddings.
        recipe: the distillation.
        first: number of examples that earlier runs have used.
    """

    def __init__(
        self, paths: Sequence[Path], cache: EmbeddingCache, recipe: Recipe, first: int
    ) -> None:
        self.paths, self.cache, self.recipe, self.first = paths, cache, recipe, first

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch * self.recipe.accumulate - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns an example; its image follows from the seed, so that a resumed run sees the same."""
        epoch, position = divmod(self.first + index, len(self.paths))
        order = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        number = int(torch.randperm(len(self.paths), generator=order)[position])
        size = self.recipe.image_size
        pixel_values = to_pixel_values(load_pixels(self.paths[number], size), size)
        return pixel_values, self.cache.get(number)


def names_of(images: Sequence[Path]) -> list[str]:
    """Returns a name and size for each image, the same wherever their folder lies."""
    root = os.path.commonpath([path.resolve().parent for path in images])
    return [
        f"{path.resolve().relative_to(root).as_posix()}, {path.stat().st_size} bytes" for path in images
    ]


def new_student(teacher: Sam, start: str | None, image_size: int) -> Sam:
    """Returns a MobileSAM to train.

    Args:
        teacher: lends its prompt encoder and mask decoder, where there is no ``start``.
        start: a MobileSAM checkpoint; None: the image encoder is untrained.
        image_size: side of the canvas in pixels.

    Raises:
        CheckpointError: ``start`` cannot be loaded, or is no MobileSAM.
    """
    student = build("mobile_sam", image_size)
    for name in ("prompt_encoder", "mask_decoder"):
        student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
    if start is not None:
        loaded = load_model(start, image_size, terminal.say)
        if loaded.architecture != "mobile_sam":
            raise CheckpointError(f"{start}: {loaded.architecture}, and the student is mobile_sam")
        student.load_state_dict(loaded.model.state_dict())
    return student


def freeze_others(student: Sam, names: Sequence[str]) -> list[nn.Parameter]:
    """Freezes all modules of a network but the named ones; returns the parameters of the named."""
    student.requires_grad_(False)
    trained = [p for name in names for p in student.get_submodule(name).parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def loss_of(
    recipe: Recipe, encoder: nn.Module, student: Sam, teacher: Sam, batch: Sequence[Tensor], step: int
) -> Tensor:
    """Returns the loss of a batch: of the embeddings where decoupled, else of masks at random prompts.

    Args:
        recipe: the distillation.
        encoder: the student's, as it is to be called.
        student: for its decoder.
        teacher: for its decoder.
        batch: ``pixel_values [B, 3, S, S]`` and the teacher's embeddings ``[B, 256, S/16, S/16]``.
        step: decides the prompts.
    """
    pixel_values, wanted = batch
    embeddings = encoder(pixel_values).float()
    if recipe.mode == "decoupled":
        return (embeddings - wanted).square().mean()
    prompts = random_prompts(recipe, len(wanted) * recipe.prompts, step).to(wanted.device)
    with torch.no_grad():
        truth = prompted.decode(teacher, wanted, prompts)
    decoded = prompted.decode(student, embeddings, prompts)
    masks = overlap_loss(decoded.masks.float(), (truth.masks > 0).float()).mean()
    return masks + (decoded.scores.float() - truth.scores.float()).square().mean()


def random_prompts(recipe: Recipe, count: int, step: int) -> prompted.Prompts:
    """Returns random points on the canvas in even steps, random boxes in odd ones.

    Nothing is known of where objects are, as the images have no labels.
    """
    rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    coords = torch.rand(count, 2, 2, generator=rng) * recipe.image_size
    labels = [LABEL_FOREGROUND, LABEL_NOT_A_POINT]
    if step % 2:
        coords, labels = coords.sort(dim=1).values, [LABEL_BOX_FIRST, LABEL_BOX_SECOND]
    return prompted.Prompts(coords, torch.tensor([labels]).float().repeat(count, 1))


def distill(
    images: Sequence[Path],
    teacher: Loaded,
    folder: Path,
    recipe: Recipe,
    *,
    cache_folder: Path | None = None,
    start: str | None = None,
    save_every: int = 200,
    progress: Progress = lambda _what, _done, _total: None,
) -> Path:
    """Runs, or resumes, a distillation, and returns the student's path.

    A kill loses at most ``save_every`` steps.

    Args:
        images: files to learn from, all readable.
        teacher: for a canvas of ``recipe.image_size``.
        folder: of the run and its result.
        recipe: what to do.
        cache_folder: of the teacher's embeddings; None: ``cache`` in ``folder``.
        start: a MobileSAM checkpoint to start from; ``finetune`` needs one.
        save_every: steps between saved states.
        progress: called with (what is being done, number done, number in all).

    Returns:
        The path of the student, ``student.safetensors`` in float16.

    Raises:
        UsageError: a value is out of range, or ``finetune`` has no ``start``.
        PocketSamError: a folder holds another run or cache, the loss is not finite, or the disk is
            full.
        CheckpointError: ``start`` is no MobileSAM.
    """
    check_recipe(recipe, start, save_every)
    names = hashlib.sha256("\0".join(names_of(images)).encode()).hexdigest()
    origins = {"teacher": teacher.sha256, "start": identity_of(start), "images": names}
    run = Run(folder, {**asdict(recipe), **origins}, may_grow=("steps",))
    run.resume()  # refuses the folder of another run before anything is computed
    cache = EmbeddingCache(
        cache_folder or folder / "cache", teacher.sha256, recipe.image_size, names_of(images)
    )
    with held_folder(folder):
        how: Any = {"start": start, "save_every": save_every, "progress": progress}
        _distill(run, images, teacher.model, recipe, cache, **how)
    return folder / STUDENT_NAME


def _distill(
    run: Run,
    images: Sequence[Path],
    teacher: Sam,
    recipe: Recipe,
    cache: EmbeddingCache,
    *,
    start: str | None,
    save_every: int,
    progress: Progress,
) -> None:
    """Computes the teacher's embeddings, trains, and saves the student."""
    compute: Any = COMPUTE[recipe.compute]
    fabric = Fabric(precision=compute)
    fabric.launch()
    frozen = teacher.to(fabric.device).requires_grad_(False)
    size = recipe.image_size
    cache.fill(
        lambda x: frozen.encode(x.to(fabric.device)),
        lambda number: to_pixel_values(load_pixels(images[number], size), size),
        lambda done, total: progress("teacher's embeddings", done, total),
    )
    torch.manual_seed(recipe.seed)
    student = new_student(frozen, start, size)
    average = deepcopy(student).to(fabric.device).eval().requires_grad_(False)

    def examples(steps_done: int) -> _Examples:
        return _Examples(images, cache, recipe, steps_done * recipe.batch * recipe.accumulate)

    _train(
        run,
        fabric,
        recipe,
        student=student,
        average=average,
        teacher=frozen,
        examples=examples,
        save_every=save_every,
        progress=progress,
    )
    save_checkpoint(run.folder / STUDENT_NAME, average.state_dict(), Settings(size))


def _train(
    run: Run,
    fabric: Fabric,
    recipe: Recipe,
    *,
    student: Sam,
    average: Sam,
    teacher: Sam,
    examples: Callable[[int], _Examples],
    save_every: int,
    progress: Progress,
) -> None:
    """Trains ``student``, and leaves its averaged weights in ``average``.

    Args:
        examples: returns what is left to learn from after a number of steps.
    """
    state = run.resume()
    trained = freeze_others(student, MODES[recipe.mode])
    optimizer: Any = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay)
    encoder, optimizer = fabric.setup(student.image_encoder, optimizer)
    step = restore(state, student, average, optimizer)
    loader: Any = fabric.setup_dataloaders(DataLoader(examples(step), recipe.batch, num_workers=1))
    student.to(fabric.device).train()
    if recipe.mode == "finetune":
        student.image_encoder.eval()  # its BatchNorm statistics must not change
    for done, batch in enumerate(batches_of(loader), start=1):
        with fabric.autocast():
            loss = loss_of(recipe, encoder, student, teacher, batch, step)
        check_finite(loss, run.folder, step)
        fabric.backward(loss / recipe.accumulate)
        if done % recipe.accumulate:
            continue
        rate = learning_rate(recipe.learning_rate, step, recipe.steps, recipe.warmup)
        set_learning_rate(optimizer, rate)
        fabric.clip_gradients(encoder, optimizer, max_norm=1.0, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average_into(average, student, step, recipe.ema)
        progress("distilling", step, recipe.steps)
        if step % 20 == 0 or step == recipe.steps:
            left = run.minutes_left(step, recipe.steps)
            run.log({"step": step, "loss": loss.item(), "minutes_left": left})
        if step % save_every == 0 or step == recipe.steps:
            run.save(snapshot(step, student, average, optimizer))
            draw_loss(run.folder)
