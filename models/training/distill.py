"""Distillation of a teacher's image encoder into MobileSAM's (Zhang et al. 2023, arXiv:2306.14289).

*Decoupled*: the student imitates the teacher's embeddings, which are computed once; no decoder is in
the loop. *Semi-coupled* and *coupled* compare masks at random prompts, through the teacher's decoder,
which stays frozen in the first and is trained along in the second. *Finetune* trains the decoder alone,
under an encoder that was distilled before.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pocketsam.errors import CheckpointError, PocketSamError
from pocketsam.models import prompted
from pocketsam.models.checkpoint import Loaded, load_model
from pocketsam.models.images import load_pixels, to_pixel_values
from pocketsam.models.sam import Sam, build
from pocketsam.models.training.embedding_cache import EmbeddingCache
from pocketsam.models.training.plots import draw_loss
from pocketsam.models.training.run import (
    Run,
    average_into,
    check_finite,
    half,
    learning_rate,
    restore,
    snapshot,
    usual_precision,
    write_bytes_whole,
)

MODES: dict[str, tuple[str, ...]] = {
    "decoupled": ("image_encoder",),
    "semi-coupled": ("image_encoder",),
    "coupled": ("image_encoder", "prompt_encoder", "mask_decoder"),
    "finetune": ("prompt_encoder", "mask_decoder"),
}
"""What is trained in each mode."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

STUDENT_NAME = "student.safetensors"


@dataclass(frozen=True)
class Recipe:
    """What a distillation does. ``batch`` images times ``accumulate`` make a step."""

    mode: str = "decoupled"
    image_size: int = 1024
    steps: int = 10_000
    batch: int = 4
    accumulate: int = 1
    prompts: int = 8
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0
    precision: str = field(default_factory=usual_precision)


class Images(Dataset[tuple[Tensor, Tensor]]):
    """``pixel_values [3, S, S]`` and the teacher's embedding, in a random order without end."""

    def __init__(
        self, paths: Sequence[Path], cache: EmbeddingCache, recipe: Recipe, first: int
    ) -> None:
        self.paths, self.cache, self.recipe, self.first = paths, cache, recipe, first

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch * self.recipe.accumulate - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Each epoch's order follows from the seed: a resumed run sees what it would have seen."""
        epoch, place = divmod(self.first + index, len(self.paths))
        order = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        number = int(torch.randperm(len(self.paths), generator=order)[place])
        size = self.recipe.image_size
        pixel_values = to_pixel_values(load_pixels(self.paths[number], size), size)
        return pixel_values, self.cache.get(number)


def new_student(teacher: Sam, start: str | None, image_size: int) -> Sam:
    """MobileSAM with the teacher's prompt encoder and decoder, and the encoder of ``start`` if given.

    Raises:
        CheckpointError: ``start`` is no MobileSAM.
    """
    student = build("mobile_sam", image_size)
    for part in ("prompt_encoder", "mask_decoder"):
        student.get_submodule(part).load_state_dict(teacher.get_submodule(part).state_dict())
    if start is not None:
        loaded = load_model(start, image_size)
        if loaded.architecture != "mobile_sam":
            raise CheckpointError(f"{start}: {loaded.architecture}, and the student is mobile_sam")
        student.load_state_dict(loaded.model.state_dict())
    return student


def loss_of(
    recipe: Recipe, encoder: nn.Module, student: Sam, teacher: Sam, batch: Sequence[Tensor], step: int
) -> Tensor:
    """Mean squared error of the embeddings, or the masks' loss against the teacher's masks."""
    pixel_values, wanted = batch
    embeddings = encoder(pixel_values).float()
    if recipe.mode == "decoupled":
        return (embeddings - wanted).square().mean()
    prompts = random_prompts(recipe, len(wanted) * recipe.prompts, step).to(wanted.device)
    with torch.no_grad():
        truth, truth_scores = prompted.decode(teacher, wanted, prompts)
    low_res, scores = prompted.decode(student, embeddings, prompts)
    masks = prompted.overlap_loss(low_res.float(), (truth > 0).float()).mean()
    return masks + (scores.float() - truth_scores.float()).square().mean()


def random_prompts(recipe: Recipe, count: int, step: int) -> prompted.Prompts:
    """Points anywhere on the canvas in even steps, boxes in odd ones: without labels nothing is known
    of where the objects are.
    """
    rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    coords = torch.rand(count, 2, 2, generator=rng) * recipe.image_size
    if step % 2:
        return prompted.Prompts(coords.sort(dim=1).values, torch.tensor([[2.0, 3.0]]).repeat(count, 1))
    return prompted.Prompts(coords, torch.tensor([[1.0, -1.0]]).repeat(count, 1))


def distill(
    images: Sequence[Path],
    teacher: Loaded,
    folder: Path,
    cache_folder: Path,
    recipe: Recipe,
    start: str | None = None,
    save_every: int = 200,
    progress: Progress = lambda _what, _done, _total: None,
) -> Path:
    """Runs, or resumes, a distillation; a kill loses at most ``save_every`` steps.

    Args:
        images: files to learn from, all readable.
        teacher: for ``recipe.image_size``.
        folder: of the run, and of its result.
        cache_folder: of the teacher's embeddings.
        recipe: what to do.
        start: a MobileSAM checkpoint to start from; ``finetune`` needs one.
        progress: called with (what, done, total).

    Returns:
        The student, ``student.safetensors`` in float16.

    Raises:
        PocketSamError: another run's or cache's folder, a loss that is no number, a full disk.
        CheckpointError: ``start`` does not fit.
    """
    for name in ("steps", "batch", "accumulate", "prompts"):
        if getattr(recipe, name) < 1:
            raise PocketSamError(f"{name} must be at least 1, not {getattr(recipe, name)}")
    if recipe.mode not in MODES:
        raise PocketSamError(f"unknown mode {recipe.mode!r}; known are {', '.join(MODES)}")
    if recipe.mode == "finetune" and start is None:
        raise PocketSamError(
            "finetune trains a decoder under a distilled encoder: give one to start from"
        )
    run = Run(folder, {**asdict(recipe), "teacher": teacher.sha256, "start": start})
    run.resume()  # refuses another run's folder before anything is computed
    precision: Any = recipe.precision
    fabric = Fabric(precision=precision)
    fabric.launch()
    frozen = teacher.model.to(fabric.device).requires_grad_(False)
    cache = EmbeddingCache(cache_folder, teacher.sha256, recipe.image_size, [str(p) for p in images])
    size = recipe.image_size
    cache.fill(
        lambda x: frozen.encode(x.to(fabric.device)),
        lambda number: to_pixel_values(load_pixels(images[number], size), size),
        lambda done, total: progress("teacher's embeddings", done, total),
    )
    torch.manual_seed(recipe.seed)
    student = new_student(frozen, start, size)
    average = _train(run, fabric, recipe, student, frozen, (images, cache), save_every, progress)
    packed = save({key: value.contiguous().cpu() for key, value in half(average).items()})
    write_bytes_whole(folder / STUDENT_NAME, packed)
    return folder / STUDENT_NAME


def _train(
    run: Run,
    fabric: Fabric,
    recipe: Recipe,
    student: Sam,
    teacher: Sam,
    data: tuple[Sequence[Path], EmbeddingCache],
    save_every: int,
    progress: Progress,
) -> Sam:
    """The loop; returns the student with averaged weights."""
    state = run.resume()
    average = deepcopy(student).to(fabric.device).eval().requires_grad_(False)
    trained = freeze_others(student, MODES[recipe.mode])
    optimizer: Any = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay)
    encoder, optimizer = fabric.setup(student.image_encoder, optimizer)
    step = restore(state, student, average, optimizer)
    examples = Images(*data, recipe, step * recipe.batch * recipe.accumulate)
    loader: Any = fabric.setup_dataloaders(DataLoader(examples, recipe.batch, num_workers=1))
    student.to(fabric.device).train()
    if recipe.mode == "finetune":
        student.image_encoder.eval()  # its BatchNorm statistics stay what they are
    for done, batch in enumerate(loader, start=1):
        with fabric.autocast():
            loss = loss_of(recipe, encoder, student, teacher, batch, step)
        check_finite(loss, run.folder, step)
        fabric.backward(loss / recipe.accumulate)
        if done % recipe.accumulate:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.learning_rate, step, recipe.steps, recipe.warmup)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
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
    return average


def freeze_others(student: Sam, parts: Sequence[str]) -> list[nn.Parameter]:
    """Leaves gradients to the named parts only; returns their parameters."""
    student.requires_grad_(False)
    trained = [p for part in parts for p in student.get_submodule(part).parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained
