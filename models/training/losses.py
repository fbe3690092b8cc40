"""The loss of prompted training, after SAM (Kirillov et al. 2023, arXiv:2304.02643, appendix A)."""

import torch.nn.functional as F
from torch import Tensor


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Returns cross-entropy plus dice over the last two axes; the target is in 0..1."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return entropy + 1 - (2 * overlap + 1) / (total + 1)
