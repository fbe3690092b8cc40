"""Trains the teacher on generated scenes: ``python -m pocketsam.models.train_teacher --help``.

Lightning Fabric brings mixed precision, several devices and checkpoints; the run can be killed at any
moment and resumes from its last checkpoint, which is at most ``--save-every`` steps old.
"""

import argparse
import copy
import json
import math
import os
import time
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

from pocketsam.errors import PocketSamError
from pocketsam.models import prompted
from pocketsam.models.sam import EMBED_DIM, Sam
from pocketsam.models.scenes import Scene, generate
from pocketsam.models.teacher import PIXEL_MEAN, PIXEL_STD, TeacherEncoder, load_hed
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


def normalise(images: Tensor) -> Tensor:
    """``[B, H, W, 3]`` uint8 to ``pixel_values [B, 3, H, W]``."""
    mean, std = (torch.tensor(values, device=images.device) for values in (PIXEL_MEAN, PIXEL_STD))
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


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
        kind = prompted.KINDS[(0, 1, 0, 2)[index // recipe.batch % 4]]
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
    embeddings = model(normalise(batch["image"])).float()
    count = batch["coords"].shape[1]
    prompts = prompted.Prompts(batch["coords"].flatten(0, 1), batch["labels"].flatten(0, 1))
    low_res, scores = prompted.decode(sam, embeddings.repeat_interleave(count, 0), prompts)
    loss, best = prompted.mask_loss(low_res.float(), scores.float(), batch["masks"].flatten(0, 1))
    return loss + prompted.grouping_loss(embeddings, batch["masks"]), best


@torch.inference_mode()
def evaluate(
    sam: Sam, textures: list[NDArray[np.uint8]], scenes: int, seed: int = 0
) -> dict[str, float]:
    """Mean IoU on held-back scenes, by the best-scored of three masks: one point, and a box."""
    side = sam.image_size
    sums: dict[str, list[float]] = {"point": [], "box": []}
    for number in range(scenes):
        scene = generate(HELD_BACK_SEED + number, side, textures)
        rng = np.random.default_rng((seed, number))
        embedding = sam.encode(normalise(torch.from_numpy(scene.image)[None]))
        for kind, values in sums.items():
            prompts = prompted.sample(rng, scene.masks, kind)
            low, scores = prompted.decode(sam, embedding.expand(len(scene.masks), -1, -1, -1), prompts)
            best = low[torch.arange(len(low)), 1 + scores[:, 1:].argmax(1)]
            full = F.interpolate(best.unsqueeze(1), (side, side), mode="bilinear").squeeze(1) > 0
            values += prompted.iou(full, torch.from_numpy(scene.masks)).tolist()
    return {kind: float(np.mean(values)) for kind, values in sums.items()}


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(recipe: Recipe, folder: Path, save_every: int = 100, evaluate_every: int = 500) -> Path:
    """Runs, or resumes, a recipe in ``folder``; returns the file with the averaged weights.

    Raises:
        PocketSamError: the folder holds another recipe's run, or the loss is no longer finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(devices=1, precision="bf16-mixed")
    torch.manual_seed(recipe.seed)
    sam = build_teacher(recipe.image_size)
    average = copy.deepcopy(sam).eval().requires_grad_(False)
    trained = [p for p in sam.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay)
    encoder, optimizer = fabric.setup(sam.image_encoder, optimizer)
    step = _resume(folder, recipe, sam, average, optimizer)
    textures = load_textures()
    held_back = load_textures(HELD_BACK)
    examples = Examples(recipe, textures, first=step * recipe.batch)
    loader = fabric.setup_dataloaders(DataLoader(examples, recipe.batch, num_workers=1))
    sam.to(fabric.device).train()
    started = time.monotonic()
    for done, batch in enumerate(loader):
        if step >= recipe.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with fabric.autocast():
            loss, best = loss_of(encoder, sam, batch)
        if not loss.isfinite():
            raise PocketSamError(f"{folder}: the loss is {loss} at step {step}; the last state is kept")
        fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(
                average.state_dict().values(), sam.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(value.to(mean), 1 - decay)
        if step % 20 == 0:
            left = (time.monotonic() - started) / (done + 1) * (recipe.steps - step)
            _log(
                folder,
                {"step": step, "loss": loss.item(), "iou": best.item(), "minutes_left": left / 60},
            )
        if step % evaluate_every == 0 or step == recipe.steps:
            _log(folder, {"step": step, "held_back": evaluate(average, held_back, 40)})
        if step % save_every == 0 or step == recipe.steps:
            _save(folder, recipe, sam, average, optimizer, step)
    return folder / "teacher.pt"


def _log(folder: Path, entry: dict[str, Any]) -> None:
    line = json.dumps(entry)
    print(line, flush=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _save(folder: Path, recipe: Recipe, sam: Sam, average: Sam, optimizer: Any, step: int) -> None:
    """The state to resume from, and the averaged weights; each replaces the old one once whole."""
    state = {
        "recipe": asdict(recipe),
        "step": step,
        "model": sam.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    for name, value in (("state.pt", state), ("teacher.pt", average.state_dict())):
        part = folder / f"{name}.part"
        torch.save(value, part)
        os.replace(part, folder / name)


def _resume(folder: Path, recipe: Recipe, sam: Sam, average: Sam, optimizer: Any) -> int:
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise PocketSamError(f"{folder}: holds a run of another recipe, {state['recipe']}")
    sam.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


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
