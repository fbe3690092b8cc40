"""MIL's layers: products, attention, convolutions, pooling, norms, in torch; see ``registry``."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketsam.export.to_coreml.registry import ints, ones_unless, op


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
    *,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Tensor:
    axes = x.ndim - 2
    stride, dilation = (ones_unless(n, axes) for n in (strides, dilations))
    pads = _padding(x.shape[2:], weight.shape[2:], stride, dilation, pad_type, pad)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    return convolve(_pad_spatial(x, pads), weight, bias, stride, 0, dilation, int(groups))


@op
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> Tensor:
    axes = x.ndim - 2
    stride, dilation = (ones_unless(n, axes) for n in (strides, dilations))
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
    *,
    strides: Any,
    pad_type: str,
    pad: Any,
    ceil_mode: bool,
    outside: float,
) -> tuple[Tensor, list[int], list[int]]:
    """Returns the padded input, the window and the strides."""
    window = ints(kernel_sizes)
    stride = ones_unless(strides, len(window))
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
    options: dict[str, Any] = {
        "strides": strides,
        "pad_type": pad_type,
        "pad": pad,
        "ceil_mode": ceil_mode,
    }
    padded, window, stride = _pool(x, kernel_sizes, outside=-math.inf, **options)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(window)]
    return pool(padded, window, stride)


@op
def avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    *,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    options: dict[str, Any] = {
        "strides": strides,
        "pad_type": pad_type,
        "pad": pad,
        "ceil_mode": ceil_mode,
    }
    padded, window, stride = _pool(x, kernel_sizes, outside=0.0, **options)
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(window)]
    total = pool(padded, window, stride)
    if not exclude_padding_from_average:
        return total
    inside, _, _ = _pool(torch.ones_like(x), kernel_sizes, outside=0.0, **options)
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
