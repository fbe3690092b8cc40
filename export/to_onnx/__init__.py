"""PyTorch to ONNX: conversion, its passes, and smaller weights."""

from pocketsam.errors import UsageError
from pocketsam.export.options import Options
from pocketsam.export.target import Converter, Precision, Target
from pocketsam.export.verification.tolerances import (
    DRIFT,
    DRIFT_8_BIT,
    FP16,
    FP32,
    LOOSE,
    ROUGH,
    WEIGHTS_8_BIT,
)


def _open_converter() -> Converter:
    from pocketsam.export.to_onnx import convert

    return convert


def _resolve(options: Options) -> Options:
    """Returns the options; raises UsageError for 4 bits in an operator set that has none."""
    if options.precision == "int4-weights" and options.opset is not None:
        raise UsageError(
            f"int4-weights needs opset 21, which has integers of 4 bits, not {options.opset}; "
            "leave out --opset"
        )
    return options


TARGET = Target(
    name="onnx",
    extra="export",
    suffix=".onnx",
    packages=("onnx", "onnxscript", "onnxsim", "onnxruntime"),
    precisions=(
        Precision(name="fp32", tolerance=FP32, grade="equivalent"),
        Precision(name="fp16", tolerance=FP16, grade="close", bits=16, calibrated=True),
        Precision(
            name="int8",
            tolerance=LOOSE,
            grade="close",
            drift=DRIFT_8_BIT,
            calibrated=True,
            options=("min_miou", "min_speedup", "weight_bits"),
        ),
        Precision(
            name="int8-static", tolerance=LOOSE, grade="close", drift=DRIFT_8_BIT, calibrated=True
        ),
        Precision(name="int8-weights", tolerance=WEIGHTS_8_BIT, grade="close", drift=DRIFT, bits=8),
        Precision(
            name="int4-weights",
            tolerance=ROUGH,
            grade="lossy",
            drift=DRIFT,
            bits=8,  # of convolutions
            calibrated=True,
        ),
    ),
    options=("disabled_passes", "opset"),
    max_bytes=2**31 - 2**24,  # a protobuf of 2 GiB, less the graph
    next_step="pocketsam segment {path} PHOTO --point X,Y --output out",
    open_converter=_open_converter,
    resolve=_resolve,
)
