"""Trains the teacher on generated scenes: ``python -m pocketsam.models.train_teacher --help``.

Lightning Fabric brings mixed precision, several devices and checkpoints; the run can be killed at any
moment and resumes from its last checkpoint, which is at most ``--save-every`` steps old.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pocketsam.models import prompted
from pocketsam.models.run import (
    Run,
    average_into,
    check_finite,
    learning_rate,
    restore,
    snapshot,
    write_whole,
)
from pocketsam.models.sam import EMBED_DIM, Sam
from pocketsam.models.scenes import Photo, Scene, generate
from pocketsam.models.teacher import TeacherEncoder, load_hed, normalise
from pocketsam.models.textures import HELD_BACK, load_textures

HELD_BACK_SEED = 10_000_000
"""Seeds from here on belong to evaluation."""


@dataclass(frozen=True)
class Recipe:
    """What a run does. Two runs of the same recipe, on the same machine, are the same run."""

    image_size: int = 256
    steps: int = 6000
    batch: int = 8
    prompts: int = 8
    learning_rate: float = 4e-4
    warmup: int = 150
    weight_decay: float = 0.02
    ema: float = 0.998
    seed: int = 0
    scenes: int = 20_000


def build_teacher(image_size: int) -> Sam:
    """SAM's decoder and prompt encoder under a ``TeacherEncoder`` with HED's weights."""
    encoder = TeacherEncoder(EMBED_DIM)
    load_hed(encoder.vgg)
    return Sam(encoder, image_size)


class Examples(Dataset[dict[str, Any]]):
    """Scenes with one prompt for each of a few of their masks."""

    def __init__(self, recipe: Recipe, textures: list[NDArray[np.uint8]], first: int = 0) -> None:
        self.recipe, self.textures, self.first = recipe, textures, first

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image, masks at the decoder's resolution, and prompts, whose kind the whole batch shares."""
        recipe, index = self.recipe, self.first + index
        scene = generate(index % recipe.scenes, recipe.image_size, self.textures)
        rng = np.random.default_rng((recipe.seed, index))
        image, masks = flipped(rng, scene)
        chosen = masks[rng.integers(0, len(masks), recipe.prompts)]
        kind = prompted.CYCLE[index // recipe.batch % len(prompted.CYCLE)]
        prompts = prompted.sample(rng, chosen, kind)
        whole = torch.from_numpy(chosen.astype(np.float32)).unsqueeze(1)
        return {
            "image": torch.from_numpy(image),
            "masks": F.avg_pool2d(whole, 4).squeeze(1),
            "coords": prompts.coords,
            "labels": prompts.labels,
        }


def flipped(rng: np.random.Generator, scene: Scene) -> tuple[NDArray[np.uint8], prompted.Mask]:
    """The scene, or its mirror image."""
    if rng.random() < 0.5:
        return scene.image, scene.masks
    return scene.image[:, ::-1].copy(), scene.masks[..., ::-1].copy()


def loss_of(model: nn.Module, sam: Sam, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The losses of ``prompted``; ``model`` is what Fabric made of the encoder."""
    embeddings = model(normalise(batch["image"].permute(0, 3, 1, 2))).float()
    prompts = prompted.Prompts(batch["coords"].flatten(0, 1), batch["labels"].flatten(0, 1))
    low_res, scores = prompted.decode(sam, embeddings, prompts)
    loss, best = prompted.mask_loss(low_res.float(), scores.float(), batch["masks"].flatten(0, 1))
    return loss + prompted.grouping_loss(embeddings, batch["masks"]), best


@torch.inference_mode()
def evaluate(
    sam: Sam,
    textures: list[NDArray[np.uint8]],
    scenes: int,
    seed: int = 0,
    photos: Sequence[Photo] = (),
) -> dict[str, float]:
    """Mean IoU on held-back scenes, by the best-scored of three masks: one point, and a box."""
    side, device = sam.image_size, next(sam.parameters()).device
    sums: dict[str, list[float]] = {"point": [], "box": []}
    for number in range(scenes):
        scene = generate(HELD_BACK_SEED + number, side, textures, photos)
        rng = np.random.default_rng((seed, number))
        image = torch.from_numpy(scene.image).permute(2, 0, 1)
        embedding = sam.encode(normalise(image[None].to(device)))
        for kind, values in sums.items():
            prompts = prompted.sample(rng, scene.masks, kind).to(device)
            low, scores = prompted.decode(sam, embedding, prompts)
            best = low[torch.arange(len(low)), 1 + scores[:, 1:].argmax(1)]
            full = F.interpolate(best.unsqueeze(1), (side, side), mode="bilinear").squeeze(1) > 0
            values += prompted.iou(full.cpu(), torch.from_numpy(scene.masks)).tolist()
    return {kind: float(np.mean(values)) for kind, values in sums.items()}


def train(
    recipe: Recipe,
    folder: Path,
    save_every: int = 100,
    evaluate_every: int = 500,
    evaluation_scenes: int = 40,
) -> Path:
    """Runs, or resumes, a recipe in ``folder``; returns the file with the averaged weights.

    Raises:
        PocketSamError: the folder holds another recipe's run, the loss is no longer finite, or the disk
            is full.
    """
    run = Run(folder, asdict(recipe))
    state = run.resume()
    fabric = Fabric(devices=1, precision="bf16-mixed")
    torch.manual_seed(recipe.seed)
    sam = build_teacher(recipe.image_size)
    average = copy.deepcopy(sam).eval().requires_grad_(False)
    trained = [p for p in sam.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay)
    encoder, optimizer = fabric.setup(sam.image_encoder, optimizer)
    step = restore(state, sam, average, optimizer)
    examples = Examples(recipe, load_textures(), first=step * recipe.batch)
    loader: Any = fabric.setup_dataloaders(DataLoader(examples, recipe.batch, num_workers=1))
    held_back = load_textures(HELD_BACK)
    sam.to(fabric.device).train()
    for batch in loader:
        if step >= recipe.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.learning_rate, step, recipe.steps, recipe.warmup)
        with fabric.autocast():
            loss, best = loss_of(encoder, sam, batch)
        check_finite(loss, folder, step)
        fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average_into(average, sam, step, recipe.ema)
        if step % 20 == 0:
            left = run.minutes_left(step, recipe.steps)
            run.log({"step": step, "loss": loss.item(), "iou": best.item(), "minutes_left": left})
        if step % evaluate_every == 0 or step == recipe.steps:
            run.log({"step": step, "held_back": evaluate(average, held_back, evaluation_scenes)})
        if step % save_every == 0 or step == recipe.steps:
            run.save(snapshot(step, sam, average, optimizer))
    write_whole(folder / "teacher.pt", average.state_dict())
    return folder / "teacher.pt"


def main() -> None:
    """Command line: one option for each field of ``Recipe``."""
    parser = argparse.ArgumentParser(description="Train the teacher on generated scenes.")
    parser.add_argument("folder", type=Path)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=500)
    args = vars(parser.parse_args())
    folder, save, every = (args.pop(key) for key in ("folder", "save_every", "evaluate_every"))
    print(train(Recipe(**args), folder, save, every))


if __name__ == "__main__":
    main()
