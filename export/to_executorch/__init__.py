"""PyTorch to ExecuTorch's ``.pte`` for XNNPACK, by ExecuTorch in an environment of its own."""

from dataclasses import replace

from pocketsam.export.target import Converter, Precision, Target
from pocketsam.export.to_executorch.environment import EXECUTORCH
from pocketsam.export.verification.tolerances import DRIFT_8_BIT, FP32, ROUGH


def _open_converter() -> Converter:
    from pocketsam.export.to_executorch import convert

    return convert


TARGET = Target(
    name="executorch",
    extra="export",
    suffix=".pte",
    packages=(),
    programs={EXECUTORCH.package: EXECUTORCH.version},
    precisions=(
        Precision(name="fp32", tolerance=replace(FP32, error=1e-4), grade="equivalent"),
        Precision(
            name="int8",
            tolerance=ROUGH,
            grade="lossy",
            drift=DRIFT_8_BIT,
            calibrated=True,
        ),
    ),
    options=("max_points", "prompts_per_call", "timeout"),
    next_step="give both .pte of {path} to ExecuTorch's Module in your app; docs/executorch.md\n"
    "      pocketsam verify {path}",
    open_converter=_open_converter,
)
