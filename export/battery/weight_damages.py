"""Damages to the weights in a network's file."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.export.battery.damages import Damage, Subject
from pocketsam.export.battery.weight_files import open_weights
from pocketsam.export.battery.weight_types import MIN_SIZE, WeightFile
from pocketsam.export.target import Converter
from pocketsam.runtime.bundle import NETWORKS

Values = NDArray[Any]


def one_element(values: Values) -> Values:
    """The largest element changes its sign and doubles; of integers all its bits flip."""
    flat = values.reshape(-1)
    place = int(np.abs(flat.astype(np.float32)).argmax())
    if values.dtype.kind == "f":
        flat[place] = -2 * flat[place]
    else:
        flat[place] = ~flat[place]
    return values


def a_row(values: Values) -> Values:
    """A row in the middle is zero."""
    rows = _rows(values)
    rows[len(rows) // 2] = _zero(values)
    return values


def swapped_channels(values: Values) -> Values:
    """Two rows change places."""
    rows = _rows(values)
    first, second = len(rows) // 3, 2 * len(rows) // 3
    rows[[first, second]] = rows[[second, first]]
    return values


def zeroed_block(values: Values) -> Values:
    """A twentieth is zero."""
    flat = values.reshape(-1)
    flat[: len(flat) // 20] = _zero(values)
    return values


def six_tenths(values: Values) -> Values:
    """Times 0.6."""
    zero = _zero(values)
    scaled = (values.astype(np.float32) - zero) * 0.6 + zero
    return (np.round(scaled) if values.dtype.kind in "iu" else scaled).astype(values.dtype)


def transposed(values: Values) -> Values:
    """The last two axes are read in the other order."""
    matrix = _rows(values)[None]
    if values.ndim > 1 and 1 not in values.shape[-2:]:
        matrix = values.reshape(-1, values.shape[-2], values.shape[-1])
    return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(values.shape)


def zero_bias(values: Values) -> Values:
    """All zero."""
    values[...] = 0
    return values


def _rows(values: Values) -> Values:
    """Returns a view of the values in rows: of a flat tensor, as near to 64 as its size allows."""
    if values.ndim > 1:
        return values.reshape(len(values), -1)
    return values.reshape(next(rows for rows in range(64, 0, -1) if values.size % rows == 0), -1)


def _zero(values: Values) -> Any:
    """Returns what stands for zero: in unsigned bytes the middle, or its most frequent value."""
    if values.dtype.kind != "u":
        return values.dtype.type(0)
    return np.bincount(values.reshape(-1)).argmax().astype(values.dtype)


WEIGHT_DAMAGES: dict[str, Callable[[Values], Values]] = {
    "one element": one_element,
    "a row zeroed": a_row,
    "two channels swapped": swapped_channels,
    "a twentieth zeroed": zeroed_block,
    "× 0.6": six_tenths,
    "transposed": transposed,
}


def middle_weights(file: WeightFile) -> str | None:
    """Returns the name of a matrix halfway through the network."""
    names = [
        weight.name
        for weight in file.weights()
        if weight.values.size >= MIN_SIZE
        and weight.values.dtype.itemsize <= 4
        and weight.values.dtype != np.int32
    ]
    return names[len(names) // 2] if names else None


def middle_bias(file: WeightFile) -> str | None:
    """Returns the name of a bias halfway through the network."""
    names = [
        weight.name
        for weight in file.weights()
        if weight.values.ndim == 1
        and 16 <= weight.values.size < MIN_SIZE
        and weight.values.dtype.kind in "fi"
        and np.abs(weight.values.astype(np.float32)).max() > 0
        and weight.values.dtype != np.int64
    ]
    return names[len(names) // 2] if names else None


class FileDamage:
    """Changes constants of a network's file.

    Args:
        network: ``encoder`` or ``decoder``.
        converter: opens files of the target.
        folder: for the damaged copy.
        change: returns the changed file, or None where there is nothing to change.
    """

    def __init__(
        self, network: str, converter: Converter, folder: Path, change: Callable[[WeightFile], bool]
    ) -> None:
        self._network, self._converter = network, converter
        self._folder, self._change = folder, change

    def __call__(self, subject: Subject) -> Subject | None:
        """Returns the subject with that network, damaged."""
        entry = subject.bundle.manifest.network(self._network)
        copy = self._folder / entry.file
        if not self._change(open_weights(subject.bundle.path / entry.file, copy)):
            return None
        source = copy if copy.is_dir() else copy.read_bytes()
        network = self._converter.load(source, f"damaged {self._network}")
        if self._network == "encoder":
            return replace(subject, encoder=network, is_encoder_healthy=False)
        return replace(subject, decoder=network)


def _change_one(
    find: Callable[[WeightFile], str | None], change: Callable[[Values], Values], file: WeightFile
) -> bool:
    name = find(file)
    if name is None:
        return False
    (weight,) = (weight for weight in file.weights() if weight.name == name)
    changed = change(weight.values.copy())
    if np.array_equal(changed, weight.values):
        return False
    file.write(name, changed)
    return True


def weight_damages(converter: Converter, folder: Path) -> Iterator[Damage]:
    """Yields the damages to both networks' files."""
    for network in NETWORKS:
        changes: dict[str, Callable[[WeightFile], bool]] = {
            f"weights {name}": partial(_change_one, middle_weights, change)
            for name, change in WEIGHT_DAMAGES.items()
        }
        changes["a bias missing"] = partial(_change_one, middle_bias, zero_bias)
        changes["an epsilon of 0.1"] = lambda file: file.change_epsilon(0.1)
        for name, change in changes.items():
            yield Damage(f"{network}: {name}", FileDamage(network, converter, folder, change))
