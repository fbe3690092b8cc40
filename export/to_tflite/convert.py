"""PyTorch to TFLite: through ONNX, onnx2tf (flatbuffer_direct, no TensorFlow), litert-quantizer.

onnx2tf is called as a program, see ``program.py``. ``docs/android.md`` compares the converters to int8.
"""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx

from pocketsam.child import own_environment, run_child
from pocketsam.errors import ConversionError
from pocketsam.export.cases import Case, samples_of
from pocketsam.export.options import Options
from pocketsam.export.quantization import smallest
from pocketsam.export.quantization.plan import Plan, static_encoder
from pocketsam.export.quantization.rounding import rounded_encoder
from pocketsam.export.target import Arrays, Call, Converted, Progress
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_tflite.program import STATIC_LAYERS, check_version, find_onnx2tf
from pocketsam.export.traced import Encoder, StaticDecoder, TracedNetwork, static_decoder
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.litert import CHANNELS_LAST, SIGNATURE, open_tflite
from pocketsam.runtime.backends.networks import call_by_call, fill_up
from pocketsam.runtime.manifest_files import TensorInfo

ROOM = 8
"""Times the size of the ONNX file that a conversion takes in temporary files: six were seen."""


def traced_networks(model: Sam, options: Options) -> dict[str, TracedNetwork]:
    """Returns both networks with static shapes."""
    return {"encoder": Encoder(model), "decoder": static_decoder(model, options)}


def runtime_name() -> str:
    """Returns the name and version of what runs the files, for the parity report."""
    return f"LiteRT (ai-edge-litert {version('ai-edge-litert')}), CPU"


def convert(
    network: TracedNetwork,
    path: Path,
    options: Options,
    calibration: Sequence[Case],
    about: dict[str, str],
    progress: Progress = lambda _: None,
) -> Converted:
    """Writes one network as a TFLite file with one signature, named by the contract.

    Args:
        network: the encoder or the decoder.
        path: the file to write.
        options: the precision.
        calibration: photographs with PyTorch's answers, for static int8.
        about: unused; a TFLite file carries no metadata of ours, the manifest does.
        progress: called with a line about each step.

    Returns:
        What the manifest says of it.

    Raises:
        ConversionError: a converter failed, or wrote something that does not run.
        PocketSamError: onnx2tf is not there, or of another version.
    """
    with tempfile.TemporaryDirectory(prefix="pocketsam-") as folder:
        network, planned = _rounded(network, options, calibration, progress)
        float_file = Path(folder) / "float.tflite"
        float_file.write_bytes(_convert_float(network, Path(folder), options.timeout))
        samples = samples_of(network, calibration)
        _write_precision(network, float_file, path, options, samples, planned)
    details = {} if planned is None else {"int8": planned.to_json()}
    return replace(_describe(path, network), details=details)


def _rounded(
    network: TracedNetwork, options: Options, calibration: Sequence[Case], progress: Progress
) -> tuple[TracedNetwork, Plan | None]:
    """Returns a network whose weights are stored exactly, and the layers of 8-bit activations, whose
    kernels also write 8 bits; or the network itself and None."""
    if not isinstance(network, Encoder):
        return network, None
    if options.precision == "int8":
        least = smallest.ENCODER
        return static_encoder(network, calibration, outputs=True, smallest=least, progress=progress)
    if options.precision == "int8-weights":
        return rounded_encoder(network, calibration, smallest.ENCODER, progress), None
    return network, None


_CONVERTED: WeakKeyDictionary[TracedNetwork, bytes] = WeakKeyDictionary()
"""Networks that onnx2tf has converted, in float32; every precision starts from them."""


def _convert_float(network: TracedNetwork, work: Path, timeout: float) -> bytes:
    """Returns a network as a float32 TFLite file; runs onnx2tf in ``work`` the first time."""
    if network not in _CONVERTED:
        program = find_onnx2tf()
        check_version(program)
        onnx.save(to_onnx.trace_static(network), work / "network.onnx")
        kept = [name for name in network.inputs if name not in CHANNELS_LAST]
        command = [program, "-i", str(work / "network.onnx"), "-o", str(work / "out"), "-v", "error"]
        command += ["-tb", "flatbuffer_direct", "-coion", "-osd", *(["-kat", *kept] if kept else [])]
        _check_room(work, (work / "network.onnx").stat().st_size)
        run_child(command, "onnx2tf", timeout, own_environment())
        float_file = work / "out/network_float32.tflite"
        if not float_file.is_file():
            raise ConversionError(f"onnx2tf ended without writing {float_file.name}")
        _CONVERTED[network] = float_file.read_bytes()
    return _CONVERTED[network]


def _check_room(work: Path, size: int) -> None:
    """Raises ConversionError where onnx2tf would run out of disk: it rewrites its input on the way, and
    reports a write that failed as a damaged model."""
    free, wanted = shutil.disk_usage(work).free, ROOM * size
    if free < wanted:
        raise ConversionError(
            f"{work.parent}: {os.strerror(errno.ENOSPC)}: {free // 10**6} MB are free, onnx2tf takes "
            f"about {wanted // 10**6}; TMPDIR names another folder"
        )


def _write_precision(
    network: TracedNetwork,
    float_file: Path,
    path: Path,
    options: Options,
    samples: Sequence[Arrays],
    planned: Plan | None,
) -> None:
    sample_file = float_file.with_name("samples.npz")
    if planned is not None:
        arrays = {}
        for number, sample in enumerate(samples):
            feeds = fill_up(sample, *network.shape) if isinstance(network, StaticDecoder) else sample
            for name in network.inputs:
                value = feeds[name].transpose(0, 2, 3, 1) if name in CHANNELS_LAST else feeds[name]
                arrays[f"{number}/{name}"] = value
        for layer in planned.spans:  # the worker knows layers by their weights
            weight: Any = network.model.image_encoder.get_submodule(layer).weight
            arrays[f"{STATIC_LAYERS}/{layer}"] = weight.detach().numpy()
        np.savez(sample_file, **arrays)  # type: ignore[arg-type]
    # The decoder's few tokens do not bear 8-bit activations; its weights do.
    is_decoder = isinstance(network, StaticDecoder)
    precision = "int8-weights" if options.precision == "int8" and is_decoder else options.precision
    kind = "decoder" if is_decoder else "encoder"
    command = [sys.executable, "-P", "-m", "pocketsam.export.to_tflite.worker", precision, kind]
    command += [str(float_file), str(path), str(sample_file)]
    run_child(command, "litert-quantizer", options.timeout)


def _describe(path: Path, network: TracedNetwork) -> Converted:
    """Returns what the file holds; raises ConversionError unless it is what the contract says."""
    from ai_edge_litert.interpreter import Interpreter

    example = network.example()
    wanted: dict[str, list[int]] = {name: list(value.shape) for name, value in example.items()}
    cells, side = network.model.embedding_side, network.model.mask_side
    prompts = network.prompts if isinstance(network, StaticDecoder) else 1
    wanted[c.IMAGE_EMBEDDINGS] = [1, 256, cells, cells]
    wanted |= {c.LOW_RES_MASKS: [prompts, 4, side, side], c.IOU_PREDICTIONS: [prompts, 4]}
    signature = Interpreter(model_path=str(path)).get_signature_runner(SIGNATURE)
    tensors: dict[str, list[TensorInfo]] = {}
    for key, names, details in (
        ("inputs", network.inputs, signature.get_input_details()),
        ("outputs", network.outputs, signature.get_output_details()),
    ):
        if set(details) != set(names):
            raise ConversionError(f"{path.name}: {key} {sorted(details)}, wanted {sorted(names)}")
        tensors[key] = []
        for name in names:
            shape, layout = wanted[name], None
            if len(shape) == 4:
                layout = "NHWC" if name in CHANNELS_LAST else "NCHW"
            if name in CHANNELS_LAST:
                shape = [shape[0], *shape[2:], shape[1]]
            found = [int(n) for n in details[name]["shape"]]
            if found != shape:
                raise ConversionError(f"{path.name}: {name} has the shape {found}, wanted {shape}")
            dtype = str(np.dtype(details[name]["dtype"]))
            tensors[key].append(TensorInfo(name, tuple(shape), dtype, layout))
    return Converted(
        inputs=tuple(tensors["inputs"]),
        outputs=tuple(tensors["outputs"]),
        max_points=network.max_points if isinstance(network, StaticDecoder) else None,
        signature=SIGNATURE,
    )


def load(
    source: bytes,
    name: str,
    intermediates: Sequence[str] = (),
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> Call:
    """Opens a file in LiteRT.

    Args:
        source: a TFLite file.
        name: the file, in error messages.
        intermediates: unused: a TFLite file names none.
        providers, threads: as for the runtime's ``Segmenter``.
    """
    network = open_tflite(source, name, providers, threads)
    if c.POINT_LABELS not in network.shapes:
        return network
    return call_by_call(network, *network.shapes[c.POINT_LABELS])
