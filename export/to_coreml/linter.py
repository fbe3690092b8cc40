"""Apple's rules for the Neural Engine, see ``neural_engine_rules``, on an ML program."""

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types

from pocketsam.export.to_coreml import neural_engine_rules as rules
from pocketsam.export.to_coreml.interpreter import MilProgram, flat_inputs, torch_dtype

ENGINE_BITS = 16
"""Of an input's elements: float32 becomes float16 at the door."""


def lint(program: MilProgram) -> list[dict[str, Any]]:
    """Returns what a program breaks; see ``neural_engine_rules.lint``."""
    inputs = [
        rules.Tensor(tuple(shape), ENGINE_BITS, True, f"input {name}")
        for name, shape in program.inputs.items()
    ]
    return rules.lint([_operation(op, program) for op in program.operations], inputs)


def _operation(op: Any, program: MilProgram) -> rules.Operation:
    """Returns an operation of coremltools as the rules read it."""
    kind: str = op.op_type
    names = sorted(op.inputs, key=lambda name: name != "x")
    every = flat_inputs(op.inputs[name] for name in names)
    given = [var for var in every if var.dtype is not types.str]
    constants = [np.asarray(var.val) for var in given if var.val is not None]
    strides = op.inputs.get("strides") if kind in ("conv", "conv_transpose") else None
    return rules.Operation(
        kind=kind,
        inputs=tuple(_tensor(var, program) for var in given),
        outputs=tuple(_tensor(var, program) for var in op.outputs),
        axis=int(op.inputs["axis"].val) if kind == "softmax" else 0,
        last_axis=int(op.inputs["perm"].val[-1]) if kind == "transpose" else -1,
        strides=() if strides is None or strides.val is None else tuple(map(int, strides.val)),
        lowest=min((float(a.min()) for a in constants if a.dtype.kind == "f" and a.size), default=0.0),
    )


def _tensor(var: Any, program: MilProgram) -> rules.Tensor:
    dtype = torch_dtype(var)
    name = f"output {var.name}" if var.name in program.outputs else ""
    return rules.Tensor(tuple(map(int, var.shape)), dtype.itemsize * 8, dtype.is_floating_point, name)
