"""Apple's rules for the Neural Engine, see ``neural_engine_rules``, on a Core AI program.

Runs in Apple's environment.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coreai.authoring.asset import AIModelAsset
from numpy.typing import NDArray

from pocketsam.export.to_coreai.runner import MAIN
from pocketsam.export.to_coreml import neural_engine_rules as rules

KINDS = {"batch_matmul": "matmul", "conv2d": "conv", "conv_transpose2d": "conv_transpose"}
"""Core ML's names of operations."""
PREFIXES = ("coreai.", "decomposable.", "broadcasting_")
FLOATS = ("f16", "bf16", "f32", "f64")
CONSTANT, OUTPUT = "coreai.constant", "coreai.output"


def lint(asset: AIModelAsset, inputs: Sequence[str], outputs: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what ``main`` breaks; see ``neural_engine_rules.lint``.

    Args:
        asset: a file.
        inputs: names of its inputs.
        outputs: names of its outputs.
    """
    program = asset.program  # without it the operations are gone
    (block,) = program._get_graph(MAIN).regions[0].blocks
    operations = [each.operation for each in block.operations]
    (end,) = (operation for operation in operations if operation.name == OUTPUT)
    results = list(zip(outputs, end.operands, strict=True))
    computed = [op for op in operations if op.name != OUTPUT and not _makes_weights(op)]
    found = [_operation(op, results) for op in computed]
    ends = zip(inputs, block.arguments, strict=True)
    return rules.lint(found, [_tensor(value, f"input {name}") for name, value in ends])


def _makes_weights(operation: Any) -> bool:
    """Whether an operation is a constant, or makes one of constants, as of compressed weights."""
    return all(getattr(value.owner, "name", None) == CONSTANT for value in operation.operands)


def kind_of(operation: Any) -> str:
    """Returns the name of an operation, Core ML's where it has one."""
    name: str = operation.name
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return KINDS.get(name, name)


def _operation(operation: Any, results: list[tuple[str, Any]]) -> rules.Operation:
    """Returns an operation as the rules read it."""
    kind, operands = kind_of(operation), list(operation.operands)
    whole = [array.ravel() for value in operands if (array := _constant(value)) is not None]
    numbers = [int(n) for array in whole if array.dtype.kind in "iu" for n in array]
    return rules.Operation(
        kind=kind,
        inputs=tuple(map(_tensor, operands)),
        outputs=tuple(
            _tensor(value, next((f"output {name}" for name, other in results if other == value), ""))
            for value in operation.results
        ),
        axis=numbers[0] if kind == "softmax" else 0,
        last_axis=numbers[-1] if kind == "transpose" else -1,
        strides=tuple(numbers[:2]) if kind in ("conv", "conv_transpose") else (),
        lowest=min((float(a.min()) for a in whole if a.dtype.kind == "f" and a.size), default=0.0),
    )


def _constant(value: Any) -> NDArray[Any] | None:
    """Returns the numbers of a constant; None for what is computed, and for compressed weights."""
    owner = value.owner
    if getattr(owner, "name", None) != CONSTANT:
        return None
    try:
        return np.array(owner.attributes["value"])
    except (TypeError, ValueError):
        return None


def _tensor(value: Any, name: str = "") -> rules.Tensor:
    kind = value.type.element_type
    is_float = str(kind) in FLOATS
    return rules.Tensor(tuple(value.type.shape), kind.width, is_float, name)
