"""Makes an encoder imitate the features of a larger network, beside what it is trained for.

Prompts teach it outlines; the features, from a VGG16 that was trained on ImageNet's objects, teach it
what belongs together, at every cell of every photograph. As in FitNets (Romero et al. 2014,
arXiv:1412.6550), a layer of its own translates the encoder's maps; it is not part of the result.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.models.training.photographs.photo import FEATURES, TrainingPhoto

_FARTHEST = 4.0
"""Standard deviations beyond which features do not count."""


class Imitation(nn.Module):
    """Compares an encoder's last maps with features, after a forward pass of the encoder.

    Args:
        encoder: its neck's inputs are compared.
        photos: give each feature's mean and deviation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: Any, photos: Sequence[TrainingPhoto]) -> None:
        super().__init__()
        self.head = nn.Conv2d(encoder.neck[0].in_channels, FEATURES, 1)
        mean, deviation = feature_statistics(photos)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self._maps: Tensor
        encoder.neck.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        (self._maps,) = inputs

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """Returns the mean distance (smooth L1) of the encoder's maps and the features, translated.

        Args:
            features: ``[B, S/16, S/16, FEATURES]`` float16.
            known: ``[B, S/16, S/16]`` bool, cells with features; the others do not count.
        """
        found = self.head(self._maps).permute(0, 2, 3, 1).float()
        wanted = ((features.float() - self.mean) / self.deviation).clamp(-_FARTHEST, _FARTHEST)
        errors = F.smooth_l1_loss(found, wanted, reduction="none").mean(-1)
        return (errors * known).sum() / known.sum().clamp(min=1)


def feature_statistics(photos: Sequence[TrainingPhoto]) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation ``[FEATURES]`` of each feature over all photographs."""
    total, squares, count = np.zeros(FEATURES), np.zeros(FEATURES), 1e-6
    for photo in photos:
        cells = photo.features.reshape(-1, FEATURES).astype(np.float32)
        total += cells.sum(0)
        squares += np.square(cells).sum(0)
        count += len(cells)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    deviation = np.where(variance > 0, np.sqrt(variance), 1)
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
