"""PyTorch to Core AI: ``worker`` converts and ``runner`` runs, both in Apple's environment."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pocketsam.errors import ConversionError, ProviderError
from pocketsam.export.cases import Case
from pocketsam.export.engine import open_engine
from pocketsam.export.options import Options
from pocketsam.export.target import Arrays, Call, Converted, Progress
from pocketsam.export.to_coreai.environment import COREAI
from pocketsam.export.to_coreai.networks import HalfEncoder, prepared
from pocketsam.export.to_coreml.channels_first import to_reference_layout
from pocketsam.export.to_coreml.neural_engine_rules import summarise
from pocketsam.export.traced import Encoder, StaticDecoder, TracedNetwork, static_decoder
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import call_by_call
from pocketsam.runtime.manifest_files import TensorInfo

WORKER = "pocketsam.export.to_coreai.worker"
RUNNER = "pocketsam.export.to_coreai.runner"
INTERMEDIATES = "intermediates"
"""The function of a file that computes what ``main`` computes, with the same weights, and returns the
intermediate outputs as well."""


def traced_networks(model: Sam, options: Options) -> dict[str, TracedNetwork]:
    """Returns both networks with static shapes and channels first."""
    model = prepared(model)
    return {"encoder": Encoder(model), "decoder": static_decoder(model, options)}


def runtime_name() -> str:
    """Returns the name and version of what runs the files, for the parity report."""
    return f"Apple's Core AI executor (coreai-core {COREAI.version}), CPU"


def convert(
    network: TracedNetwork,
    path: Path,
    options: Options,
    calibration: Sequence[Case],
    about: dict[str, str],
    progress: Progress = lambda _: None,
) -> Converted:
    """Writes one network as an ``.aimodel`` with the functions ``main`` and ``intermediates``.

    Args:
        network: the encoder or the decoder.
        path: the directory to write.
        options: the precision.
        calibration: unused.
        about: what the file's description says of the checkpoint.
        progress: called with a line about each step.

    Returns:
        What the manifest says of it: in ``details`` the type that it computes in, the number of
        operations of each kind in ``main``, and Apple's rules for the Neural Engine that it breaks.

    Raises:
        ConversionError: the converter failed, or wrote something with other shapes.
        MissingEnvironmentError: Core AI is not there.
    """
    halves = options.precision == "fp16" and isinstance(network, Encoder)
    chosen = HalfEncoder(network.model) if halves else network
    report = write_file(chosen, path, options, about)
    shapes = _shapes(network)
    for key in (*network.inputs, *network.outputs):
        if report["shapes"].get(key) != shapes[key]:
            raise ConversionError(
                f"{path.name}: {key} has the shape {report['shapes'].get(key)}, wanted {shapes[key]}"
            )
    inputs, outputs = (
        tuple(TensorInfo(key, tuple(shapes[key]), "float32") for key in keys)
        for keys in (network.inputs, network.outputs)
    )
    return Converted(
        inputs=inputs,
        outputs=outputs,
        intermediates=tuple(network.intermediates()),
        max_points=network.max_points if isinstance(network, StaticDecoder) else None,
        details={
            "arithmetic": "float16" if halves else "float32",
            "operations": report["operations"],
            "neural_engine_rules": report["neural_engine_rules"],
            "notes": summarise(report["neural_engine_rules"]),
        },
    )


def write_file(
    network: TracedNetwork, path: Path, options: Options, about: dict[str, str]
) -> dict[str, Any]:
    """Writes a network as it is; returns the worker's report.

    Args:
        network: what to trace.
        path, options, about: as for ``convert``.

    Raises:
        ConversionError, MissingEnvironmentError: as for ``convert``.
    """
    COREAI.python()
    with tempfile.TemporaryDirectory(prefix="pocketsam-") as folder:
        job = _write_job(network, Path(folder), path, options, about)
        COREAI.run(WORKER, [str(job)], options.timeout)
        report: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text())
    return report


def _shapes(network: TracedNetwork) -> dict[str, list[int]]:
    """Returns the shapes of inputs and outputs that the contract wants."""
    cells, side = network.model.embedding_side, network.model.mask_side
    prompts = network.prompts if isinstance(network, StaticDecoder) else 1
    made = {
        c.IMAGE_EMBEDDINGS: [1, 256, cells, cells],
        c.IOU_PREDICTIONS: [prompts, 4],
        c.LOW_RES_MASKS: [prompts, 4, side, side],
    }
    return made | {key: list(value.shape) for key, value in network.example().items()}


def _write_job(
    network: TracedNetwork, folder: Path, path: Path, options: Options, about: dict[str, str]
) -> Path:
    """Writes what the worker reads; returns its ``job.json``."""
    torch.save(network.eval(), folder / "network.pt")
    job: dict[str, Any] = {
        "network": str(folder / "network.pt"),
        "report": str(folder / "report.json"),
        "output": str(path),
        "precision": options.precision,
        "names": [tensor_name(name) for name in network.intermediates()],
        "description": f"MobileSAM, {path.stem}, {options.precision}, {network.model.image_size} px; "
        + ", ".join(f"{key} {value}" for key, value in about.items()),
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


def tensor_name(intermediate: str) -> str:
    """Returns the name that an intermediate output has in a file."""
    return intermediate.replace(".", "_")


def load(
    source: Path,
    name: str,
    intermediates: Sequence[str] = (),
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> Call:
    """Opens a file in Apple's executor, on the CPU.

    Args:
        source: an ``.aimodel``.
        name: the file, in error messages.
        intermediates: names of intermediate outputs to return as well.
        providers: ``cpu``.
        threads: unused.

    Raises:
        ProviderError: another provider.
        BundleError: it does not load.
    """
    if list([providers] if isinstance(providers, str) else providers) != ["cpu"]:
        raise ProviderError(f"a Core AI bundle runs with provider cpu here, not {providers}")
    network = open_engine(COREAI, RUNNER, source, name, threads)
    if not intermediates:
        return _static(network, network.shapes)

    def inside(feeds: Arrays) -> Arrays:
        function = {"function": _text(INTERMEDIATES)}
        found = network.ask({key: feeds[key] for key in network.shapes} | function)
        named = {inner: found.pop(tensor_name(inner)) for inner in intermediates}
        return found | {key: to_reference_layout(key, array) for key, array in named.items()}

    return _static(inside, network.shapes)


def _static(network: Call, shapes: dict[str, tuple[int, ...]]) -> Call:
    """Returns a decoder that takes any number of prompts; an encoder as it is."""
    if c.POINT_LABELS not in shapes:
        return network
    prompts, points = shapes[c.POINT_LABELS]
    return call_by_call(network, prompts, points)


def _text(value: str) -> Any:
    return torch.frombuffer(bytearray(value.encode()), dtype=torch.uint8).numpy()
