"""Apple's executor, in its own environment: ``python -m …`` opens an ``.aimodel`` and answers calls."""

import asyncio
import hashlib
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from coreai.authoring.asset import AIModelAsset
from coreai.runtime import NDArray

from pocketsam.export.engine import Arrays, Opened, serve

MAIN = "main"
ASSET_VERSION = "2.0"
"""What this executor reads; ``metadata.json`` of an asset says it."""


class Model:
    """An ``.aimodel``, open in Apple's executor for as long as the process lives.

    Args:
        path: the directory.

    Raises:
        ValueError: its program is damaged.
    """

    def __init__(self, path: str) -> None:
        check_program(Path(path))
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        opening = self._stack.enter_async_context(AIModelAsset.load(path).executable())
        self._model = self._loop.run_until_complete(opening)
        self._functions: dict[str, Any] = {}
        description = self._open(MAIN).desc
        self.shapes = {
            name: tuple(description.input_descriptor(name).shape) for name in description.input_names
        }

    def __call__(self, feeds: Arrays) -> Arrays:
        """Returns the outputs of a function: ``main``, unless ``feeds`` names another."""
        entry = feeds.pop("function", np.frombuffer(MAIN.encode(), np.uint8)).tobytes().decode()
        inputs = {name: NDArray(np.ascontiguousarray(feeds[name], np.float32)) for name in self.shapes}
        found = self._loop.run_until_complete(self._open(entry)(inputs))
        return {name: array.numpy().astype(np.float32) for name, array in found.items()}

    def _open(self, entry: str) -> Any:
        if entry not in self._functions:
            self._functions[entry] = self._model.load_function(entry)
        return self._functions[entry]


def check_program(path: Path) -> None:
    """Raises ValueError unless a file is of this version and its program has the hash beside it."""
    version = json.loads((path / "metadata.json").read_text()).get("assetVersion")
    if version != ASSET_VERSION:
        raise ValueError(f"an asset of version {version}, and this Core AI reads {ASSET_VERSION}")
    program, digest = path / "main.mlirb", path / "main.hash"
    if not program.is_file() or not digest.is_file():
        raise ValueError("has no program")
    if hashlib.sha256(program.read_bytes()).digest() != digest.read_bytes():
        raise ValueError("its program is not the one of its hash")


def open_network(path: str) -> Opened:
    """Opens an ``.aimodel``."""
    model = Model(path)
    return model, model.shapes


if __name__ == "__main__":
    serve(open_network)
