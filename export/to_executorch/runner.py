"""ExecuTorch's runtime, in its own environment: ``python -m …`` opens a ``.pte`` and answers calls.

It imports the runtime's own extension: ``executorch.runtime`` imports the converter as well, which
takes seconds.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings import _C

from pocketsam.export.engine import Arrays, Opened, serve
from pocketsam.runtime import contract as c

NETWORKS = (
    ((c.PIXEL_VALUES,), (c.IMAGE_EMBEDDINGS,)),
    (
        (c.IMAGE_EMBEDDINGS, c.POINT_COORDS, c.POINT_LABELS, c.MASK_INPUT, c.HAS_MASK_INPUT),
        (c.IOU_PREDICTIONS, c.LOW_RES_MASKS),
    ),
)
"""Inputs and outputs of the encoder and of the decoder: a ``.pte`` has their order, and no names."""

IDENTIFIER = b"ET12"
"""Of the format's version; in bytes 4 to 7 of a ``.pte``."""


def open_network(source: bytes) -> Opened:
    """Opens a ``.pte``.

    Raises:
        ValueError: it is no network of ours.
        RuntimeError: it is damaged, or of another version.
    """
    _set_threads()
    if source[4:8] != IDENTIFIER:
        raise ValueError(f"begins with {source[4:8]!r}, and this ExecuTorch reads {IDENTIFIER!r}")
    module = _C._load_for_executorch_from_buffer(
        source, program_verification=_C.Verification.InternalConsistency
    )
    shapes = read_shapes(module.method_meta("forward"), "input")
    kinds = [names for names in NETWORKS if len(names[0]) == len(shapes)]
    if not kinds:
        raise ValueError(f"takes {len(shapes)} tensors, which no network of ours does")
    ((inputs, outputs),) = kinds

    def call(feeds: Arrays) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[key], np.float32)) for key in inputs]
        found = module.forward(tensors)
        return {key: x.numpy().copy() for key, x in zip(outputs, found, strict=True)}

    return call, dict(zip(inputs, shapes, strict=True))


def _set_threads() -> None:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        _C._unsafe_reset_threadpool(int(threads))


def read_shapes(metadata: Any, direction: str) -> list[tuple[int, ...]]:
    """Returns the shapes of a method's tensors; ``direction`` is ``input`` or ``output``."""
    count = getattr(metadata, f"num_{direction}s")()
    tensor: Callable[[int], Any] = getattr(metadata, f"{direction}_tensor_meta")
    return [tuple(tensor(number).sizes()) for number in range(count)]


if __name__ == "__main__":
    serve(open_network)
