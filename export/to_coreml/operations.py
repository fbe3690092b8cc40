"""The operations of Core ML's MIL, in torch: what ``mil_reference`` executes.

Each function is one operation under its MIL name, its arguments the operation's inputs. Floating-point
tensors arrive as float32 whatever the program's type; ``mil_reference`` rounds the result. Parameters
(axes, modes, …) arrive as Python values. Meanings follow the MIL operation reference of coremltools
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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


def _register_elementwise() -> None:
    unary: dict[str, Callable[[Tensor], Tensor]] = {
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
    binary: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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

    def of_one(compute: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
        return lambda x: compute(tensor(x))

    def of_two(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
        return lambda x, y: compute(tensor(x), tensor(y))

    OPS.update({name: of_one(compute) for name, compute in unary.items()})
    OPS.update({name: of_two(compute) for name, compute in binary.items()})


def _register_reductions() -> None:
    reductions: dict[str, Callable[..., Tensor]] = {
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

    def over_axes(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def reduce(x: Tensor, axes: Any = None, keep_dims: bool = False) -> Tensor:
            dims = list(range(x.ndim)) if axes is None else ints(axes)
            return compute(x, dim=dims, keepdim=bool(keep_dims))

        return reduce

    OPS.update({name: over_axes(compute) for name, compute in reductions.items()})


def tensor(value: Any) -> Tensor:
    """A tensor as it is, anything else as a tensor; Python floats become float32."""
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def ints(value: Any) -> list[int]:
    """A parameter that is a vector of whole numbers (a single one counts as a vector)."""
    return [int(n) for n in np.atleast_1d(np.asarray(value))]


def _ones_unless(value: Any, length: int) -> list[int]:
    return [1] * length if value is None else ints(value)


_register_elementwise()
_register_reductions()


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


@op
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@op
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    x = x.transpose(-1, -2) if transpose_x else x
    y = y.transpose(-1, -2) if transpose_y else y
    return x @ y


@op
def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@op
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _padding(
    size: Sequence[int],
    window: Sequence[int],
    strides: list[int],
    dilations: list[int],
    pad_type: str,
    pad: Any,
) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis, as a convolution's or pooling's ``pad_type`` says."""
    if pad_type == "valid":
        return [(0, 0)] * len(size)
    if pad_type == "custom":
        flat = ints(pad)
        return list(zip(flat[::2], flat[1::2], strict=True))
    pads = []
    for length, kernel, stride, dilation in zip(size, window, strides, dilations, strict=True):
        span = (kernel - 1) * dilation + 1
        total = max((math.ceil(length / stride) - 1) * stride + span - length, 0)
        less, more = total // 2, total - total // 2
        pads.append({"same": (less, more), "same_lower": (more, less)}[pad_type])
    return pads


def _pad_spatial(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    if not any(map(any, pads)):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


@op
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Tensor:
    axes = x.ndim - 2
    stride, dilation = (_ones_unless(n, axes) for n in (strides, dilations))
    pads = _padding(x.shape[2:], weight.shape[2:], stride, dilation, pad_type, pad)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    return convolve(_pad_spatial(x, pads), weight, bias, stride, 0, dilation, int(groups))


@op
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Tensor:
    axes = x.ndim - 2
    stride, dilation = (_ones_unless(n, axes) for n in (strides, dilations))
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    full = transposed(x, weight, bias, stride, 0, 0, int(groups), dilation)
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"conv_transpose with pad_type {pad_type!r}")
    flat = ints(pad) if pad_type == "custom" else [0] * 2 * axes
    for axis in range(axes):
        before, after = flat[2 * axis : 2 * axis + 2]
        length = full.shape[2 + axis] - before - after
        if output_shape is not None:
            wanted = ints(output_shape)[2 + axis]
            full = _pad_spatial(
                full, [(0, max(0, wanted - length)) if a == axis else (0, 0) for a in range(axes)]
            )
            length = wanted
        full = full.narrow(2 + axis, before, length)
    return full


def _pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any,
    pad_type: str,
    pad: Any,
    ceil_mode: bool,
    outside: float,
) -> tuple[Tensor, list[int], list[int]]:
    """The padded input, the window and the strides."""
    window = ints(kernel_sizes)
    stride = _ones_unless(strides, len(window))
    pads = _padding(x.shape[2:], window, stride, [1] * len(window), pad_type, pad)
    if ceil_mode:
        pads = [
            (before, after + (-(length + before + after - kernel)) % step)
            for (before, after), length, kernel, step in zip(
                pads, x.shape[2:], window, stride, strict=True
            )
        ]
    return _pad_spatial(x, pads, outside), window, stride


@op
def max_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    ceil_mode: bool = False,
) -> Tensor:
    padded, window, stride = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode, -math.inf)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(window)]
    return pool(padded, window, stride)


@op
def avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    padded, window, stride = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(window)]
    total = pool(padded, window, stride)
    if not exclude_padding_from_average:
        return total
    inside, _, _ = _pool(torch.ones_like(x), kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    return total / pool(inside, window, stride)


@op
def layer_norm(
    x: Tensor,
    axes: Any = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    dims = sorted(n % x.ndim for n in (range(x.ndim) if axes is None else ints(axes)))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + float(epsilon))
    shape = [x.shape[n] if n in dims else 1 for n in range(x.ndim)]
    if gamma is not None:
        out = out * gamma.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


@op
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


@op
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


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


@op
def reshape(x: Any, shape: Any) -> Tensor:
    x = tensor(x)
    wanted = ints(shape)
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(wanted)])


@op
def transpose(x: Any, perm: Any) -> Tensor:
    return tensor(x).permute(ints(perm))


@op
def expand_dims(x: Any, axes: Any) -> Tensor:
    x = tensor(x)
    rank = x.ndim + len(ints(axes))
    for axis in sorted(n % rank for n in ints(axes)):
        x = x.unsqueeze(axis)
    return x


@op
def squeeze(x: Any, axes: Any = None) -> Tensor:
    return tensor(x).squeeze() if axes is None else tensor(x).squeeze(ints(axes))


@op
def concat(values: Sequence[Any], axis: int, interleave: bool = False) -> Tensor:
    tensors = [tensor(value) for value in values]
    if not interleave:
        return torch.cat(tensors, int(axis))
    axis = int(axis) % tensors[0].ndim
    return torch.stack(tensors, axis + 1).flatten(axis, axis + 1)


@op
def stack(values: Sequence[Any], axis: int) -> Tensor:
    return torch.stack([tensor(value) for value in values], int(axis))


@op
def split(
    x: Tensor, num_splits: int | None = None, split_sizes: Any = None, axis: int = 0
) -> tuple[Tensor, ...]:
    length = x.shape[int(axis)]
    sizes = [length // int(num_splits)] * int(num_splits) if split_sizes is None else ints(split_sizes)  # type: ignore[arg-type]
    return torch.split(x, sizes, int(axis))


@op
def slice_by_index(
    x: Any,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    array = tensor(x)
    rank = array.ndim
    steps = _ones_unless(stride, rank)

    def flags(mask: Any) -> list[bool]:
        return (
            [bool(flag) for flag in np.atleast_1d(np.asarray(mask))]
            if mask is not None
            else [False] * rank
        )

    index: list[Any] = []
    for axis, (first, last, step, open_first, open_last, one) in enumerate(
        zip(
            ints(begin),
            ints(end),
            steps,
            flags(begin_mask),
            flags(end_mask),
            flags(squeeze_mask),
            strict=True,
        )
    ):
        if one:
            index.append(first)
            continue
        chosen = range(array.shape[axis])[
            None if open_first else first : None if open_last else last : step
        ]
        index.append(
            torch.tensor(list(chosen), dtype=torch.long)
            if step < 0
            else slice(chosen.start, chosen.stop, step)
        )
    for axis in reversed([a for a, one in enumerate(index) if isinstance(one, Tensor)]):
        array = array.index_select(axis, index[axis])
        index[axis] = slice(None)
    return array[tuple(index)]


@op
def slice_by_size(x: Any, begin: Any, size: Any) -> Tensor:
    array = tensor(x)
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        array = array.narrow(axis, first, array.shape[axis] - first if count == -1 else count)
    return array


@op
def pad(x: Any, pad: Any, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    array, flat = tensor(x), ints(pad)
    pairs = [(0, 0)] * (array.ndim - len(flat) // 2) + list(zip(flat[::2], flat[1::2], strict=True))
    if mode == "constant":
        return F.pad(array, [n for pair in reversed(pairs) for n in pair], value=float(constant_val))
    kind = {"reflect": "reflect", "replicate": "edge"}[mode]
    return torch.from_numpy(np.pad(array.numpy(), pairs, kind))  # type: ignore[call-overload]


@op
def tile(x: Any, reps: Any) -> Tensor:
    return tensor(x).repeat(ints(reps))


@op
def gather(
    x: Any, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    array, index = tensor(x), tensor(indices).long()
    axis, batch = int(axis) % array.ndim, int(batch_dims)
    index = torch.where(index < 0, index + array.shape[axis], index)
    if not batch:
        found = array.index_select(axis, index.reshape(-1))
        return found.reshape(*array.shape[:axis], *index.shape, *array.shape[axis + 1 :])
    rows = [
        gather(one, which, axis - batch)
        for one, which in zip(array.flatten(0, batch - 1), index.flatten(0, batch - 1), strict=True)
    ]
    return torch.stack(rows).reshape(*array.shape[:batch], *rows[0].shape)


@op
def gather_along_axis(x: Any, indices: Any, axis: int = 0, validate_indices: bool = False) -> Tensor:
    array, index = tensor(x), tensor(indices).long()
    index = torch.where(index < 0, index + array.shape[int(axis)], index)
    return torch.gather(array, int(axis), index)


@op
def shape(x: Any) -> Tensor:
    return torch.tensor(tensor(x).shape, dtype=torch.int32)


@op
def fill(shape: Any, value: Any = 0.0) -> Tensor:
    return torch.full(ints(shape), tensor(value).item(), dtype=tensor(value).dtype)


@op
def range_1d(end: Any, start: Any, step: Any) -> Tensor:
    return torch.arange(tensor(start).item(), tensor(end).item(), tensor(step).item()).to(
        tensor(end).dtype
    )


@op
def one_hot(
    indices: Any, one_hot_vector_size: int, axis: int = -1, on_value: Any = 1, off_value: Any = 0
) -> Tensor:
    hot = F.one_hot(tensor(indices).long(), int(one_hot_vector_size)).bool()
    return torch.where(hot.movedim(-1, int(axis)), tensor(on_value), tensor(off_value))


@op
def reverse(x: Any, axes: Any = None) -> Tensor:
    array = tensor(x)
    return array.flip(list(range(array.ndim)) if axes is None else ints(axes))


@op
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    array = x.flip(int(axis)) if reverse else x
    total = array.cumsum(int(axis))
    total = total - array if exclusive else total
    return total.flip(int(axis)) if reverse else total


@op
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    inside = torch.ones(x.shape[-2:], dtype=torch.bool)
    if int(lower) >= 0:
        inside &= rows - columns <= int(lower)
    if int(upper) >= 0:
        inside &= columns - rows <= int(upper)
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype))


@op
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, int(upscale_factor))


@op
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1
) -> Tensor:
    factors = (float(scale_factor_height), float(scale_factor_width))
    return F.interpolate(x, scale_factor=factors, mode="nearest")


@op
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Any = 1,
    scale_factor_width: Any = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    if half_pixel_centers is not None and bool(half_pixel_centers) == bool(align_corners):
        raise ValueError("upsample_bilinear with half_pixel_centers equal to align_corners")
    size = [
        math.floor(x.shape[2] * float(scale_factor_height)),
        math.floor(x.shape[3] * float(scale_factor_width)),
    ]
    return F.interpolate(x, size, mode="bilinear", align_corners=bool(align_corners))
