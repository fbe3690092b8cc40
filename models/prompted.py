"""Prompted training and evaluation: masks at prompts, and the loss of the answers."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.models.sam import Sam

Mask = NDArray[np.bool_]
CYCLE = ("point", "box", "point", "points")
"""The kinds of a training run's batches, one after the other."""


@dataclass(frozen=True)
class Prompts:
    """P prompts for ``decode``: ``coords [P, N, 2]`` in pixels of the canvas, ``labels [P, N]``."""

    coords: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Prompts":
        """On another device."""
        return Prompts(self.coords.to(device), self.labels.to(device))


def decode(model: Sam, embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """``Sam.decode`` without mask inputs.

    ``embeddings [B, C, h, w]``; P a multiple of B, the first P/B prompts are the first image's.
    """
    count, side = len(prompts.coords), model.image_size // 4
    embeddings = embeddings.repeat_interleave(count // len(embeddings), 0)
    no_mask = embeddings.new_zeros(count, 1, side, side)
    return model.decode(embeddings, prompts.coords, prompts.labels, no_mask, no_mask[:, 0, 0, 0])


def iou(found: Tensor, wanted: Tensor) -> Tensor:
    """IoU of boolean masks over the last two axes; two empty masks agree."""
    both, either = (found & wanted).sum((-2, -1)), (found | wanted).sum((-2, -1))
    return torch.where(
        either > 0, both / either.clamp(min=1), torch.ones_like(both, dtype=torch.float32)
    )


def mask_loss(low_res: Tensor, scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy + dice + squared error of the predicted IoU.

    As in SAM's training (arXiv:2304.02643, appendix A), the single mask is always trained, and of the
    three others only the best, so that each learns a level of detail of its own. SAM's focal loss is
    left out: with few steps it holds all masks empty for long.

    Args:
        low_res: ``[P, 4, h, w]`` logits.
        scores: ``[P, 4]`` predicted IoU.
        wanted: ``[P, h, w]`` true masks, the share of each cell that they cover.

    Returns:
        the loss, and the mean IoU of the best of the three masks.
    """
    target = wanted.unsqueeze(1).expand_as(low_res)
    each = overlap_loss(low_res, target)
    with torch.no_grad():
        true_iou = iou(low_res > 0, target > 0.5)
    score_loss = (scores - true_iou).square().mean()
    best = each[:, 1:].min(dim=1)
    loss = each[:, 0].mean() + best.values.mean() + score_loss
    return loss, true_iou[:, 1:].gather(1, best.indices[:, None]).mean()


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy + dice over the last two axes."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return entropy + 1 - (2 * overlap + 1) / (total + 1)


def grouping_loss(embeddings: Tensor, wanted: Tensor) -> Tensor:
    """Asks that an object's cells resemble each other more than the rest of the image.

    The cosine of each cell to the mean of the object's cells is read as a logit. It gives every cell of
    the embedding a gradient from the first step on, while the decoder still knows nothing.

    Args:
        embeddings: ``[B, C, h, w]``.
        wanted: ``[B, P, H, W]`` true masks, the share of each cell that they cover; H a multiple of h.
    """
    height, width = embeddings.shape[-2:]
    cells = F.adaptive_avg_pool2d(wanted, (height, width)).flatten(2)  # [B, P, h·w]
    features = F.normalize(embeddings.flatten(2), dim=1)  # [B, C, h·w]
    mean = F.normalize(cells @ features.transpose(1, 2), dim=2)  # [B, P, C]
    logits = 10 * (mean @ features - 0.5)
    return overlap_loss(logits.unsqueeze(2), cells.unsqueeze(2)).mean()
