"""MIL's operations that move, select and create values, in torch; see ``registry``."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketsam.export.to_coreml.registry import ints, ones_unless, op, tensor


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
    *,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    array = tensor(x)
    rank = array.ndim
    steps = ones_unless(stride, rank)

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
