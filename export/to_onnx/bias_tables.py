"""TinyViT's attention biases as they were learnt: one for each offset, not for each pair of tokens."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@cache
def offsets(side: int) -> NDArray[np.int32]:
    """``[T, T]``: for two tokens of a window of side x side, which offset lies between them."""
    y, x = np.divmod(np.arange(side * side), side)
    codes = np.abs(y[:, None] - y) * side + np.abs(x[:, None] - x)
    return np.unique(codes, return_inverse=True)[1].reshape(codes.shape).astype(np.int32)


def factor(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32]] | None:
    """``[heads, T, T]`` as ``[heads, kinds]`` and the ``offsets`` that pick from it, exactly; None if
    the values are no such table."""
    if values.ndim != 3 or values.shape[1] != values.shape[2]:
        return None
    side = round(values.shape[1] ** 0.5)
    if side * side != values.shape[1]:
        return None
    index = offsets(side)
    _, first = np.unique(index, return_index=True)
    table = values.reshape(len(values), -1)[:, first]
    return (table, index) if np.array_equal(table[:, index], values) else None
