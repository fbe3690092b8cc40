"""The table of MIL's operations, and the conversions that they share.

Each operation is a function under its MIL name, its arguments the operation's inputs. Floating-point
tensors arrive as float32 whatever the program's type; the interpreter rounds the result. Parameters
(axes, modes, …) arrive as Python values. Meanings follow the MIL operation reference of coremltools
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

OPS: dict[str, Callable[..., Any]] = {}
"""MIL's name of an operation to the function that computes it: a tensor, or a tuple of them."""

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a function under its name, less an underscore that keeps it from hiding a builtin."""
    OPS[function.__name__.rstrip("_")] = function
    return function


def tensor(value: Any) -> Tensor:
    """Returns a tensor as it is, anything else as a tensor; Python floats become float32."""
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def ints(value: Any) -> list[int]:
    """Returns a parameter that is a vector of whole numbers; a single number counts as a vector."""
    return [int(n) for n in np.atleast_1d(np.asarray(value))]


def ones_unless(value: Any, length: int) -> list[int]:
    """Returns a vector parameter, or ones where it is not given."""
    return [1] * length if value is None else ints(value)
