"""PyTorch to Core ML: conversion, the interpreter that runs its programs anywhere, and advice."""

from dataclasses import replace

from pocketsam.errors import UsageError
from pocketsam.export.options import Options
from pocketsam.export.target import Converter, Precision, Target
from pocketsam.export.verification.tolerances import (
    DRIFT,
    DRIFT_8_BIT,
    FP16,
    FP32,
    ROUGH,
    WEIGHTS_8_BIT,
)


def _open_converter() -> Converter:
    from pocketsam.export.to_coreml import convert

    return convert


DEPLOYMENT_TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
DEFAULT_DEPLOYMENT_TARGET = "iOS16"
"""Where none is asked for and the precision allows it."""


def _resolve(options: Options) -> Options:
    """Returns options with the deployment target that the file will have.

    Raises:
        UsageError: unknown, or too old for the precision.
    """
    oldest = TARGET.precision(options.precision).oldest_system or DEFAULT_DEPLOYMENT_TARGET
    wanted = options.deployment_target or max(oldest, DEFAULT_DEPLOYMENT_TARGET)
    if wanted not in DEPLOYMENT_TARGETS:
        raise UsageError(
            f"unknown deployment target {wanted!r}; known are {', '.join(DEPLOYMENT_TARGETS)}"
        )
    if DEPLOYMENT_TARGETS.index(wanted) < DEPLOYMENT_TARGETS.index(oldest):
        raise UsageError(f"Core ML {options.precision} needs {oldest}, not {wanted}")
    return replace(options, deployment_target=wanted)


TARGET = Target(
    name="coreml",
    extra="coreml",
    suffix=".mlpackage",
    packages=("coremltools",),
    precisions=(  # all but fp32 are calibrated: float16 must hold their values
        Precision(
            name="fp32",
            tolerance=replace(FP32, error=1e-4),
            grade="equivalent",
            oldest_system="iOS15",
        ),
        Precision(name="fp16", tolerance=FP16, grade="close", calibrated=True, oldest_system="iOS15"),
        Precision(
            name="int8-weights",
            tolerance=WEIGHTS_8_BIT,
            grade="close",
            drift=DRIFT,
            calibrated=True,
            oldest_system="iOS16",
        ),
        Precision(
            name="palette8",
            tolerance=WEIGHTS_8_BIT,
            grade="close",
            drift=DRIFT,
            calibrated=True,
            oldest_system="iOS16",
        ),
        Precision(
            name="palette6",
            tolerance=ROUGH,
            grade="lossy",
            drift=DRIFT,
            calibrated=True,
            oldest_system="iOS16",
        ),
        Precision(
            name="palette4",
            tolerance=replace(ROUGH, error=20.0, snr_db=4.0, cosine=0.75, score=0.45),
            grade="lossy",
            drift=DRIFT,
            calibrated=True,
            oldest_system="iOS16",
        ),
        Precision(
            name="int8",
            tolerance=replace(ROUGH, error=20.0, snr_db=4.0, cosine=0.85),
            grade="lossy",
            drift=DRIFT_8_BIT,
            calibrated=True,
            oldest_system="iOS17",
        ),
    ),
    options=("max_points", "prompts_per_call", "input", "deployment_target", "timeout"),
    usage="PocketSam.swift",
    next_step="drag both .mlpackage and PocketSam.swift of {path} into Xcode\n"
    "      pocketsam info {path}",
    open_converter=_open_converter,
    resolve=_resolve,
)
