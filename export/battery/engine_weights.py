"""The constants inside files of engines with an environment of their own, to read and to damage.

The engine's own tools list them there (``coreai_constants``, ``executorch_constants``), whatever their
type; here each is looked for by its bytes, and changed where it lies.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.export.battery.weight_types import EPSILONS, Weight, WeightFile
from pocketsam.export.engine import Environment
from pocketsam.export.to_coreai.environment import COREAI
from pocketsam.export.to_executorch.environment import EXECUTORCH

SECONDS = 600.0
"""How long the listing may take: it imports the whole converter."""
MIN_BYTES = 64
"""Shorter constants are left out: their bytes could lie elsewhere by chance."""


class EngineWeights(WeightFile):
    """Constants whose bytes lie at one place of a file.

    Args:
        path: the file or directory.
        program: the file that holds the constants.
    """

    environment: Environment
    worker: str
    epsilon_type: type[np.floating[Any]]
    """In which the file keeps the epsilon of a normalisation."""

    def __init__(self, path: Path, program: Path) -> None:
        self._program, self._data = program, bytearray(program.read_bytes())
        digest = hashlib.sha256(self._data).hexdigest()
        listed = _places(self.environment, self.worker, path, program, digest)
        self._views = {
            name: np.frombuffer(self._data, kind, int(np.prod(shape)), place).reshape(shape)
            for name, kind, shape, place in listed
        }

    def weights(self) -> Iterator[Weight]:
        """Yields the constants."""
        for name, view in self._views.items():
            yield Weight(name, view.copy())

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replaces a constant."""
        self._views[name][...] = values.reshape(self._views[name].shape)
        self._save()

    def change_epsilon(self, value: float) -> bool:
        """Changes the first number of that value and type.

        Not found in float16: 16 bits of the same value lie all over a file.
        """
        for epsilon in EPSILONS:
            old, new = (self.epsilon_type(number).tobytes() for number in (epsilon, value))
            place = self._data.find(old)
            if place >= 0:
                self._data[place : place + len(old)] = new
                self._save()
                return True
        return False

    def _save(self) -> None:
        self._program.write_bytes(self._data)


class PteWeights(EngineWeights):
    """Constants of a ``.pte``, in and outside of its delegates."""

    environment, worker = EXECUTORCH, "pocketsam.export.battery.executorch_constants"
    epsilon_type = np.float64

    def __init__(self, path: Path) -> None:
        super().__init__(path, path)


class AimodelWeights(EngineWeights):
    """Constants of an ``.aimodel``; its two functions share them."""

    environment, worker = COREAI, "pocketsam.export.battery.coreai_constants"
    epsilon_type = np.float32

    def __init__(self, path: Path) -> None:
        super().__init__(path, path / "main.mlirb")

    def _save(self) -> None:
        """Writes the hash of the program as well, as a converter would have."""
        super()._save()
        digest = hashlib.sha256(self._data).digest()
        self._program.with_name("main.hash").write_bytes(digest)


@lru_cache(maxsize=4)
def _places(
    environment: Environment, worker: str, path: Path, program: Path, digest: str
) -> list[tuple[str, Any, tuple[int, ...], int]]:
    """Returns name, type, shape and place of each constant; ``digest``: of a program listed before."""
    with tempfile.TemporaryDirectory(prefix="pocketsam-") as folder:
        output = Path(folder) / "constants.npz"
        environment.run(worker, [str(path), str(output)], SECONDS)
        with np.load(output) as arrays:
            constants = {name: arrays[name] for name in arrays.files}
    data, found = program.read_bytes(), []
    for name, array in constants.items():
        wanted = array.tobytes()
        if len(wanted) >= MIN_BYTES and data.count(wanted) == 1:
            shape = tuple(side for side in array.shape if side > 1)  # a bias is [1, C, 1, 1] in some
            found.append((name, array.dtype, shape, data.find(wanted)))
    return found
