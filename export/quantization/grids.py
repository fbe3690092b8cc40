"""The values that a weight ``[outputs, inputs]`` may take in few bits: steps, or a palette.

Steps can be found again from the values alone: the widest weight of each block stays as it is, at the
last step. So a converter that rounds to the nearest stores exactly what is given to it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RoundColumn = Callable[[int, Tensor], Tensor]
"""An input's number and its weights ``[outputs]`` to weights on the grid."""
ROUNDS = 30
"""Of Lloyd's algorithm."""


@dataclass(frozen=True)
class Steps:
    """Symmetric steps: code times scale, with a scale for each output, or for each block of inputs.

    Attributes:
        largest: code; 7 in 4 bits, 127 in 8.
        block: inputs that share a scale; None: all.
    """

    largest: int
    block: int | None = None

    def columns(self, weight: Tensor, importance: Tensor) -> RoundColumn:
        """Returns what rounds a column of a weight to the steps that suit that weight.

        Args:
            weight: ``[outputs, inputs]``.
            importance: unused: the steps follow from the widest weights.
        """
        block = self.block or weight.shape[1]
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % block))
        widest, where = padded.unflatten(1, (-1, block)).abs().max(dim=2)
        scales = widest.clamp_min(1e-12) / self.largest

        def rounded(number: int, column: Tensor) -> Tensor:
            scale, pinned = scales[:, number // block], where[:, number // block] == number % block
            codes = torch.round(column / scale).clamp(-self.largest, self.largest)
            return torch.where(pinned, weight[:, number], codes * scale)

        return rounded


@dataclass(frozen=True)
class Palette:
    """A table of 2^bits float16 values for a whole weight, by weighted k-means.

    Attributes:
        bits: of an index into the table.
    """

    bits: int

    def columns(self, weight: Tensor, importance: Tensor) -> RoundColumn:
        """Returns what rounds a column of a weight to the table that suits that weight.

        Args:
            weight: ``[outputs, inputs]``.
            importance: ``[inputs]``, how much an error in each input's weights counts.
        """
        values, counts = weight.flatten().numpy(), importance.expand_as(weight).flatten().numpy()
        table = torch.from_numpy(_cluster(values, counts, 2**self.bits).astype(np.float16)).float()
        borders = (table[1:] + table[:-1]) / 2
        return lambda _, column: table[torch.bucketize(column.contiguous(), borders)]


def _cluster(values: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Returns ``size`` values in order that are near the given ones, by Lloyd's algorithm."""
    order = np.argsort(values, kind="stable")
    ordered, weights = values[order].astype(np.float64), counts[order].astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * ordered)])
    shares = (np.arange(size) + 0.5) / size
    centres = (np.quantile(ordered, shares) + np.linspace(ordered[0], ordered[-1], size)) / 2
    for _ in range(ROUNDS):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        mass, sums = np.diff(total[edges]), np.diff(moment[edges])
        centres = np.sort(np.where(mass > 0, sums / np.maximum(mass, 1e-30), centres))
    return centres


Grid = Steps | Palette


def round_nearest(weight: Tensor, grid: Grid) -> Tensor:
    """Returns a weight ``[outputs, inputs]`` on a grid, each value rounded by itself."""
    round_column = grid.columns(weight, torch.ones(weight.shape[1]))
    return torch.stack([round_column(i, weight[:, i]) for i in range(weight.shape[1])], dim=1)
