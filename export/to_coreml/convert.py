"""PyTorch to Core ML's ML programs, and back to something that runs: on a Mac Core ML itself, elsewhere
the interpreter.
"""

import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pocketsam.child import run_child
from pocketsam.export.cases import Case, samples_of
from pocketsam.export.options import Options
from pocketsam.export.quantization.decisions import FLOAT16_MAX, HEADROOM
from pocketsam.export.target import Arrays, Call, Converted, Progress
from pocketsam.export.to_coreml.channels_first import channels_first, to_reference_layout
from pocketsam.export.to_coreml.interpreter import (
    INTERMEDIATES_KEY,
    MilProgram,
    flat_inputs,
    load_package,
    number_operations,
    torch_dtype,
)
from pocketsam.export.to_coreml.linter import lint
from pocketsam.export.to_coreml.neural_engine import fallbacks
from pocketsam.export.to_coreml.neural_engine_rules import summarise
from pocketsam.export.to_coreml.rounded import bias_name, prepare
from pocketsam.export.traced import (
    Encoder,
    PixelEncoder,
    StaticDecoder,
    Tapped,
    TracedNetwork,
    static_decoder,
)
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends import coreml
from pocketsam.runtime.backends.networks import call_by_call, fill_up
from pocketsam.runtime.manifest_files import TensorInfo

DESCRIPTIONS = {
    c.PIXEL_VALUES: "[1, 3, S, S] RGB, normalised by SAM's mean and deviation, zeros right and below",
    c.IMAGE: "S x S picture, RGB, at the top left, longest side S; normalised inside",
    c.RESIZED_SIZE: "[2] (height, width) in pixels of the picture on the canvas",
    c.IMAGE_EMBEDDINGS: "[1, 256, S/16, S/16] the image's embedding, for every prompt on it",
    c.POINT_COORDS: "[Q, N, 2] (x, y) in pixels of the canvas",
    c.POINT_LABELS: "[Q, N] 1 foreground, 0 background, 2 and 3 a box's corners, -1 SAM's padding "
    "point (one, where there are points but no box), -2 a place that is not used",
    c.MASK_INPUT: "[1, 1, S/4, S/4] logits of an earlier answer, for all prompts, or zeros",
    c.HAS_MASK_INPUT: "[1] 1 if mask_input is used, else 0",
    c.IOU_PREDICTIONS: "[Q, 4] predicted IoU of each mask",
    c.LOW_RES_MASKS: "[Q, 4, S/4, S/4] logits: 0 the single mask, 1 to 3 whole, part, subpart; above 0 "
    "is the object",
}


def convert(
    network: TracedNetwork,
    path: Path,
    options: Options,
    calibration: Sequence[Case],
    about: dict[str, str],
    progress: Progress = lambda _: None,
) -> Converted:
    """Writes one network as an ``.mlpackage``.

    Args:
        network: the encoder or the decoder.
        path: the package to write.
        options: precision, deployment target (``Target.resolve`` fills it in).
        calibration: photographs with PyTorch's answers; float16's ranges are measured on them.
        about: the package's metadata.
        progress: called with a line about each step.

    Returns:
        What the manifest says of it.

    Raises:
        ConversionError: the converter failed, or wrote something that does not run.
    """
    with tempfile.TemporaryDirectory(prefix="pocketsam-") as folder:
        network, planned = prepare(network, options, calibration, progress)
        job = _describe_job(network, Path(folder), path, options, about)
        if planned is not None:
            job["static_layers"] = [bias_name(layer) for layer in planned.spans]
        _trace(network, Path(job["traced"]))
        float16: dict[str, Any] | None = None
        if options.precision != "fp32":
            float16 = _float16_program(job, samples_of(network, calibration), options)
        else:
            _run(job, options)
    program, intermediates = load_package(path)
    if float16 is not None:
        float16["kept_in_float32"] = _in_float32(program)
    broken = lint(program)
    details = {
        "deployment_target": job["deployment_target"],
        "operations": program.count_operations(),
        "leaving_neural_engine": fallbacks(program, options.precision),
        "neural_engine_rules": broken,
        "notes": summarise(broken),
    }
    return Converted(
        inputs=tuple(TensorInfo(name, shape, "float32") for name, shape in program.inputs.items()),
        outputs=tuple(TensorInfo(name, program.shapes[name], "float32") for name in program.outputs),
        intermediates=tuple(intermediates),
        max_points=network.max_points if isinstance(network, StaticDecoder) else None,
        details=details
        | ({} if float16 is None else {"float16": float16})
        | ({} if planned is None else {"int8": planned.to_json()}),
    )


def _float16_program(
    job: dict[str, Any], samples: Sequence[Arrays], options: Options
) -> dict[str, Any]:
    """Converts with those operations in float32 whose values float16 would not hold.

    The ranges that int8 activations need come from the same run over the samples.
    """
    compressed, job["precision"] = job["precision"], "fp16"
    _run(job, options)
    program = load_package(Path(job["output"]))[0]
    ranges = measure_ranges(program, samples)
    wide = _beyond(program, ranges)
    if wide or compressed != "fp16":
        job["precision"], job["fp32_operations"], job["ranges"] = compressed, wide, ranges
        _run(job, options)
    peak = max(ranges, key=lambda name: _largest(ranges[name]))
    return {
        "largest": float(f"{_largest(ranges[peak]):.4g}"),
        "largest_tensor": peak,
        "limit": FLOAT16_MAX,
        "tensors_measured": len(ranges),
    }


def measure_ranges(program: MilProgram, samples: Iterable[Arrays]) -> dict[str, dict[str, float]]:
    """Returns ``rmin`` and ``rmax`` of every floating-point tensor over the samples, in float32."""
    ranges: dict[str, dict[str, float]] = {}

    def note(name: str, value: torch.Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(value))
        old = ranges.setdefault(name, {"rmin": low, "rmax": high})
        old["rmin"], old["rmax"] = min(old["rmin"], low), max(old["rmax"], high)

    labels = program.inputs.get(c.POINT_LABELS)
    for sample in samples:
        feeds = sample if labels is None else fill_up(sample, *labels)
        for name in program.inputs:
            note(name, torch.from_numpy(feeds[name]))
        program(feeds, observe=note, rounding=False)
    return ranges


def _largest(span: dict[str, float]) -> float:
    return max(-span["rmin"], span["rmax"])


def _beyond(program: MilProgram, ranges: dict[str, dict[str, float]]) -> list[tuple[str, int]]:
    """Returns the operations that read or write values too large for float16, numbered."""
    large = {name for name, span in ranges.items() if _largest(span) > FLOAT16_MAX / HEADROOM}
    numbers = number_operations(program.operations)
    return [
        numbers[id(op)]
        for op in program.operations
        if id(op) in numbers
        and any(var.name in large for var in (*flat_inputs(op.inputs.values()), *op.outputs))
    ]


def _in_float32(program: MilProgram) -> list[str]:
    """Returns the operations that compute in float32, by kind and number."""
    numbers = number_operations(program.operations)
    return [
        "{} {}".format(*numbers[id(op)])
        for op in program.operations
        if id(op) in numbers and any(torch_dtype(var) == torch.float32 for var in op.outputs)
    ]


def load(
    source: Path,
    name: str,
    intermediates: Sequence[str] = (),
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> Call:
    """Opens a package in Core ML on macOS; elsewhere, and for intermediate outputs, in the interpreter.

    Args:
        source: an ``.mlpackage``.
        name: the file, in error messages.
        intermediates: names of intermediate outputs to return as well; those that the package does not
            have are left out.
        providers: on macOS, as for ``open_coreml``.
        threads: unused.
    """
    program, holders = load_package(source)
    wanted = {
        intermediate: holders[intermediate] for intermediate in intermediates if intermediate in holders
    }

    def simulate(feeds: Arrays) -> Arrays:
        found = program(feeds, also=list(wanted.values()))
        outputs = {key: found[key] for key in program.outputs}
        return outputs | {
            intermediate: to_reference_layout(intermediate, found[name])
            for intermediate, name in wanted.items()
        }

    network: Call = simulate
    if coreml.available() and not intermediates:
        network = coreml.open_coreml(source, name, providers)
    labels = program.inputs.get(c.POINT_LABELS)
    return network if labels is None else call_by_call(network, *labels)


def runtime_name() -> str:
    """Returns the name and version of what runs a package, for the parity report."""
    simulated = f"pocketsam's MIL interpreter (torch {version('torch')})"
    return f"Core ML on macOS; intermediate outputs: {simulated}" if coreml.available() else simulated


def traced_networks(model: Sam, options: Options) -> dict[str, TracedNetwork]:
    """Returns both networks with static shapes and channels first."""
    model = channels_first(model)
    encoder = PixelEncoder(model) if options.input == "image" else Encoder(model)
    return {"encoder": encoder, "decoder": static_decoder(model, options)}


def _describe_job(
    network: TracedNetwork, folder: Path, path: Path, options: Options, about: dict[str, str]
) -> dict[str, Any]:
    """Returns what the worker reads; names and numbers only."""
    kind = "encoder" if c.IMAGE_EMBEDDINGS in network.outputs else "decoder"
    return {
        "traced": str(folder / "traced.pt"),
        "output": str(path),
        "inputs": {name: list(value.shape) for name, value in network.example().items()},
        "image_input": c.IMAGE,
        "outputs": list(network.outputs),
        "intermediates": {
            intermediate: "stage_" + intermediate.replace(".", "_")
            for intermediate in network.intermediates()
        },
        "intermediates_key": INTERMEDIATES_KEY,
        "precision": options.precision,
        "deployment_target": options.deployment_target,
        "fp32_operations": [],
        "ranges": {},
        "static_layers": [],
        "network": kind,
        "author": "pocketsam",
        "license": "Apache-2.0 (the code and the architecture; the weights have their own)",
        "description": f"MobileSAM, the {kind}, {options.precision}, {network.model.image_size} px",
        "version": version("pocketsam"),
        "metadata": {f"com.github.pocketsam.{key}": value for key, value in about.items()},
        "feature_descriptions": DESCRIPTIONS,
    }


def _trace(network: TracedNetwork, path: Path) -> None:
    example = network.example()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about shapes that become constants, as they are meant to
        arguments = tuple(example[name] for name in network.inputs)
        trace: Any = torch.jit.trace
        traced = trace(Tapped(network).eval(), arguments, check_trace=False)
    buffer = io.BytesIO()  # torch's own file writer hides why it failed
    torch.jit.save(traced, buffer)
    path.write_bytes(buffer.getvalue())


def _run(job: dict[str, Any], options: Options) -> None:
    file = Path(job["traced"]).with_name("job.json")
    file.write_text(json.dumps(job))
    command = [sys.executable, "-P", "-m", "pocketsam.export.to_coreml.worker", str(file)]
    # coremltools numbers some names in the order of a set: the same seed, the same bytes
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    what = f"Core ML's converter ({Path(job['output']).stem})"
    run_child(command, what, options.timeout, environment)
