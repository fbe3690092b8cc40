"""What every reader of a network's constants is: ``weight_files``, ``engine_weights``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

MIN_SIZE = 4096
"""Elements of a tensor that counts as weights."""


@dataclass(frozen=True)
class Weight:
    """A constant of a network.

    Attributes:
        name: in the file.
        values: a copy.
    """

    name: str
    values: NDArray[Any]


class WeightFile:
    """A copy of a network's file whose constants can be changed in place; see ``open_weights``."""

    def weights(self) -> Iterator[Weight]:
        """Yields the constants that are arrays, in the order of the file."""
        raise NotImplementedError

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replaces a constant by another of the same type and size."""
        raise NotImplementedError

    def change_epsilon(self, value: float) -> bool:
        """Changes the first normalisation's epsilon; returns whether there is one."""
        raise NotImplementedError


EPSILONS = (1e-5, 1e-6, 1e-12)


def is_epsilon(value: Any) -> bool:
    """Returns whether a number is what normalisations here add to a variance."""
    return any(abs(float(value) - epsilon) < 1e-3 * epsilon for epsilon in EPSILONS)
