"""Lists the constants of an ``.aimodel``; runs in Core AI's environment.

``python -m … FILE LIST``: ``LIST`` becomes an ``.npz`` with the constants of ``main``, in the order of
the program. ``engine_weights`` reads it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from coreai._compiler.ir import DenseElementsAttr, DenseResourceElementsAttr
from coreai.authoring.asset import AIModelAsset
from numpy.typing import NDArray

from pocketsam.export.to_coreai.runner import MAIN

TYPES = {"f32": np.float32, "f16": np.float16, "si8": np.int8, "ui8": np.uint8, "si32": np.int32}
"""Others are no weights, or, as the indices of 6 bits into a palette, no type of numpy's."""
RESOURCE = re.compile(r'(\w+): "0x([0-9A-F]+)"')
"""A large constant in the text of a program: its alignment in 4 bytes, then its values."""
ALIGNMENT = 4


def list_constants(program: Any) -> Iterator[NDArray[Any]]:
    """Yields the constants of a program that differ within themselves: others are kept as one value."""
    text = str(program._module)  # nothing else gives the values of the large ones
    resources = {match[1]: match[2] for match in RESOURCE.finditer(text)}
    for operation in program._get_graph(MAIN).regions[0].blocks[0].operations:
        if operation.operation.name != "coreai.constant":
            continue
        value = operation.operation.attributes["value"]
        kind, shape = TYPES.get(str(value.type.element_type)), value.type.shape
        if kind is None:
            continue
        if DenseResourceElementsAttr.isinstance(value):
            name = re.fullmatch(r"dense_resource<(\w+)> : .*", str(value))
            data = bytes.fromhex(resources[name[1]])[ALIGNMENT:]  # type: ignore[index]
            yield np.frombuffer(data, kind).reshape(shape)
        elif not DenseElementsAttr(value).is_splat:
            yield np.array(DenseElementsAttr(value)).astype(kind)


def main(file: str, output: str) -> None:
    """Writes the list."""
    constants = list_constants(AIModelAsset.load(Path(file)).program)
    np.savez(output, **{str(number): array for number, array in enumerate(constants)})  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
