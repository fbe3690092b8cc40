"""From a checkpoint to a directory that a tool takes: networks, its own configuration, a README."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pocketsam.errors import BundleError, ParityError
from pocketsam.export.bundle import describe_file, resolve_place
from pocketsam.export.drop_in import core_ai, one_file, two_files, weights
from pocketsam.export.drop_in.check import Agreement, Masks, compare, in_pytorch
from pocketsam.export.drop_in.tool import OneFile, Tool, TwoFiles, Weights
from pocketsam.export.reference import Reference
from pocketsam.export.target import Progress
from pocketsam.files import staged_directory
from pocketsam.runtime.machine import package_version
from pocketsam.runtime.manifest_files import BundleFile

RECORD = "pocketsam.json"
"""What pocketsam says of the directory: checkpoint, hashes of the files, agreement with PyTorch."""
WORST, MEAN = 0.99, 0.98
"""IoU with PyTorch's masks that each mask must reach in fp32, and their mean in int8."""


def write_drop_in(
    reference: Reference,
    output: Path,
    tool: Tool,
    precision: str,
    *,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Agreement:
    """Writes a directory that a tool takes; if its masks differ from PyTorch's, nothing is written.

    Args:
        reference: the checkpoint, and photographs.
        output: the directory.
        tool: what it is for; ``check_tool`` has been asked.
        precision: of the networks.
        force: whether a directory that was written before gives way.
        progress: called with a line about each step.

    Returns:
        How the masks agree with PyTorch's.

    Raises:
        BundleError: the directory is taken, or cannot be written.
        ConversionError: the converter failed.
        ParityError: the masks differ from PyTorch's.
    """
    output = resolve_place(output)
    _check_free(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(output) as work:
            networks, found = _write_networks(reference, work, tool, precision, progress)
            progress(f"comparing with PyTorch as {tool.title} runs it")
            model = reference.loaded.model
            frame = tool.frame or model.image_size
            agreement = compare(tool, frame, in_pytorch(tool, model), found, reference.photos)
            _judge(agreement, tool, precision)
            described = {name: describe_file(work / name) for name in networks}
            _write_files(work, reference, tool, precision, agreement, described)
    except OSError as error:
        raise BundleError(f"{error.filename or output}: {error.strerror or error}") from error
    return agreement


def _check_free(output: Path, force: bool) -> None:
    """Raises BundleError unless the directory is absent, empty, or one of ours that may go."""
    if not output.exists() and not output.is_symlink():
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    if not (output / RECORD).is_file():
        raise BundleError(
            f"{output}: exists and holds other files; choose a new directory and copy from there"
        )
    if not force:
        raise BundleError(f"{output}: exists; --force replaces it")


def _write_networks(
    reference: Reference, work: Path, tool: Tool, precision: str, progress: Progress
) -> tuple[list[str], Masks]:
    """Writes the networks; returns their files and the masks that they give."""
    match tool:
        case TwoFiles():
            return two_files.write(reference, work, tool, precision, progress)
        case OneFile() if tool.file.endswith(".aimodel"):
            return core_ai.write(reference, work, tool, progress)
        case OneFile():
            return one_file.write(reference, work, tool, progress)
        case Weights():
            return weights.write(reference, work, tool, progress)
    raise TypeError(f"{tool.name}: which files?")


def _judge(agreement: Agreement, tool: Tool, precision: str) -> None:
    """Raises ParityError unless the masks agree."""
    case, worst = agreement.worst
    if precision == "fp32" and not worst >= WORST:
        raise ParityError(
            f"{tool.title}, {case}: mask IoU {worst:.4f} with PyTorch's, {WORST} is asked for"
        )
    if not agreement.mean >= MEAN:
        raise ParityError(
            f"{tool.title}, {precision}: mean mask IoU {agreement.mean:.4f} with PyTorch's, {MEAN} is "
            "asked for"
        )


def _write_files(
    work: Path,
    reference: Reference,
    tool: Tool,
    precision: str,
    agreement: Agreement,
    described: Mapping[str, BundleFile],
) -> None:
    """Writes what stands beside the networks: the tool's configuration, a README, our record."""
    loaded = reference.loaded
    values = _values(reference, tool, precision, agreement, described)
    for name, template in tool.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_fill(template, values), encoding="utf-8")
    record: dict[str, Any] = {
        "tool": tool.name,
        "title": tool.title,
        "pocketsam": package_version("pocketsam"),
        "checkpoint": Path(loaded.name).name,
        "checkpoint_sha256": loaded.sha256,
        "architecture": loaded.architecture,
        "precision": precision,
        "image_size": loaded.model.image_size,
        "mask_iou": {
            "cases": len(agreement.ious),
            "mean": round(agreement.mean, 5),
            "worst": round(agreement.worst[1], 5),
            "worst_case": agreement.worst[0],
        },
        "files": {
            name: {"sha256": described[name].sha256, "bytes": described[name].bytes}
            for name in described
        },
    }
    (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _values(
    reference: Reference,
    tool: Tool,
    precision: str,
    agreement: Agreement,
    described: Mapping[str, BundleFile],
) -> dict[str, Any]:
    """Returns what the templates name."""
    loaded, networks = reference.loaded, list(described)
    return {
        "title": tool.title,
        "checkpoint": re.sub(r"[^\w .+-]", "_", Path(loaded.name).name),  # into YAML and Python
        "slug": f"pocketsam-{loaded.architecture.replace('_', '-')}-{precision}",
        "precision": precision,
        "size": loaded.model.image_size,
        "low": loaded.model.image_size // 4,
        "encoder": networks[0],
        "decoder": networks[-1],
        "encoder_sha256": described[networks[0]].sha256,
        "decoder_sha256": described[networks[-1]].sha256,
        "worst": f"{agreement.worst[1]:.4f}",
        "cases": len(agreement.ious),
        "quant": "true" if precision == "int8" else "false",
        "dtype": "q8" if precision == "int8" else "fp32",
    }


def _fill(template: str, values: dict[str, Any]) -> str:
    folder = files("pocketsam.export.drop_in").joinpath("templates", template)
    return Template(folder.read_text(encoding="utf-8")).substitute(values)
