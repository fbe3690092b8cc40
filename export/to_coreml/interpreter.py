"""A reference interpreter of Core ML's ML programs: numerics without a Mac.

Core ML predicts on Apple's systems only. This module reads a *saved* ``.mlpackage`` back (coremltools
parses the file) and executes its operations one by one in torch, compressed constants included.
``docs/verification.md`` says what it can and cannot show.
"""

import json
import logging
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.errors import ConversionError
from pocketsam.export.to_coreml import (  # noqa: F401  they register their operations
    constants,
    elementwise_operations,
    layer_operations,
    shape_operations,
)

logging.getLogger("coremltools").setLevel(logging.ERROR)  # else it names every library of a Mac
import coremltools as ct  # noqa: E402
from coremltools.converters.mil.frontend.milproto.load import load as parse  # noqa: E402
from coremltools.converters.mil.mil import Program, types  # noqa: E402

from pocketsam.export.to_coreml.registry import OPS  # noqa: E402

Arrays = dict[str, NDArray[Any]]
Observer = Callable[[str, Tensor], None]

INTERMEDIATES_KEY = "com.github.pocketsam.stages"
"""Key of a package's metadata: JSON, names of intermediate outputs to names of tensors."""


class MilProgram:
    """An ML program that runs: dict of arrays in, dict of arrays out.

    Args:
        program: what coremltools parsed or built.
        name: used in error messages.

    Raises:
        ConversionError: it holds an operation that is not simulated; the error names it.
    """

    def __init__(self, program: Program, name: str = "ML program") -> None:
        self.name = name
        function = program.functions["main"]
        self.inputs = {key: tuple(var.shape) for key, var in function.inputs.items()}
        self.outputs = [var.name for var in function.outputs]
        self.operations = [op for op in function.operations if op.op_type != "const"]
        unknown = Counter(op.op_type for op in self.operations if op.op_type not in OPS)
        if unknown:
            listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
            raise ConversionError(f"{name}: operations that mil_reference does not simulate: {listed}")
        self.shapes = {var.name: tuple(var.shape) for op in function.operations for var in op.outputs}
        self._input_dtypes = {key: torch_dtype(var) for key, var in function.inputs.items()}
        self._last_use = {
            var.name: number
            for number, op in enumerate(self.operations)
            for var in flat_inputs(op.inputs.values())
        }
        self._constants: dict[str, Any] = {}
        for op in self.operations:
            for var in flat_inputs(op.inputs.values()):
                if var.op is not None and var.op.op_type == "const" and var.name not in self._constants:
                    self._constants[var.name] = _constant(var.val)
        for op in self.operations:
            if op.op_type.startswith("constexpr_"):  # decoded once, not at every call
                self._constants[op.outputs[0].name] = self._compute(op, self._constants, True)[0]
        self.operations = [op for op in self.operations if not op.op_type.startswith("constexpr_")]

    @torch.inference_mode()
    def __call__(
        self,
        feeds: Mapping[str, NDArray[Any]],
        also: Iterable[str] = (),
        observe: Observer | None = None,
        rounding: bool = True,
    ) -> Arrays:
        """Runs the program.

        Args:
            feeds: every input by name, of the program's shapes. Others are ignored.
            also: names of inner tensors to return as well.
            observe: called with the name and value of every computed floating-point tensor.
            rounding: False computes float16 operations in float32 throughout, which shows the
                magnitudes that float16 would have to hold.

        Returns:
            The outputs, and what ``also`` names as far as it exists; floats come as float32.

        Raises:
            ConversionError: an input is missing or of another shape, or an operation fails.
        """
        values: dict[str, Any] = {}
        for key, shape in self.inputs.items():
            if key not in feeds or feeds[key].shape != shape:
                got = f"{list(feeds[key].shape)}" if key in feeds else "nothing"
                raise ConversionError(f"{self.name}: input {key} wants {list(shape)}, got {got}")
            array = torch.from_numpy(np.ascontiguousarray(feeds[key]))
            values[key] = array.to(self._input_dtypes[key])
        kept = {*self.outputs, *also}
        scope = ChainMap(values, self._constants)
        for number, op in enumerate(self.operations):
            for var, value in zip(op.outputs, self._compute(op, scope, rounding), strict=True):
                values[var.name] = value
                if observe is not None and value.is_floating_point():
                    observe(var.name, value)
            for var in flat_inputs(op.inputs.values()):
                if var.name in values and self._last_use[var.name] == number and var.name not in kept:
                    del values[var.name]
        return {key: _to_numpy(scope[key]) for key in (*self.outputs, *also) if key in scope}

    def count_operations(self) -> dict[str, int]:
        """How many operations there are of each kind, constants aside."""
        return dict(sorted(Counter(op.op_type for op in self.operations).items()))

    def _compute(self, op: Any, values: Mapping[str, Any], rounding: bool) -> list[Tensor]:
        arguments = {}
        for key, given in op.inputs.items():
            if isinstance(given, list | tuple):
                arguments[key] = [_wide(values[var.name]) for var in given]
            elif given is not None:
                arguments[key] = _wide(values[given.name])
        try:
            results = OPS[op.op_type](**arguments)
        except Exception as error:  # torch raises what it likes for a shape that does not fit
            reason = str(error).splitlines()[0]
            raise ConversionError(f"{self.name}: {op.op_type} {op.name!r}: {reason}") from error
        rounded = []
        for var, result in zip(
            op.outputs, results if isinstance(results, tuple) else (results,), strict=True
        ):
            wanted = torch_dtype(var)
            if wanted.is_floating_point and not rounding:
                wanted = torch.float32
            if tuple(result.shape) != tuple(var.shape):
                raise ConversionError(
                    f"{self.name}: {op.op_type} {op.name!r} gives {list(result.shape)}, "
                    f"the program says {list(var.shape)}"
                )
            rounded.append(result.to(wanted))
        return rounded


def number_operations(operations: Iterable[Any]) -> dict[int, tuple[str, int]]:
    """``id`` of each operation to its kind and its number within the kind; no casts, no constants.

    That names an operation across conversions, which names and casts do not survive.
    """
    seen: Counter[str] = Counter()
    numbers = {}
    for op in operations:
        if op.op_type not in ("const", "cast"):
            numbers[id(op)] = (op.op_type, seen[op.op_type])
            seen[op.op_type] += 1
    return numbers


def load_package(path: Path) -> tuple[MilProgram, dict[str, str]]:
    """Reads a saved ``.mlpackage``: the program, and for each intermediate output its tensor's name.

    Raises:
        ConversionError: not an ML program, damaged, or with an operation that is not simulated.
    """
    try:
        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        if spec.WhichOneof("Type") != "mlProgram":
            raise ConversionError(f"{path}: a {spec.WhichOneof('Type')}, not an ML program")
        program = parse(
            spec,
            specification_version=spec.specificationVersion,
            file_weights_dir=model.weights_dir,
        )
        intermediates = json.loads(spec.description.metadata.userDefined.get(INTERMEDIATES_KEY, "{}"))
    except ConversionError:
        raise
    except Exception as error:  # coremltools raises a dozen unrelated classes at a damaged package
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path}: cannot be read: {reason}") from error
    return MilProgram(program, str(path)), intermediates


def flat_inputs(inputs: Iterable[Any]) -> Iterable[Any]:
    """An operation's inputs, lists of tensors taken apart."""
    for given in inputs:
        if isinstance(given, list | tuple):
            yield from given
        elif given is not None:
            yield given


def torch_dtype(var: Any) -> torch.dtype:
    """What torch calls the type of a program's tensor."""
    kind = types.nptype_from_builtin(var.dtype)
    return torch.from_numpy(np.empty(0, np.dtype(kind))).dtype


def _constant(value: Any) -> Any:
    """A number, word or flag as it is; an array as a tensor."""
    if isinstance(value, np.ndarray) and value.ndim:
        return torch.from_numpy(np.ascontiguousarray(value))
    return value


def _wide(value: Any) -> Any:
    """float16 to float32: operations compute in single precision, and ``_compute`` rounds."""
    if isinstance(value, Tensor) and value.dtype == torch.float16:
        return value.float()
    if isinstance(value, np.float16):
        return np.float32(value)
    return value


def _to_numpy(value: Any) -> NDArray[Any]:
    array: NDArray[Any] = _wide(value).numpy()
    return array
