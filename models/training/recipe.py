"""What a distillation does, in numbers and names; see ``distill``."""

import math
from dataclasses import dataclass, field

import torch

from pocketsam.errors import UsageError
from pocketsam.models.training.run import default_compute

MODES: dict[str, tuple[str, ...]] = {
    "decoupled": ("image_encoder",),
    "quantized": ("image_encoder",),
    "semi-coupled": ("image_encoder",),
    "coupled": ("image_encoder", "prompt_encoder", "mask_decoder"),
    "finetune": ("prompt_encoder", "mask_decoder"),
}
"""The modules of ``Sam`` that each mode trains."""
OF_EMBEDDINGS = ("decoupled", "quantized")
"""Modes that compare embeddings; the others compare masks."""
STARTED = {
    "finetune": "finetune trains the decoder under a distilled encoder: start must name it",
    "quantized": "quantized prepares trained weights for 8 bits: start must name them",
}
"""Modes that need weights to start from, and why."""

COMPUTE = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Number formats to train in, and lightning-fabric's names for them."""


@dataclass(frozen=True)
class Recipe:
    """What a distillation does.

    Attributes:
        mode: a key of ``MODES``.
        image_size: side of the canvas in pixels, a multiple of 64.
        steps: of the optimizer.
        batch: images that are computed together.
        accumulate: batches for each step.
        prompts: for each image, where masks are compared.
        learning_rate: the highest, after the warm-up.
        warmup: steps of the warm-up.
        weight_decay: AdamW's.
        ema: decay of the averaged weights.
        seed: of the random prompts and the order of the images.
        compute: a key of ``COMPUTE``.
    """

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
    compute: str = field(default_factory=default_compute)


def check_recipe(recipe: Recipe, start: str | None, save_every: int) -> None:
    """Checks what a distillation is given, before anything is computed.

    Raises:
        UsageError: a value is unknown or out of range, or a mode of ``STARTED`` has no ``start``.
    """
    counts = {name: getattr(recipe, name) for name in ("steps", "batch", "accumulate", "prompts")}
    for name, value in {**counts, "save-every": save_every}.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if not (recipe.learning_rate > 0 and math.isfinite(recipe.learning_rate)):
        raise UsageError(f"learning-rate must be a positive number, not {recipe.learning_rate}")
    if recipe.mode not in MODES:
        raise UsageError(f"unknown mode {recipe.mode!r}; known are {', '.join(MODES)}")
    if recipe.compute not in COMPUTE:
        raise UsageError(f"unknown compute {recipe.compute!r}; known are {', '.join(COMPUTE)}")
    if recipe.compute == "fp16" and not torch.accelerator.is_available():
        raise UsageError("compute fp16 needs an accelerator; this machine has fp32 and bf16")
    if recipe.mode == "quantized" and recipe.compute != "fp32":
        raise UsageError(f"quantized needs compute fp32: {recipe.compute} hides what 8 bits cost")
    if recipe.mode in STARTED and start is None:
        raise UsageError(STARTED[recipe.mode])
