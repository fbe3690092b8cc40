"""Trains the shipped weights: ``python -m pocketsam.models.training.train_default --help``.

There are three stages, each a command: a teacher learns masks at prompts from generated scenes and from
regions of photographs; MobileSAM's encoder imitates the teacher's embeddings (decoupled distillation);
encoder and decoder are finetuned together for a short time. A stage takes a number of minutes, which
the learning rate follows; after a kill, the same command resumes.
"""

import argparse
import copy
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketsam.errors import UsageError
from pocketsam.models.checkpoint import load_model
from pocketsam.models.sam import Sam
from pocketsam.models.training.run import (
    Run,
    average_into,
    check_finite,
    flush_denormals,
    has_bfloat16,
    learning_rate,
    restore,
    save_tensors,
    set_learning_rate,
    snapshot,
    to_float16,
)
from pocketsam.models.training.scene_pool import ScenePool, Source
from pocketsam.models.training.scenes import Photo
from pocketsam.models.training.stages import STAGES, Stage, StageRecipe, first_model, on_device
from pocketsam.models.training.textures import load_textures
from pocketsam.models.training.validation import held_out_scenes, miou_with_truth

WEIGHTS_NAME = "weights.pt"
SAVE_EVERY = 240.0
"""Seconds of training that a kill may lose."""


def load_scene_photos(folder: Path, prefix: str = "photo_") -> list[Photo]:
    """Returns the photographs that ``python -m pocketsam.models.training.regions`` wrote, by name."""
    photos = []
    for path in sorted(folder.glob(f"{prefix}*.npz")):
        with np.load(path) as file:
            photos.append(Photo(file["image"], file["regions"]))
    return photos


def train(
    recipe: StageRecipe,
    folder: Path,
    *,
    photos: Sequence[Photo] = (),
    held_out: Sequence[Photo] = (),
    teacher: Path | None = None,
    start: Path | None = None,
    vgg: Path | None = None,
    workers: int = 1,
    compiled: bool = False,
    scenes: int = 40,
) -> Path:
    """Runs, or resumes, a stage, measures the result on held-out scenes, and returns the weights' path.

    Args:
        recipe: what to do.
        folder: of the run and its result.
        photos: photographs with regions to paint scenes from.
        held_out: photographs that are used for measuring only, never for training.
        teacher: checkpoint of the teacher; the stages ``student`` and ``finetune`` need one.
        start: checkpoint to start from.
        vgg: weights of ``Vgg16`` for a new teacher; None: HED's, from its package.
        workers: processes that paint scenes.
        compiled: run the encoders through ``torch.compile``.
        scenes: number of held-out scenes to measure on.

    Returns:
        The path of the averaged weights, ``weights.pt`` in float16.

    Raises:
        UsageError: the stage is unknown, or there is no teacher where the stage needs one.
        PocketSamError: the folder holds another recipe's run, the loss is not finite, or the disk is
            full.
        CheckpointError: a checkpoint cannot be loaded.
    """
    if recipe.stage not in STAGES:
        raise UsageError(f"unknown stage {recipe.stage!r}; known are {', '.join(STAGES)}")
    if recipe.stage != "teacher" and teacher is None:
        raise UsageError(f"stage {recipe.stage} needs a teacher")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(folder, asdict(recipe))
    state = run.resume()
    torch.manual_seed(recipe.seed + int(state.get("step", 0)))
    size = recipe.image_size
    textures = load_textures() + [photo.image for photo in photos]
    source = Source(size, recipe.masks, textures, photos, recipe.seed)
    # The pool comes first: it forks, before anything computes on other threads.
    with closing(ScenePool(source, recipe.pool, device, workers, min(600, recipe.pool))) as pool:
        teacher_model = None
        if teacher is not None:
            teacher_model = on_device(load_model(teacher, size).model, device).requires_grad_(False)
        student = on_device(first_model(recipe, teacher_model, start, vgg), device)
        average = copy.deepcopy(student).eval().requires_grad_(False)
        stage = Stage(recipe, student, teacher_model, compiled)
        figures = _train(run, state, stage, average, pool)
    save_tensors(folder / WEIGHTS_NAME, to_float16(average))
    figures["truth"] = miou_with_truth(average, held_out_scenes(scenes, size))
    if held_out:
        figures["photos"] = miou_with_truth(average, held_out_scenes(scenes, size, held_out))
    run.log(figures)
    return folder / WEIGHTS_NAME


class _Clock:
    """Measures the seconds of training, of this process and those before it.

    Args:
        before: seconds of earlier processes.
    """

    def __init__(self, before: float) -> None:
        self._before = before
        self.restart()

    def restart(self) -> None:
        """Forgets the seconds of this process."""
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Returns the seconds so far."""
        return self._before + time.monotonic() - self._began


def _train(
    run: Run, state: dict[str, Any], stage: Stage, average: Sam, pool: ScenePool
) -> dict[str, Any]:
    """Trains the stage's network, and leaves its averaged weights in ``average``.

    Returns:
        ``step``, the number of steps, and ``minutes`` of training.
    """
    recipe, model = stage.recipe, stage.model
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = pool.device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay, fused=fused)
    step = restore(state, model, average, optimizer)
    model.train()
    clock, budget, warm = _Clock(float(state.get("spent", 0.0))), recipe.minutes * 60, step + 3
    last_log, last_save = 0.0, time.monotonic()
    while clock.spent < budget or step <= warm:
        if step <= warm:  # compilation and the first scenes are not training
            clock.restart()
        share = min(1.0, clock.spent / budget)
        rate = learning_rate(recipe.learning_rate, int(share * 1000), 1000, recipe.warmup)
        set_learning_rate(optimizer, rate)
        images, masks = pool.draw(recipe.batch)
        with torch.autocast(pool.device.type, torch.bfloat16, enabled=has_bfloat16()):
            loss, figures = stage.loss(images, masks, step)
        check_finite(loss, run.folder, step)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        average_into(average, model, step, recipe.ema)
        spent = clock.spent
        if spent - last_log > 15 or step in (1, 5):
            last_log = spent
            entry = {"step": step, "minutes": round(spent / 60, 2), "loss": loss.item()}
            shown = {name: value.item() for name, value in figures.items()}
            run.log({**entry, **shown, "scenes": pool.filled})
        if time.monotonic() - last_save > SAVE_EVERY:
            last_save = time.monotonic()
            run.save({**snapshot(step, model, average, optimizer), "spent": spent})
    return {"step": step, "minutes": round(clock.spent / 60, 2)}


def main() -> None:
    """Runs the command line: an option for each field of ``Recipe``."""
    parser = argparse.ArgumentParser(
        description="Train one stage of the shipped weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of the run and its result")
    for name, value in asdict(StageRecipe()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help=type(value).__name__)
    parser.add_argument("--photos", type=Path, help="folder of photographs with regions")
    parser.add_argument("--teacher", type=Path, help="checkpoint to imitate")
    parser.add_argument("--start", type=Path, help="checkpoint to start from")
    parser.add_argument("--vgg", type=Path, help="weights of the teacher's VGG16")
    workers = max(1, (os.cpu_count() or 2) - 1)
    parser.add_argument("--workers", type=int, default=workers, help="processes that paint scenes")
    parser.add_argument("--compile", action="store_true", help="compile the encoders")
    args = parser.parse_args()
    recipe = StageRecipe(**{name: getattr(args, name) for name in asdict(StageRecipe())})
    torch.set_float32_matmul_precision("high")
    flush_denormals()
    path = train(
        recipe,
        args.folder,
        photos=load_scene_photos(args.photos) if args.photos else [],
        held_out=load_scene_photos(args.photos, "held_") if args.photos else [],
        teacher=args.teacher,
        start=args.start,
        vgg=args.vgg,
        workers=args.workers,
        compiled=args.compile,
    )
    print(path)


if __name__ == "__main__":
    main()
