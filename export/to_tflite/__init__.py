"""PyTorch to TFLite, by way of ONNX: conversion and smaller weights."""

from pocketsam.export.target import Converter, Precision, Target
from pocketsam.export.to_tflite.program import ONNX2TF
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
    from pocketsam.export.to_tflite import convert

    return convert


TARGET = Target(
    name="tflite",
    extra="tflite",
    suffix=".tflite",
    packages=("onnx", "onnxscript", "onnxsim", "ai-edge-litert", "litert-quantizer"),
    programs={"onnx2tf": ONNX2TF},
    precisions=(
        Precision(name="fp32", tolerance=FP32, grade="equivalent"),
        Precision(name="fp16", tolerance=FP16, grade="close"),
        Precision(
            name="int8-weights", tolerance=WEIGHTS_8_BIT, grade="close", drift=DRIFT, calibrated=True
        ),
        Precision(name="int8-dynamic", tolerance=LOOSE, grade="close", drift=DRIFT_8_BIT),
        Precision(
            name="int8",
            tolerance=ROUGH,
            grade="lossy",
            drift=DRIFT_8_BIT,
            calibrated=True,
        ),
    ),
    options=("max_points", "prompts_per_call", "timeout"),
    max_bytes=2**31 - 2**24,  # of the ONNX file that onnx2tf reads, whatever the precision
    usage="PocketSam.kt",
    next_step="copy {path}/*.tflite into app/src/main/assets and {path}/PocketSam.kt beside your code\n"
    "      pocketsam segment {path} PHOTO --point X,Y --output out",
    open_converter=_open_converter,
)
