"""PyTorch to Apple's Core AI (iOS 27, macOS 27): ``.aimodel``, run here by Apple's own executor."""

from dataclasses import replace

from pocketsam.export.target import Converter, Precision, Target
from pocketsam.export.to_coreai.environment import COREAI, PROGRAMS
from pocketsam.export.verification.tolerances import DRIFT, FP16, FP32, ROUGH, WEIGHTS_8_BIT


def _open_converter() -> Converter:
    from pocketsam.export.to_coreai import convert

    return convert


TARGET = Target(
    name="coreai",
    extra="export",
    suffix=".aimodel",
    packages=(),
    programs={COREAI.package: COREAI.version, **PROGRAMS},
    precisions=(
        Precision(
            name="fp32", tolerance=replace(FP32, error=1e-4), grade="equivalent", oldest_system="iOS27"
        ),
        Precision(name="fp16", tolerance=FP16, grade="close", oldest_system="iOS27"),
        Precision(
            name="int8-weights",
            tolerance=WEIGHTS_8_BIT,
            grade="close",
            drift=DRIFT,
            oldest_system="iOS27",
        ),
        Precision(name="palette6", tolerance=ROUGH, grade="lossy", drift=DRIFT, oldest_system="iOS27"),
    ),
    options=("max_points", "prompts_per_call", "timeout"),
    next_step="load both .aimodel of {path} with Core AI's AIModel in your app; docs/coreai.md\n"
    "      pocketsam verify {path}",
    open_converter=_open_converter,
)
