"""What a user may choose of an export, beside the target."""

from dataclasses import dataclass

POINTS = 16


@dataclass(frozen=True)
class Options:
    """Choices of one export.

    Attributes:
        precision: one that the target has; see ``targets.TARGETS``.
        points: places for points in a decoder of static shapes (a box takes two).
        image_input: the encoder takes a picture (0..255) and normalises inside. Core ML only.
        deployment_target: oldest system that must run the file, such as iOS17. Core ML only; None:
            the oldest that the precision allows.
        time_limit: seconds that one run of an outside converter may take.
        min_miou: mean IoU that int8 masks must have with float32's. ONNX int8 only.
        min_speedup: how many times as fast as float32 int8 must be on this machine. ONNX int8 only.
        without_passes: names from ``fast.PASSES`` to leave out. ONNX only.
    """

    precision: str = "fp32"
    points: int = POINTS
    image_input: bool = False
    deployment_target: str | None = None
    timeout: float = 1800.0
    min_miou: float = 0.98
    min_speedup: float = 1.0
    disabled_passes: tuple[str, ...] = ()
