"""Damages, each chosen by a seeded ``Random``: of bytes, JSON, arrays, archives and ONNX graphs."""

import io
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 0.5, -0.5, 1.5, 59, 60, 61, 255),
    *(2**31, -(2**31), 2**40, 2**63, 10**9, 1e-320),
)
WILD = (float("nan"), float("inf"), -float("inf"), 1e308, 1e39, 10**400, -(10**400))
TEXTS = ("", "x", "0", "\0", "\ud800", "..", "../x", "/dev/zero", "NaN", "onnx", "float32", "é" * 300)
OTHER = (None, True, False, [], {}, [None], [[]], {"": {}}, [0] * 3, [[1, 2], [3]], {"file": "x"})
HOSTILE = (*NUMBERS, *WILD, *TEXTS, *OTHER)


METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def damage_bytes(random: Random, data: bytes) -> bytes:
    """Returns the bytes with one to four damages."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(changed) + 1)
        size = random.choice((1, 2, 4, 8, 64, 1024))
        kind = random.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[at : at + random.choice((size, len(changed)))]
        elif kind == 2:
            changed[at:at] = random.randbytes(size)
        elif kind == 3:
            changed[at : at + size] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif kind == 4:
            other = random.randrange(len(changed) + 1)
            changed[at : at + size] = changed[other : other + size]
        else:
            changed[at : at + size] = random.randbytes(size)
    return bytes(changed)


def damage_json(random: Random, value: Any) -> Any:
    """Changes one to three places of a JSON value, and returns it."""
    for _ in range(random.choice((1, 1, 2, 3))):
        parent, inner = None, value
        while isinstance(inner, dict | list) and inner and random.random() < 0.8:
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            parent, key = inner, random.choice(keys)
            inner = inner[key]
        if parent is None:
            return random.choice(HOSTILE) if random.random() < 0.1 else value
        kind = random.randrange(5)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(inner, int | float) and not isinstance(inner, bool):
            near = (inner + 1, -inner, inner * 2**20, str(inner), inner // 2, [inner])
            parent[key] = random.choice(near)
        elif kind == 2 and isinstance(parent, list):
            parent.append(inner)
        elif kind == 3 and isinstance(parent, dict):
            parent[random.choice(TEXTS)] = parent.pop(key)
        else:
            parent[key] = random.choice(HOSTILE)
    return value


def damage_graph(random: Random, graph: Any) -> None:
    """Changes a node, a weight or a shape of an ONNX graph."""
    node, weight = random.choice(graph.node), random.choice(graph.initializer)
    tensor = random.choice([*graph.input, *graph.output]).type.tensor_type
    kind, size = random.randrange(9), random.choice((0, 1, 2, 3, 5, -1, 2**31, 2**40, 2**62))
    if kind == 0:
        kinds = [n.op_type for n in graph.node]
        node.op_type = random.choice([*kinds, "Loop", "x", "Shape", "Sqrt", "Cast"])
    elif kind == 1:
        graph.node.remove(node)
    elif kind == 2 and node.input:
        names = [weight.name for weight in graph.initializer]
        node.input[random.randrange(len(node.input))] = random.choice(names)
    elif kind == 3 and node.attribute:
        attribute = random.choice(node.attribute)
        attribute.i = size
        attribute.ints[:] = [size for _ in attribute.ints]
    elif kind == 4 and weight.dims:
        weight.dims[random.randrange(len(weight.dims))] = size
    elif kind == 5:
        weight.data_type = random.randrange(24)
    elif kind == 6:
        weight.raw_data = damage_bytes(random, weight.raw_data)
    elif kind == 7:
        random.choice(tensor.shape.dim).dim_value = size
    else:
        tensor.elem_type = random.randrange(24)


def damaged_npz(random: Random, arrays: dict[str, np.ndarray]) -> bytes:
    """Returns an archive with a damage: of an array, of a header, of an entry, or of bytes."""
    arrays, name = dict(arrays), random.choice(list(arrays))
    kind = random.choice((0, 0, 0, 1, 2, 3, 4, 5))
    if kind == 0:
        arrays[name] = damage_array(random, arrays[name])
    elif kind == 1:
        del arrays[name]
    stream = io.BytesIO()
    (np.savez if random.random() < 0.5 else np.savez_compressed)(stream, **arrays)
    if kind == 2:
        return damage_bytes(random, stream.getvalue())
    if kind < 3:
        return stream.getvalue()
    other = io.BytesIO()
    method = random.choice(METHODS)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(other, "w", method) as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry == f"{name}.npy":
                size = str(random.choice((10**12, -1, 0, 2**31, 1.5, "x"))).encode()
                header = data[:128].replace(b"'shape': (", b"'shape': (" + size + b", ")
                data = damage_bytes(random, data) if kind == 3 else header + data[128:]
            new.writestr(random.choice((entry, "x", f"../{entry}")) if kind == 5 else entry, data)
    return other.getvalue()


def damage_array(random: Random, array: np.ndarray) -> Any:
    """Returns an array of another shape, type or values."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: array[None],
        lambda: array.ravel(),
        lambda: array[..., :0],
        lambda: array.astype(random.choice(("f2", "f8", "i1", "i8", "u2", "?", "U3", "c8", "f4", "O"))),
        lambda: np.full_like(array, "x" if array.dtype.kind == "U" else 1) * 1,
        lambda: np.array(random.choice((*NUMBERS[:13], *WILD[:3], *TEXTS[1:3]))),
        lambda: np.full(array.shape, random.choice((*WILD[:5], -1, 0, 2**31, 10**9))),
        lambda: np.concatenate([array, array]) if array.ndim else array,
        lambda: array.T,
        lambda: array.view(array.dtype.newbyteorder()),
    )
    try:
        return random.choice(kinds)()
    except (IndexError, TypeError, ValueError, OverflowError):  # a damage that NumPy itself refuses
        return np.zeros(3)
