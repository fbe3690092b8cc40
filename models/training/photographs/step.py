"""The computation of a training step: inputs, forward pass, loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketsam.models.images import normalise
from pocketsam.models.sam import Sam
from pocketsam.models.training.photographs.imitation import Imitation
from pocketsam.models.training.photographs.loss import click_loss
from pocketsam.models.training.photographs.views import CELL
from pocketsam.models.training.run import has_bfloat16


def at_canvas(model: Sam, size: int) -> None:
    """Makes a network take images and prompts of another canvas; its weights stay."""
    model.image_size = model.prompt_encoder.image_size = size


def recolour(images: Tensor) -> Tensor:
    """Returns images in 0..255 with random white balance, contrast, saturation and noise.

    Args:
        images: ``[B, 3, S, S]`` float32 in 0..255; each gets its own random numbers.
    """
    count = len(images)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1, device=images.device).uniform_(low, high)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(0.3, 1.4)
    images = (images - 128) * uniform(0.7, 1.3) + 128 + uniform(-20, 20)
    images = images * uniform(0.85, 1.15, 3)
    images = images + torch.randn_like(images) * uniform(-8, 8).clamp(min=0)
    return images.clamp(0, 255)


def to_inputs(images: Tensor, extents: Tensor) -> Tensor:
    """Returns ``pixel_values [B, 3, S, S]``, recoloured, with zeros outside the photographs.

    Args:
        images: ``[B, S, S, 3]`` uint8.
        extents: ``[B, 2]``, heights and widths of the photographs on their canvases.
    """
    values = normalise(recolour(images.permute(0, 3, 1, 2).float()))
    places = torch.arange(images.shape[1], device=images.device)
    inside = places < extents[:, :, None]  # [B, 2, S]
    values = values * (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
    return values.contiguous(memory_format=torch.channels_last)


def loss_of(
    model: Sam, imitation: Imitation, weight: float, batch: Sequence[Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of a step, and figures: those of ``click_loss``, and of ``imitation``.

    The network computes in bfloat16 where the machine does; the loss is in float32.

    Args:
        model: the network; it is set to the batch's canvas.
        imitation: of the network's encoder.
        weight: of the imitation's loss.
        batch: the fields of ``View``, stacked.
    """
    images, extents, coords, labels, padding, masks, meant, features, known = batch
    at_canvas(model, images.shape[1])
    inputs = to_inputs(images, extents)
    side = images.shape[1] // CELL
    no_mask = inputs.new_zeros(1, 1, side, side)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=has_bfloat16()):
        embeddings = model.encode(inputs).float()
        imitated = imitation(features, known)
        decoded = [  # image by image: what its prompts share is computed once
            model.decode(image[None], xy, kinds, no_mask, no_mask[:, 0, 0, 0], pad)
            for image, xy, kinds, pad in zip(embeddings, coords, labels, padding, strict=True)
        ]
    low_res, scores = (torch.cat(parts).float() for parts in zip(*decoded, strict=True))
    wanted = masks.flatten(0, 1).float() / 255
    loss, figures = click_loss(low_res, scores, wanted, meant.flatten(0, 1))
    return loss + weight * imitated, {**figures, "imitation": imitated.detach()}


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's groups: matrices and kernels decay; biases, norms and tables do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
