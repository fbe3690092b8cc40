"""Layers that several networks share."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of ``[B, C, H, W]``; statistics in the input's precision."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Linear layers with ReLU between them: the heads of the mask decoder."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def neck(channels: int, embed_dim: int) -> nn.Sequential:
    """Returns the last layers of every SAM image encoder (arXiv:2304.02643, appendix A).

    They turn ``[B, channels, h, w]`` into the image embedding ``[B, embed_dim, h, w]``.
    """
    return nn.Sequential(
        nn.Conv2d(channels, embed_dim, 1, bias=False),
        LayerNorm2d(embed_dim),
        nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
        LayerNorm2d(embed_dim),
    )


def in_windows(x: Tensor, size: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns ``[B, H, W, C]``: ``attend`` applied to each window of ``x``.

    Where a side is no multiple of ``size``, ``x`` is padded with zeros on the right and below. The
    zeros are not masked: the official weights were trained with them in the attention.

    Args:
        x: ``[B, H, W, C]``.
        size: side of a window.
        attend: takes and returns ``[windows, size, size, C]``.
    """
    batch, height, width, channels = x.shape
    bottom, right = -height % size, -width % size
    x = F.pad(x, (0, 0, 0, right, 0, bottom))
    rows, columns = (height + bottom) // size, (width + right) // size

    # Rank 4 throughout, which Core ML's Neural Engine and TFLite's GPU delegate can run.
    x = x.reshape(batch * rows, size, columns, size * channels).transpose(1, 2)
    x = attend(x.reshape(batch * rows * columns, size, size, channels))
    x = x.reshape(batch * rows, columns, size, size * channels).transpose(1, 2)
    x = x.reshape(batch, rows * size, columns * size, channels)
    return x[:, :height, :width]
