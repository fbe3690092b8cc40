"""``PocketSam.swift`` and ``PocketSam.kt``: code for a phone, made from a bundle's manifest.

Wrong scaling is the commonest complaint about such exports, so the constants come from the manifest.
"""

import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pocketsam.export.target import Target
from pocketsam.runtime import contract as c
from pocketsam.runtime.manifest import Manifest

TENSORS = (
    c.PIXEL_VALUES,
    c.IMAGE,
    c.RESIZED_SIZE,
    c.IMAGE_EMBEDDINGS,
    c.POINT_COORDS,
    c.POINT_LABELS,
    c.MASK_INPUT,
    c.HAS_MASK_INPUT,
    c.IOU_PREDICTIONS,
    c.LOW_RES_MASKS,
)


def write_usage(directory: Path, target: Target, manifest: Manifest) -> None:
    """Writes the target's example beside a bundle's files, if the target has one."""
    if target.usage is not None:
        (directory / target.usage).write_text(render(target.usage, manifest), encoding="utf-8")


def render(name: str, manifest: Manifest) -> str:
    """Returns the text of ``name`` for a manifest."""
    preprocessing, size = manifest.preprocessing, manifest.image_size
    tolerance = manifest.golden.tolerance
    values = {tensor: tensor for tensor in TENSORS} | {
        "checkpoint": re.sub(r"[^\w .+-]", "_", Path(manifest.model.checkpoint).name),  # into code
        "precision": manifest.precision,
        "size": size,
        "low": manifest.mask_side,
        "cells": manifest.embedding_side,
        "points": manifest.decoder.max_points,
        "prompts": _prompts(manifest),
        "threshold": manifest.mask_threshold,
        "mean": ", ".join(map(str, preprocessing.mean)),
        "stretch": str(preprocessing.stretch).lower(),
        "std": ", ".join(map(str, preprocessing.std)),
        "mean_kt": ", ".join(f"{value}f" for value in preprocessing.mean),
        "std_kt": ", ".join(f"{value}f" for value in preprocessing.std),
        "signature": manifest.encoder.signature or "",
        "encode": "",
        "least_snr": tolerance.snr_db if tolerance else 0.0,
        "least_iou": round(tolerance.mask_iou_mean, 4) if tolerance else 0.0,
    }
    if name == "PocketSam.swift":
        kind = "image" if preprocessing.input == c.IMAGE else "tensor"
        values["encode"] = _fill(f"encode_{kind}.swift", values).rstrip("\n")
    return _fill(name, values)


def _prompts(manifest: Manifest) -> int | str:
    """Returns how many prompts the decoder answers in a call."""
    shapes = {tensor.name: tensor.shape for tensor in manifest.decoder.inputs}
    return shapes.get(c.POINT_LABELS, (1,))[0]


def _fill(template: str, values: dict[str, Any]) -> str:
    text = files("pocketsam.export").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(values)
