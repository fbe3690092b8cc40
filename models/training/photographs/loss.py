"""The loss of prompts that may mean several things, on photographs.

SAM trains the best of its three masks against one true mask (arXiv:2304.02643, section 3). Here the
masks under a click are known, up to three, and each is given to the mask that fits it best, so that one
click teaches all three.
"""

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketsam.models.prompted import iou

_OTHERS = 0.3
"""Weight of the masks that a prompt may mean beside the one that it asks for."""
_SINGLE = 0.5
"""Weight of the mask for several points."""
_SCORES = 5.0
"""Weight of the predicted IoU's squared error."""
_AROUND, _LEAST = 16.0, 128.0
"""Cross-entropy is the sum over all cells, divided by ``_AROUND`` times the cells of the mask and
``_LEAST``, at most by all: in the mean over all cells, a small object that is missed costs nothing."""


def click_loss(
    low_res: Tensor, scores: Tensor, masks: Tensor, meant: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns cross-entropy plus dice of all masks, and the squared error of the predicted IoU.

    The predicted IoU is compared with the IoU with what the prompt asks for, so that it is the expected
    IoU where a click is ambiguous.

    Args:
        low_res: ``[P, 4, h, w]`` logits; the first mask is the one for several points.
        scores: ``[P, 4]`` predicted IoU.
        masks: ``[P, T, h, w]``, T at most 3: what each prompt may mean, as shares of cells in 0..1;
            the first is what it asks for.
        meant: ``[P, T]`` bool, whether there is such a mask; the first always is.

    Returns:
        The loss, and the means of ``first``, the IoU of the best-scored mask; of ``best``, the IoU of
        the best of three; and of ``error``, the distance of predicted and true IoU.
    """
    losses = overlap_losses(low_res, masks)  # [P, 4, T]
    weight = meant.float() * losses.new_tensor([1.0] + [_OTHERS] * (masks.shape[1] - 1))
    orders = torch.tensor(list(permutations(range(1, 4), masks.shape[1])), device=losses.device)
    every = torch.stack([losses[:, order, torch.arange(len(order))] for order in orders])  # [O, P, T]
    assigned = (every * weight).sum(2).amin(0).mean()
    with torch.no_grad():
        true = iou(low_res > 0, masks[:, :1] > 0.5)
    error = scores - true
    loss = assigned + _SINGLE * losses[:, 0, 0].mean() + _SCORES * error.square().mean()
    chosen = scores[:, 1:].argmax(1, keepdim=True)
    figures = {
        "first": true[:, 1:].gather(1, chosen).mean(),
        "best": true[:, 1:].amax(1).mean(),
        "error": error.detach().abs().mean(),
    }
    return loss, figures


def overlap_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns ``[P, M, T]``: cross-entropy plus dice of each of M masks with each of T true ones.

    See ``_AROUND`` for what the cross-entropy is divided by.

    Args:
        logits: ``[P, M, h, w]``.
        masks: ``[P, T, h, w]`` in 0..1.
    """
    x, wanted = logits.flatten(2), masks.flatten(2)
    area = wanted.sum(2)[:, None]
    cells = (_AROUND * area + _LEAST).clamp(max=float(x.shape[-1]))
    entropy = (F.softplus(x).sum(2, keepdim=True) - x @ wanted.transpose(1, 2)) / cells
    probability = x.sigmoid()
    overlap = probability @ wanted.transpose(1, 2)
    total = probability.sum(2, keepdim=True) + area
    return entropy + 1 - (2 * overlap + 1) / (total + 1)
