"""MIL's elementwise operations and reductions, in torch; see ``registry``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketsam.export.to_coreml.registry import DTYPES, OPS, ints, op, tensor

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": lambda x: F.softplus(x, threshold=50),
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.div,
    "sub": torch.sub,
}
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_l1_norm": lambda x, **k: x.abs().sum(**k),
    "reduce_l2_norm": lambda x, **k: x.square().sum(**k).sqrt(),
    "reduce_log_sum": lambda x, **k: x.sum(**k).log(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, **k: x.square().sum(**k),
}


def _of_one(compute: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    return lambda x: compute(tensor(x))


def _of_two(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda x, y: compute(tensor(x), tensor(y))


def _over_axes(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Any = None, keep_dims: bool = False) -> Tensor:
        dims = list(range(x.ndim)) if axes is None else ints(axes)
        return compute(x, dim=dims, keepdim=bool(keep_dims))

    return reduce


OPS.update({name: _of_one(compute) for name, compute in UNARY.items()})
OPS.update({name: _of_two(compute) for name, compute in BINARY.items()})
OPS.update({name: _over_axes(compute) for name, compute in REDUCTIONS.items()})


@op
def cast(x: Any, dtype: str) -> Tensor:
    return tensor(x).to(DTYPES[dtype])


@op
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(float(alpha), float(beta))


@op
def threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=float(alpha))


@op
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + float(epsilon))


@op
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + float(epsilon))


@op
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + float(epsilon))


@op
def elu(x: Tensor, alpha: float) -> Tensor:
    return F.elu(x, float(alpha))


@op
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return F.leaky_relu(x, float(alpha))


@op
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    return x * float(alpha) + float(beta)


@op
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(x, alpha)


@op
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return float(alpha) * torch.tanh(x * float(beta))


@op
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (x * float(alpha) + float(beta)).clamp(0, 1)


@op
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


@op
def softmax(x: Tensor, axis: int) -> Tensor:
    return x.softmax(int(axis))


@op
def select(cond: Any, a: Any, b: Any) -> Tensor:
    return torch.where(tensor(cond), tensor(a), tensor(b))


def _arg(x: Tensor, axis: int, keep_dims: bool, dtype: str, find: Callable[..., Tensor]) -> Tensor:
    return find(x, dim=int(axis), keepdim=bool(keep_dims)).to(DTYPES[dtype])


@op
def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    return _arg(x, axis, keep_dims, output_dtype, torch.argmax)


@op
def reduce_argmin(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    return _arg(x, axis, keep_dims, output_dtype, torch.argmin)
