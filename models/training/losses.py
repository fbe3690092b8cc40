"""The losses of prompted training, after SAM (Kirillov et al. 2023, arXiv:2304.02643, appendix A)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketsam.models.prompted import iou


def mask_loss(low_res: Tensor, scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of cross-entropy, dice and the squared error of the predicted IoU.

    As in SAM's training, the mask for several prompts is always trained, and of the three others only
    the best, so that each learns its own level of detail. SAM's focal loss is left out: with few steps
    it keeps all masks empty for too long.

    Args:
        low_res: ``[P, 4, h, w]`` logits.
        scores: ``[P, 4]`` predicted IoU.
        wanted: ``[P, h, w]`` true masks: the share of each cell that they cover, in 0..1.

    Returns:
        The loss, and the mean IoU of the best of the three masks.
    """
    target = wanted.unsqueeze(1).expand_as(low_res)
    losses = overlap_loss(low_res, target)
    with torch.no_grad():
        true_iou = iou(low_res > 0, target > 0.5)
    score_loss = (scores - true_iou).square().mean()
    best = losses[:, 1:].min(dim=1)
    loss = losses[:, 0].mean() + best.values.mean() + score_loss
    return loss, true_iou[:, 1:].gather(1, best.indices[:, None]).mean()


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Returns cross-entropy plus dice over the last two axes; the target is in 0..1."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return entropy + 1 - (2 * overlap + 1) / (total + 1)


def grouping_loss(embeddings: Tensor, wanted: Tensor) -> Tensor:
    """Returns a loss that is low where an object's cells resemble each other more than other cells.

    The cosine between each cell and the mean of the object's cells is used as a logit. Every cell of
    the embedding gets a gradient from the first step on, while the decoder is still untrained.

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
