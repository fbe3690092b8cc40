"""Asks a network for masks at prompts, for training and evaluation."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.constants import (
    LABEL_BOX_FIRST,
    LABEL_BOX_SECOND,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
    MASK_THRESHOLD,
)
from pocketsam.models.images import to_pixel_values
from pocketsam.models.sam import Sam

Mask = NDArray[np.bool_]
"""``[h, w]``."""
Masks = NDArray[np.bool_]
"""``[P, h, w]``."""

_AT_A_TIME = 16
"""Prompts that are decoded together."""


@dataclass(frozen=True)
class Prompts:
    """P prompts of N points each.

    Attributes:
        coords: ``[P, N, 2]`` float32, (x, y) in pixels of the canvas.
        labels: ``[P, N]`` float32, as in ``pocketsam.constants``.
    """

    coords: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Prompts":
        """Returns the prompts on another device."""
        return Prompts(self.coords.to(device), self.labels.to(device))


class Decoded(NamedTuple):
    """What the decoder returns for P prompts.

    Attributes:
        masks: low-resolution logits ``[P, 4, S/4, S/4]``.
        scores: predicted IoU ``[P, 4]``.
    """

    masks: Tensor
    scores: Tensor


def point_prompts(clicks: NDArray[np.float64]) -> Prompts:
    """Returns prompts of foreground points, and SAM's not-a-point, for clicks ``[P, n, 2]``: (x, y)."""
    count, points = clicks.shape[:2]
    coords = np.concatenate([clicks, np.zeros((count, 1, 2))], axis=1)
    labels = np.full((count, points + 1), LABEL_FOREGROUND)
    labels[:, -1] = LABEL_NOT_A_POINT
    return Prompts(torch.from_numpy(coords).float(), torch.from_numpy(labels).float())


def bounding_box_prompts(masks: Masks) -> Prompts:
    """Returns the bounding boxes of masks ``[P, h, w]``, none of them empty."""
    boxes = np.zeros((len(masks), 2, 2), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        box[:] = [[xs[0], ys[0]], [xs[-1] + 1, ys[-1] + 1]]
    labels = torch.tensor([[LABEL_BOX_FIRST, LABEL_BOX_SECOND]]).float()
    return Prompts(torch.from_numpy(boxes), labels.repeat(len(masks), 1))


def deepest_pixel(mask: Mask) -> tuple[int, int]:
    """Returns (x, y) of the pixel farthest from the edges of mask and image, where a person clicks."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def decode(model: Sam, embeddings: Tensor, prompts: Prompts) -> Decoded:
    """Returns masks and scores of ``Sam.decode`` for prompts of several images, without mask inputs.

    Args:
        model: the network.
        embeddings: ``[B, 256, S/16, S/16]``.
        prompts: P of them, a multiple of B: the first P/B belong to the first image, and so on.
    """
    count, side = len(prompts.coords), model.mask_side
    embeddings = embeddings.repeat_interleave(count // len(embeddings), 0)
    no_mask = embeddings.new_zeros(count, 1, side, side)
    has_mask = no_mask[:, 0, 0, 0]
    return Decoded(*model.decode(embeddings, prompts.coords, prompts.labels, no_mask, has_mask))


@torch.inference_mode()
def embed(model: Sam, pixels: NDArray[np.uint8]) -> Tensor:
    """Returns the embedding ``[1, 256, S/16, S/16]`` of an image, on the network's device.

    Args:
        model: the network.
        pixels: ``[h, w, 3]`` RGB in 0..255, its longest side S.
    """
    device = next(model.parameters()).device
    values = to_pixel_values(pixels, model.image_size, model.traits.normalisation)
    return model.encode(values[None].to(device))


@torch.inference_mode()
def predict(model: Sam, embedding: Tensor, prompts: Prompts, shape: tuple[int, ...]) -> Masks:
    """Returns the mask that a user gets at each prompt, ``[P, h, w]``.

    A point or a box is answered by the best-scored of the three masks, more points by the mask made for
    longer prompts, as ``SamOnnxModel.select_masks`` of segment-anything does.

    Args:
        model: the network.
        embedding: ``[1, 256, S/16, S/16]``, from ``embed``.
        prompts: P of them.
        shape: starts with (h, w), the image's shape on the canvas.
    """
    height, width = shape[:2]
    side = (model.image_size, model.image_size)
    masks = []
    for first in range(0, len(prompts.coords), _AT_A_TIME):
        chosen = slice(first, first + _AT_A_TIME)
        batch = Prompts(prompts.coords[chosen], prompts.labels[chosen]).to(embedding.device)
        decoded = decode(model, embedding, batch)
        low = decoded.masks
        best = torch.zeros(len(low), dtype=torch.long, device=low.device)
        if model.traits.multimask and batch.coords.shape[1] < 3:
            best = 1 + decoded.scores[:, 1:].argmax(1)
        logits = low[torch.arange(len(low)), best].unsqueeze(1)
        full = F.interpolate(logits, side, mode="bilinear", align_corners=False)
        masks.append((full[:, 0, :height, :width] > MASK_THRESHOLD).cpu())
    return torch.cat(masks).numpy() if masks else np.zeros((0, height, width), bool)


def iou(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns the IoU of boolean masks over the last two axes, in 0..1; 1 for two empty masks."""
    both, either = (found & wanted).sum((-2, -1)), (found | wanted).sum((-2, -1))
    return torch.where(
        either > 0, both / either.clamp(min=1), torch.ones_like(both, dtype=torch.float32)
    )
