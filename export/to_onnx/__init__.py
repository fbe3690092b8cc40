"""PyTorch to ONNX: conversion, its passes, and smaller weights."""

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
)
