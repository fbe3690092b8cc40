"""MIL's compressed constants and its 8-bit activations, decoded in numpy: part of the interpreter.

Core ML has two generations of these operations under the same names: iOS 16 packs them into flat
bytes, iOS 18 has tensors of 1 to 8 bits. Both are here, distinguished by their arguments.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.export.to_coreml.registry import DTYPES, op, tensor

Array = NDArray[Any]


def unpack_bits(packed: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """``count`` numbers of ``bits`` bits each from bytes, lowest bits first, across borders."""
    stream = np.unpackbits(packed.reshape(-1).view(np.uint8), bitorder="little", count=count * bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    numbers: NDArray[np.uint8] = (stream.reshape(count, bits) * weights).sum(axis=1, dtype=np.uint8)
    return numbers


def _numpy(value: Any) -> Array:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def _shape(value: Any) -> list[int]:
    return [int(n) for n in _numpy(value)]


def _along(values: Array, axis: int, rank: int) -> Array:
    """Returns a vector (or a number) so that it broadcasts along an axis of a tensor."""
    if not values.ndim:
        return values
    return values.reshape([-1 if n == axis % rank else 1 for n in range(rank)])


def _repeated(values: Array, shape: tuple[int, ...]) -> Array:
    """Returns a value per element from a value per block: repeats each axis up to its length."""
    for axis, length in enumerate(shape):
        values = np.repeat(values, length // values.shape[axis], axis=axis)
    return values


@op
def constexpr_affine_dequantize(quantized_data: Any, zero_point: Any, scale: Any, axis: Any) -> Tensor:
    data, steps, zero = (_numpy(v).astype(np.float32) for v in (quantized_data, scale, zero_point))
    zero, steps = (_along(v, int(axis), data.ndim) for v in (zero, steps))
    return torch.from_numpy((data - zero) * steps)


@op
def constexpr_blockwise_shift_scale(data: Any, scale: Any, offset: Any = None) -> Tensor:
    values, steps = _numpy(data).astype(np.float32), _numpy(scale).astype(np.float32)
    if offset is not None:
        values = values - _repeated(_numpy(offset).astype(np.float32), values.shape)
    return torch.from_numpy(values * _repeated(steps, values.shape))


@op
def constexpr_lut_to_dense(
    indices: Any, lut: Any, shape: Any = None, vector_axis: Any = None
) -> Tensor:
    table, numbers = _numpy(lut), _numpy(indices)
    if shape is not None:  # iOS 16: one table, indices in packed bits
        sides = _shape(shape)
        bits = int(np.log2(len(table)))
        return torch.from_numpy(table[unpack_bits(numbers, bits, int(np.prod(sides)))].reshape(sides))
    # iOS 18: a table [entries, vector] for each block of the weight
    entries, vector = table.shape[-2:]
    blocks = np.arange(int(np.prod(table.shape[:-2]))).reshape(table.shape[:-2])
    found = table.reshape(-1, entries, vector)[_repeated(blocks, numbers.shape), numbers]
    if vector == 1:
        return torch.from_numpy(found[..., 0])
    axis = int(vector_axis) % numbers.ndim
    moved = np.moveaxis(found, -1, axis + 1)
    sides = [n * vector if i == axis else n for i, n in enumerate(numbers.shape)]
    return torch.from_numpy(np.ascontiguousarray(moved).reshape(sides))


@op
def constexpr_sparse_to_dense(nonzero_data: Any, mask: Any, shape: Any = None) -> Tensor:
    values = _numpy(nonzero_data)
    if shape is None:  # iOS 18: the mask is a tensor of single bits
        kept = _numpy(mask).astype(bool)
    else:
        sides = _shape(shape)
        kept = unpack_bits(_numpy(mask), 1, int(np.prod(sides))).astype(bool).reshape(sides)
    dense = np.zeros(kept.shape, values.dtype)
    dense[kept] = values
    return torch.from_numpy(dense)


@op
def constexpr_cast(source_val: Any, output_dtype: str) -> Tensor:
    return tensor(source_val).to(DTYPES[output_dtype])


RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@op
def quantize(
    input: Tensor, scale: Any, output_dtype: str, zero_point: Any = None, axis: Any = None
) -> Tensor:
    steps, zero = _scale_and_zero(scale, zero_point, axis, input.ndim)
    low, high = RANGES[output_dtype]
    return (torch.round(input / steps) + zero).clamp(low, high).to(DTYPES[output_dtype])


@op
def dequantize(input: Any, scale: Any, zero_point: Any = None, axis: Any = None) -> Tensor:
    data = tensor(input)
    steps, zero = _scale_and_zero(scale, zero_point, axis, data.ndim)
    return (data.float() - zero) * steps


def _scale_and_zero(scale: Any, zero_point: Any, axis: Any, rank: int) -> tuple[Tensor, Tensor]:
    both = []
    for value in (scale, 0.0 if zero_point is None else zero_point):
        array = _numpy(value).astype(np.float32)
        both.append(torch.from_numpy(np.array(_along(array, 0 if axis is None else int(axis), rank))))
    return both[0], both[1]
