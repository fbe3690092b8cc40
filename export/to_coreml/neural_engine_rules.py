"""Apple's published rules for the Neural Engine, checked on the graph of a Core ML or Core AI file.

The rules are those of apple/coreai-models, ``skills/skills/model-authoring/references`` (2026):
``neural_engine_rules.md`` and ``common_issues.md``. They were written for Core AI, and speak of the
same engine. Nothing here was measured on a device.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ALIGNMENT = 64
"""Bytes that the last axis of a tensor is filled up to."""
MAX_RANK = 5
LOWEST = -40_000.0
"""What stands for minus infinity in a mask; lower ones, and infinity itself, break softmax."""
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "select", "cond")
INDEXED = ("gather", "gather_nd", "gather_along_axis", "scatter", "scatter_nd")
DECOMPOSED_NORM = ("reduce_mean", "rsqrt", "reduce_l2_norm")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        shape: of it.
        bits: of an element.
        is_float: whether it holds floating-point numbers.
        name: ``input X`` or ``output X``; empty inside the graph.
    """

    shape: tuple[int, ...]
    bits: int
    is_float: bool
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation of a graph, with what the rules ask about.

    Attributes:
        kind: Core ML's name of it.
        inputs: tensors, constants among them, what it changes first.
        outputs: tensors.
        axis: that softmax runs along.
        last_axis: the axis that a transpose puts last.
        strides: of a convolution.
        lowest: the least number among its constants.
    """

    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axis: int = 0
    last_axis: int = -1
    strides: tuple[int, ...] = ()
    lowest: float = 0.0


@dataclass(frozen=True)
class Rule:
    """A rule for operations.

    Attributes:
        name: what is broken.
        remedy: what Apple says to do instead.
        broken: whether an operation breaks it.
    """

    name: str
    remedy: str
    broken: Callable[[Operation], bool]


def _rank(op: Operation) -> int:
    return max((len(tensor.shape) for tensor in (*op.inputs, *op.outputs)), default=0)


def _is_wide(op: Operation) -> bool:
    return op.kind != "cast" and any(tensor.is_float and tensor.bits == 32 for tensor in op.outputs)


def _has_heads(op: Operation) -> bool:
    shape = op.outputs[0].shape
    return op.kind == "matmul" and len(shape) == 4 and shape[1] > 1


def _is_spatial_softmax(op: Operation) -> bool:
    return op.kind == "softmax" and op.axis % len(op.outputs[0].shape) >= 2


def _moves_last_axis(op: Operation) -> bool:
    """Whether an operation copies a tensor with another last axis."""
    shape = op.outputs[0].shape
    if op.kind == "transpose":
        return op.last_axis % len(shape) != len(shape) - 1
    return op.kind == "reshape" and op.inputs[0].shape[-1:] != shape[-1:]


def _has_odd_stride(op: Operation) -> bool:
    return any(_without_factors(stride, 2, 3) != 1 for stride in op.strides)


def _without_factors(number: int, *factors: int) -> int:
    for factor in factors:
        while number % factor == 0:
            number //= factor
    return number


RULES = (
    Rule(f"a tensor of more than {MAX_RANK} axes", "reshape to fewer", lambda op: _rank(op) > MAX_RANK),
    Rule("computed in float32", "keep to float16, int8, int16", _is_wide),
    Rule("a linear layer", "a 1×1 convolution", lambda op: op.kind == "linear"),
    Rule("a norm in steps", "one layer_norm", lambda op: op.kind in DECOMPOSED_NORM),
    Rule("several heads in one product", "a product for each head, by einsum", _has_heads),
    Rule("softmax along height or width", "put the axis on the channels", _is_spatial_softmax),
    Rule("a copy with another last axis", "keep the last axis", _moves_last_axis),
    Rule("a comparison", "compute it before the network", lambda op: op.kind in COMPARISONS),
    Rule("an indexed read", "compute it before the network", lambda op: op.kind in INDEXED),
    Rule("minus infinity", f"{LOWEST:g}", lambda op: op.lowest < LOWEST),
    Rule("a stride with other factors than 2 and 3", "another stride", _has_odd_stride),
)
"""For operations. Tensors have two more: see ``lint``."""
NARROW = "a last axis of less than 64 bytes, or not a multiple"
SINGLE = "a last axis of one element"
TENSOR_REMEDY = "put a longer axis last, best a power of two"


def lint(operations: Iterable[Operation], inputs: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Returns what a graph breaks, by rule and kind of operation, the most padded bytes first.

    Each entry has ``rule``; ``where``, a kind of operation or the name of an input or output;
    ``count``; ``padded_bytes``, what the engine adds to the last axes of these tensors; and ``remedy``.

    Args:
        operations: of the graph, without constants.
        inputs: of the graph.
    """
    found: dict[tuple[str, str, str], list[int]] = {}

    def note(rule: str, where: str, remedy: str, padded: int) -> None:
        entry = found.setdefault((rule, where, remedy), [0, 0])
        entry[0] += 1
        entry[1] += padded

    for op in operations:
        for rule in RULES:
            if rule.broken(op):
                note(rule.name, op.kind, rule.remedy, 0)
        for tensor in op.outputs:
            _lint_tensor(tensor.name or op.kind, tensor, note)
    for tensor in inputs:
        _lint_tensor(tensor.name, tensor, note)
    entries = [
        {"rule": rule, "where": where, "count": count, "padded_bytes": padded, "remedy": remedy}
        for (rule, where, remedy), (count, padded) in found.items()
    ]
    return sorted(entries, key=lambda e: (-int(e["padded_bytes"]), str(e["rule"]), str(e["where"])))


def _lint_tensor(where: str, tensor: Tensor, note: Callable[[str, str, str, int], None]) -> None:
    """Notes a tensor whose last axis is filled up; numbers of no axis are none."""
    padded = padded_bytes(tensor.shape, tensor.bits // 8)
    if padded:
        note(SINGLE if tensor.shape[-1] == 1 else NARROW, where, TENSOR_REMEDY, padded)


def padded_bytes(shape: Sequence[int], size: int) -> int:
    """Returns the bytes that fill the last axis of a tensor up to ``ALIGNMENT``.

    Args:
        shape: of the tensor.
        size: bytes of an element.

    Example:
        >>> padded_bytes([1, 16, 32, 224, 7], 2)  # Apple's example: 14 bytes become 64
        5734400
    """
    if not shape:
        return 0
    return math.prod(shape[:-1]) * (-(shape[-1] * size) % ALIGNMENT)


def summarise(findings: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each rule that is broken: how often, by what, the padded bytes, the remedy."""
    lines = []
    for rule in dict.fromkeys(entry["rule"] for entry in findings):
        entries = [entry for entry in findings if entry["rule"] == rule]
        count, padded = (sum(entry[key] for entry in entries) for key in ("count", "padded_bytes"))
        kinds = ", ".join(entry["where"] for entry in entries[:4]) + (" …" if len(entries) > 4 else "")
        more = f", {padded / 1e6:.1f} MB of padding" if padded else ""
        lines.append(f"Neural Engine: {rule}: {count} ({kinds}){more}; better {entries[0]['remedy']}")
    return lines
