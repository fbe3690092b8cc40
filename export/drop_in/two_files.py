"""Encoder and decoder as a tool runs them, each in a file."""

import tempfile
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

import onnx

from pocketsam.export.drop_in.build import PaddingDecoder, build_decoder, build_encoder
from pocketsam.export.drop_in.check import Masks, in_two_files
from pocketsam.export.drop_in.tool import TwoFiles
from pocketsam.export.options import Options
from pocketsam.export.reference import Reference
from pocketsam.export.target import Progress
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_onnx.passes import optimise
from pocketsam.export.traced import Encoder

_NETWORKS: WeakKeyDictionary[Reference, tuple[Encoder, PaddingDecoder]] = WeakKeyDictionary()
"""Of each reference, so that several tools share what is traced."""


def write(
    reference: Reference, work: Path, tool: TwoFiles, precision: str, progress: Progress
) -> tuple[list[str], Masks]:
    """Writes encoder and decoder; returns their paths in ``work`` and the masks that they give.

    Raises:
        ConversionError: the converter failed.
    """
    model = reference.loaded.model
    options = replace(Options(precision), min_speedup=0.0)
    if reference not in _NETWORKS:
        fast = optimise(model)
        _NETWORKS[reference] = Encoder(fast), PaddingDecoder(fast)
    encoder, decoder = _NETWORKS[reference]
    opened, names = [], []
    for form, network, build in (
        (tool.encoder, encoder, build_encoder),
        (tool.decoder, decoder, build_decoder),
    ):
        name = form.file.format(suffix=tool.suffixes[precision])
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        progress(f"converting {path.name}")
        with tempfile.TemporaryDirectory(prefix="pocketsam-") as folder:
            plain = Path(folder) / "network.onnx"
            calibration = () if precision == "fp32" else reference.calibration
            to_onnx.convert(network, plain, options, calibration, progress=progress)
            traced = onnx.load(plain)
        data = build(tool, traced, model).SerializeToString(deterministic=True)
        path.write_bytes(data)
        opened.append(to_onnx.load(data, path.name))
        names.append(name)
    return names, in_two_files(tool, opened[0], opened[1], model.image_size)
