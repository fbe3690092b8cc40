"""The three stages in which the shipped weights are trained: their networks and losses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketsam.models import prompted
from pocketsam.models.checkpoint import load_model
from pocketsam.models.images import normalise
from pocketsam.models.sam import Sam, build
from pocketsam.models.training.distill import freeze_others, new_student
from pocketsam.models.training.hed_weights import load_hed
from pocketsam.models.training.losses import grouping_loss, mask_loss
from pocketsam.models.training.recipe import MODES
from pocketsam.models.training.scene_pool import PROMPT_CYCLE, draw_prompts

STAGES = ("teacher", "student", "finetune")


@dataclass(frozen=True)
class StageRecipe:
    """What a stage does.

    Attributes:
        stage: one of ``STAGES``.
        image_size: side of the canvas in pixels, a multiple of 64.
        minutes: of training; compilation and the first scenes are not counted.
        batch: scenes for each step.
        masks: for each scene.
        learning_rate: the highest, after the warm-up.
        warmup: thousandths of the training in which the learning rate rises.
        weight_decay: AdamW's.
        ema: decay of the averaged weights.
        seed: of the scenes and the random numbers.
        pool: number of scenes.
    """

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


def on_device(model: Sam, device: torch.device) -> Sam:
    """Returns a network on a device, in the memory layout that convolutions are fastest in."""
    move: Any = model.to
    moved: Sam = move(device, memory_format=torch.channels_last)
    return moved


def first_model(recipe: StageRecipe, teacher: Sam | None, start: Path | None, vgg: Path | None) -> Sam:
    """Returns the network to train: a teacher, or a MobileSAM of which a part is frozen."""
    size = recipe.image_size
    if teacher is not None and recipe.stage != "teacher":
        student = new_student(teacher, None if start is None else str(start), size)
        freeze_others(student, MODES["coupled" if recipe.stage == "finetune" else "decoupled"])
        return student
    if start is not None:
        return load_model(start, size).model
    model = build("hed_teacher", size)
    features: Any = model.get_submodule("image_encoder.vgg")
    if vgg is None:
        load_hed(features)
    else:
        features.load_state_dict(torch.load(vgg, weights_only=True))
    return model


class Stage:
    """The networks of a stage, and their loss.

    Args:
        recipe: what the stage does.
        model: the network to train.
        teacher: the network to imitate, if any.
        compiled: run the encoders through ``torch.compile``.
    """

    def __init__(self, recipe: StageRecipe, model: Sam, teacher: Sam | None, compiled: bool) -> None:
        self.recipe, self.model = recipe, model
        self._encoder: Any = model.image_encoder
        self._teacher_encoder: Any = teacher and teacher.image_encoder
        if compiled:
            self._encoder = torch.compile(self._encoder)
            self._teacher_encoder = teacher and torch.compile(self._teacher_encoder)

    def loss(self, images: Tensor, masks: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and figures for the log.

        Args:
            images: ``[B, 3, S, S]`` in 0..255.
            masks: ``[B, M, S/4, S/4]``, the share of each cell that the mask covers.
            step: decides the prompt type.
        """
        pixel_values = normalise(images).contiguous(memory_format=torch.channels_last)
        embeddings = self._encoder(pixel_values).float()
        if self.recipe.stage == "teacher":
            loss, best = self._prompted_loss(embeddings, masks, step)
            return loss + grouping_loss(embeddings, masks), {"iou": best}
        with torch.no_grad():
            wanted = self._teacher_encoder(pixel_values).float()
        imitation = (embeddings - wanted).square().mean() / wanted.var()
        if self.recipe.stage == "student":
            return imitation, {}
        loss, best = self._prompted_loss(embeddings, masks, step)
        return loss + imitation, {"iou": best, "imitation": imitation.detach()}

    def _prompted_loss(self, embeddings: Tensor, masks: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns ``mask_loss`` at random prompts of one type, and the mean IoU of the best masks."""
        wanted = masks.flatten(0, 1)
        prompts = draw_prompts(wanted, PROMPT_CYCLE[step % len(PROMPT_CYCLE)])
        decoded = prompted.decode(self.model, embeddings, prompts)
        return mask_loss(decoded.masks.float(), decoded.scores.float(), wanted)
