"""PyTorch to ExecuTorch: traced here by ``torch.export``, lowered by ``worker``, run by ``runner``."""

import io
import json
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from pocketsam.errors import ConversionError, ProviderError
from pocketsam.export.cases import Case, samples_of
from pocketsam.export.engine import open_engine
from pocketsam.export.options import Options
from pocketsam.export.quantization.plan import Plan, static_encoder
from pocketsam.export.target import Call, Converted, Progress
from pocketsam.export.to_executorch.environment import EXECUTORCH
from pocketsam.export.traced import Encoder, StaticDecoder, TracedNetwork, static_decoder
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import call_by_call
from pocketsam.runtime.manifest_files import TensorInfo

WORKER = "pocketsam.export.to_executorch.worker"
RUNNER = "pocketsam.export.to_executorch.runner"


def traced_networks(model: Sam, options: Options) -> dict[str, TracedNetwork]:
    """Returns both networks with static shapes."""
    return {"encoder": Encoder(model), "decoder": static_decoder(model, options)}


def runtime_name() -> str:
    """Returns the name and version of what runs the files, for the parity report."""
    return f"ExecuTorch {EXECUTORCH.version} with XNNPACK, CPU"


def convert(
    network: TracedNetwork,
    path: Path,
    options: Options,
    calibration: Sequence[Case],
    about: dict[str, str],
    progress: Progress = lambda _: None,
) -> Converted:
    """Writes one network as a ``.pte`` with one method, ``forward``; inputs in the contract's order.

    Args:
        network: the encoder or the decoder.
        path: the file to write.
        options: the precision.
        calibration: photographs with PyTorch's answers, for int8.
        about: unused; the file carries no metadata of ours, the manifest does.
        progress: called with a line about each step.

    Returns:
        What the manifest says of it: in ``details`` the number of delegates, and each operation that is
        left outside of them.

    Raises:
        ConversionError: the converter failed, or wrote something with other shapes.
        MissingEnvironmentError: ExecuTorch is not there.
    """
    EXECUTORCH.python()
    network, planned = _rounded(network, options, calibration, progress)
    with tempfile.TemporaryDirectory(prefix="pocketsam-") as folder:
        job = _write_job(network, Path(folder), path, planned, calibration)
        EXECUTORCH.run(WORKER, [str(job)], options.timeout)
        report = json.loads((Path(folder) / "report.json").read_text())
    note = _describe_lowering(report)
    progress(note)
    inputs, outputs = _tensors(network, report, path.name)
    details = {key: report[key] for key in ("delegates", "outside_delegates")} | {"notes": [note]}
    return Converted(
        inputs=inputs,
        outputs=outputs,
        max_points=network.max_points if isinstance(network, StaticDecoder) else None,
        details=details if planned is None else details | {"int8": planned.to_json()},
    )


def _rounded(
    network: TracedNetwork, options: Options, calibration: Sequence[Case], progress: Progress
) -> tuple[TracedNetwork, Plan | None]:
    """Returns a network whose weights are stored exactly, and the encoder's layers of 8 bits, whose
    kernels also write 8 bits; or the network itself and None."""
    if options.precision != "int8" or not isinstance(network, Encoder):
        return network, None
    nothing = math.inf  # of the other layers is stored in 8 bits
    return static_encoder(network, calibration, outputs=True, smallest=nothing, progress=progress)


_EXPORTED: WeakKeyDictionary[TracedNetwork, bytes] = WeakKeyDictionary()
"""Networks that ``torch.export`` has traced; every precision starts from them."""


def exported(network: TracedNetwork) -> bytes:
    """Returns a network as a ``.pt2`` file of ``torch.export``."""
    if network not in _EXPORTED:
        example, buffer = network.example(), io.BytesIO()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch to itself
            arguments = tuple(example[name] for name in network.inputs)
            program = torch.export.export(network.eval(), arguments, strict=False)
            torch.export.save(program, buffer)
        _EXPORTED[network] = buffer.getvalue()
    return _EXPORTED[network]


def _write_job(
    network: TracedNetwork,
    folder: Path,
    path: Path,
    planned: Plan | None,
    calibration: Sequence[Case],
) -> Path:
    """Writes what the worker reads; returns its ``job.json``."""
    (folder / "program.pt2").write_bytes(exported(network))
    layers = [] if planned is None else [f"model.image_encoder.{name}" for name in planned.spans]
    if layers:
        samples = samples_of(network, calibration)
        arrays = {f"{i}/{n}": s[n] for i, s in enumerate(samples) for n in network.inputs}
        np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
    job = {
        "program": str(folder / "program.pt2"),
        "samples": str(folder / "samples.npz"),
        "report": str(folder / "report.json"),
        "output": str(path),
        "inputs": list(network.inputs),
        "static_layers": layers,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


def _describe_lowering(report: dict[str, Any]) -> str:
    outside = ", ".join(
        f"{entry['count']} {entry['operation']}" for entry in report["outside_delegates"]
    )
    return f"{report['delegates']} delegates to XNNPACK; outside of them: {outside or 'nothing'}"


def _tensors(
    network: TracedNetwork, report: dict[str, Any], name: str
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Returns inputs and outputs; raises ConversionError unless they are what the contract says."""
    wanted = [list(value.shape) for key, value in network.example().items() if key in network.inputs]
    cells, side = network.model.embedding_side, network.model.mask_side
    prompts = network.prompts if isinstance(network, StaticDecoder) else 1
    shapes = {
        c.IMAGE_EMBEDDINGS: [1, 256, cells, cells],
        c.IOU_PREDICTIONS: [prompts, 4],
        c.LOW_RES_MASKS: [prompts, 4, side, side],
    }
    made = [shapes[key] for key in network.outputs]
    if report["inputs"] != wanted or report["outputs"] != made:
        raise ConversionError(
            f"{name}: takes {report['inputs']} and returns {report['outputs']}, wanted {wanted} and "
            f"{made}"
        )
    inputs, outputs = (
        tuple(TensorInfo(key, tuple(shape), "float32") for key, shape in zip(keys, sides, strict=True))
        for keys, sides in ((network.inputs, wanted), (network.outputs, made))
    )
    return inputs, outputs


def load(
    source: bytes,
    name: str,
    intermediates: Sequence[str] = (),
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> Call:
    """Opens a file in ExecuTorch's runtime.

    Args:
        source: a ``.pte`` file.
        name: the file, in error messages.
        intermediates: unused: a ``.pte`` file names none.
        providers: ``cpu``.
        threads: at most so many.

    Raises:
        ProviderError: another provider.
        BundleError: it does not load.
    """
    if list([providers] if isinstance(providers, str) else providers) != ["cpu"]:
        raise ProviderError(f"an ExecuTorch bundle runs with provider cpu here, not {providers}")
    network = open_engine(EXECUTORCH, RUNNER, source, name, threads)
    if c.POINT_LABELS not in network.shapes:
        return network
    prompts, points = network.shapes[c.POINT_LABELS]
    return call_by_call(network, prompts, points)
