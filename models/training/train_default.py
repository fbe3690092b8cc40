"""Makes the weights that pocketsam ships: ``python -m pocketsam.models.training.train_default --help``.

Three stages, each a command of its own: a teacher learns prompted masks from generated scenes and from
photographs' regions; MobileSAM's encoder imitates the teacher's embeddings (decoupled distillation); at
last encoder and decoder are finetuned together for a short while. A stage ends after a number of
minutes, to which the learning rate is fitted, and can be killed and resumed.
"""

import argparse
import copy
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketsam.models import prompted
from pocketsam.models.checkpoint import load_model
from pocketsam.models.evaluation.evaluate import STUDENT, TRUTH, miou, scene_examples
from pocketsam.models.hed_encoder import load_hed, normalise
from pocketsam.models.sam import Sam, build
from pocketsam.models.training.distill import MODES, freeze_others, new_student
from pocketsam.models.training.run import (
    Run,
    average_into,
    check_finite,
    flush_denormals,
    half,
    has_bfloat16,
    learning_rate,
    restore,
    snapshot,
    write_whole,
)
from pocketsam.models.training.scene_pool import ScenePool, Source, draw_prompts
from pocketsam.models.training.scenes import Photo
from pocketsam.models.training.textures import load_textures

SAVE_EVERY = 240.0
"""Seconds of training that a kill may lose."""


@dataclass(frozen=True)
class Recipe:
    """What a stage does."""

    stage: str = "teacher"
    image_size: int = 512
    minutes: float = 8.0
    batch: int = 32
    masks: int = 8
    learning_rate: float = 4e-4
    warmup: int = 30
    weight_decay: float = 0.02
    ema: float = 0.999
    seed: int = 0
    pool: int = 24_000


def load_photos(folder: Path, prefix: str = "photo_") -> list[Photo]:
    """What ``python -m pocketsam.models.training.regions`` wrote."""
    photos = []
    for path in sorted(folder.glob(f"{prefix}*.npz")):
        with np.load(path) as file:
            photos.append(Photo(file["image"], file["regions"]))
    return photos


def on_device(sam: Sam, device: torch.device) -> Sam:
    """Moved there, in the layout that its convolutions are fastest in."""
    move: Any = sam.to
    moved: Sam = move(device, memory_format=torch.channels_last)
    return moved


def prompted_loss(sam: Sam, embeddings: Tensor, masks: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """``prompted.mask_loss`` for one kind of prompt, and the mean IoU of the best masks."""
    wanted = masks.flatten(0, 1)
    prompts = draw_prompts(wanted, prompted.CYCLE[step % len(prompted.CYCLE)])
    low_res, scores = prompted.decode(sam, embeddings, prompts)
    return prompted.mask_loss(low_res.float(), scores.float(), wanted)


def train(
    recipe: Recipe,
    folder: Path,
    photos: Sequence[Photo],
    held: Sequence[Photo],
    teacher: Path | None,
    start: Path | None,
    workers: int,
    compiled: bool,
    vgg: Path | None = None,
    scenes: int = 40,
) -> Path:
    """Runs, or resumes, a stage; returns the file of averaged weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(folder, asdict(recipe))
    state = run.resume()
    torch.manual_seed(recipe.seed + int(state.get("step", 0)))
    size = recipe.image_size
    source = Source(
        size, recipe.masks, load_textures() + [p.image for p in photos], photos, recipe.seed
    )
    pool = ScenePool(source, recipe.pool, device, workers, min(600, recipe.pool))
    with closing(pool):
        guide = None
        if teacher is not None:
            guide = on_device(load_model(teacher, size).model, device).requires_grad_(False)
        sam = on_device(first_model(recipe, guide, start, vgg), device)
        average = copy.deepcopy(sam).eval().requires_grad_(False)
        trained = [p for p in sam.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
        )
        step = restore(state, sam, average, optimizer)
        encoder: Any = torch.compile(sam.image_encoder) if compiled else sam.image_encoder
        guide_encoder: Any = guide and (
            torch.compile(guide.image_encoder) if compiled else guide.image_encoder
        )
        sam.train()
        spent = before = float(state.get("spent", 0.0))
        began, last_log, last_save = time.monotonic(), 0.0, time.monotonic()
        warm = step + 3
        while spent < recipe.minutes * 60 or step <= warm:
            if step <= warm:  # compilation and the first scenes are not training
                began = time.monotonic()
            spent = before + time.monotonic() - began
            done = min(1.0, spent / (recipe.minutes * 60))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe.learning_rate, int(done * 1000), 1000, recipe.warmup)
            images, masks = pool.draw(recipe.batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16()):
                pixel_values = normalise(images).contiguous(memory_format=torch.channels_last)
                loss, shown = loss_of(recipe, sam, encoder, guide_encoder, pixel_values, masks, step)
            check_finite(loss, folder, step)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            average_into(average, sam, step, recipe.ema)
            if spent - last_log > 15 or step in (1, 5):
                last_log = spent
                run.log(
                    {
                        "step": step,
                        "minutes": round(spent / 60, 2),
                        "loss": loss.item(),
                        **{k: v.item() for k, v in shown.items()},
                        "scenes": pool.filled,
                    }
                )
            if time.monotonic() - last_save > SAVE_EVERY:
                last_save = time.monotonic()
                run.save({**snapshot(step, sam, average, optimizer), "spent": spent})
    write_whole(folder / "weights.pt", half(average))
    models = {STUDENT: average}
    figures = {"truth": miou(scene_examples(scenes, size), models, TRUTH)}
    if held:
        figures["photos"] = miou(scene_examples(scenes, size, held), models, TRUTH)
    run.log({"step": step, "minutes": round(spent / 60, 2), **figures})
    return folder / "weights.pt"


def first_model(recipe: Recipe, guide: Sam | None, start: Path | None, vgg: Path | None) -> Sam:
    """A new teacher; or MobileSAM under the teacher's decoder."""
    size = recipe.image_size
    if recipe.stage != "teacher":
        assert guide is not None
        student = new_student(guide, None if start is None else str(start), size)
        freeze_others(student, MODES["coupled" if recipe.stage == "finetune" else "decoupled"])
        return student
    if start is not None:
        return load_model(start, size).model
    sam = build("hed_teacher", size)
    features: Any = sam.get_submodule("image_encoder.vgg")
    if vgg is None:
        load_hed(features)
    else:
        features.load_state_dict(torch.load(vgg, weights_only=True))
    return sam


def loss_of(
    recipe: Recipe,
    sam: Sam,
    encoder: nn.Module,
    guide: nn.Module | None,
    pixel_values: Tensor,
    masks: Tensor,
    step: int,
) -> tuple[Tensor, dict[str, Any]]:
    """The stage's loss, and figures for the log."""
    embeddings = encoder(pixel_values).float()
    if recipe.stage == "teacher":
        loss, best = prompted_loss(sam, embeddings, masks, step)
        return loss + prompted.grouping_loss(embeddings, masks), {"iou": best}
    assert guide is not None
    with torch.no_grad():
        wanted = guide(pixel_values).float()
    imitation = (embeddings - wanted).square().mean() / wanted.var()
    if recipe.stage == "student":
        return imitation, {}
    loss, best = prompted_loss(sam, embeddings, masks, step)
    return loss + imitation, {"iou": best, "imitation": imitation.detach()}


def main() -> None:
    """Command line: one option for each field of ``Recipe``."""
    parser = argparse.ArgumentParser(description="Train one stage of the shipped weights.")
    parser.add_argument("folder", type=Path)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    for name in ("photos", "teacher", "start", "vgg"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    photos = load_photos(args.photos) if args.photos else []
    held = load_photos(args.photos, "held_") if args.photos else []
    torch.set_float32_matmul_precision("high")
    flush_denormals()
    print(
        train(
            recipe,
            args.folder,
            photos,
            held,
            args.teacher,
            args.start,
            args.workers,
            args.compile,
            args.vgg,
        )
    )


if __name__ == "__main__":
    main()
