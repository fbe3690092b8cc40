"""What a user may choose of an export, besides the target."""

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Literal

from pocketsam.errors import UsageError

MAX_POINTS, MAX_PROMPTS = 1024, 256
LONGEST_PROMPT = 10
"""Points of the longest prompt of the parity suite, its padding among them."""
OPSETS = range(15, 21)
"""Operator sets that ONNX files are written for; from 20 on there is Gelu."""


@dataclass(frozen=True)
class Options:
    """Choices of one export. ``Target.options`` and ``Precision.options`` say who reads which.

    Attributes:
        precision: one that the target has.
        max_points: points of a prompt in a decoder of static shapes (a box takes two);
            ``check_options`` wants ``LONGEST_PROMPT`` or more.
        prompts_per_call: prompts that a decoder of static shapes answers at once.
        input: ``tensor``: the encoder takes a normalised tensor; ``image``: a picture (0..255), which
            it normalises itself.
        deployment_target: oldest system that must run the file, such as ``iOS17``; None: iOS16, or what
            the precision needs.
        timeout: seconds that one run of an outside converter may take.
        min_miou: mean IoU that int8 masks must have with float32's, 0..1.
        min_speedup: how many times as fast as float32 int8 must be on this machine.
        weight_bits: bits that the weights of int8 use: 7, or 8 for CPUs that do not saturate.
        opset: operator set of an ONNX file, 15 to 20; None: the exporter's, with the fewest operators.
        disabled_passes: names from ``to_onnx.passes.PASSES`` to leave out.

    Raises:
        UsageError: a value out of range.
    """

    precision: str = "fp32"
    _: KW_ONLY
    max_points: int = 16
    prompts_per_call: int = 1
    input: Literal["tensor", "image"] = "tensor"
    deployment_target: str | None = None
    timeout: float = 1800.0
    min_miou: float = 0.98
    min_speedup: float = 1.0
    weight_bits: int = 7
    opset: int | None = None
    disabled_passes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            *(
                (name, _is_whole(getattr(self, name), most), f"a whole number from 1 to {most}")
                for name, most in (("max_points", MAX_POINTS), ("prompts_per_call", MAX_PROMPTS))
            ),
            ("input", self.input in ("tensor", "image"), "tensor or image"),
            ("timeout", self.timeout > 0, "positive"),
            ("min_miou", 0 <= self.min_miou <= 1, "from 0 to 1"),
            ("opset", self.opset in (None, *OPSETS), f"one of {OPSETS[0]} to {OPSETS[-1]}"),
            ("weight_bits", self.weight_bits in (7, 8), "7 or 8"),
            ("min_speedup", 0 <= self.min_speedup < math.inf, "0 or more"),
        ):
            if not fits:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is {getattr(self, name)!r}; it must be {wanted}")


def _is_whole(value: object, most: int) -> bool:
    """Returns whether a value is a whole number from 1 to ``most``."""
    return type(value) is int and 1 <= value <= most


OPTION_NAMES = tuple(field.name for field in fields(Options) if field.name != "precision")
"""What may be given besides the precision."""
