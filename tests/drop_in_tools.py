"""Runs the unmodified code of other tools on files that ``pocketsam export --for`` made.

    .venv-drop-in/bin/python tests/drop_in_tools.py FOLDER [TOOL ...]

``FOLDER`` gets a directory for each tool. Each of four pictures and of the tool's prompts is asked in
the tool, and the masks are compared with ``SamPredictor`` of mobilesam-mirror. Where a tool's own
resize changes masks, the last column says whether the files are at fault: there the tool's code runs
with the reference network in place of the files. The table of all tools that were measured goes to the
docs.
``make drop-in`` makes the environment and calls this.
"""

import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from docs_table import write_table
from drop_in_node import Cvat, TransformersJs
from drop_in_opencv import OpenCv, OpenCv4
from drop_in_python import ENVIRONMENT, AnyLabeling, EdgeSam, Osam, Rembg, Samexporter, XAnyLabeling
from drop_in_reference import SIDE, Reference, iou, pictures, prompts_on
from drop_in_torch import Isat, LabelStudio
from skimage import data

from pocketsam.export.drop_in.tools import find_tool
from pocketsam.export.drop_in.write import write_drop_in
from pocketsam.export.reference import Reference as Exported
from pocketsam.models.checkpoint import DEFAULT, DEFAULT_FILE
from pocketsam.models.download import hash_file
from pocketsam.runtime.machine import count_cores, describe_cpu

THREADS = 2
PAGE = Path(__file__).parent.parent / "docs/other-tools.md"
CHECKED = str(Path(data.__file__).parent / "chelsea.png")
"""What ``export --for`` compares here before it writes; the tools are asked about more."""
BOUND = 0.99
"""IoU that the files must reach in each case, with the tool's own resize on both sides."""


@dataclass(frozen=True)
class Entry:
    """A line of the table: ``package`` is PyPI's or, with ``@``, npm's; code that neither has comes
    from a ``repository``, at the commit that the Makefile names."""

    make: Any
    title: str
    package: str = ""
    repository: str = ""
    files: str | None = None


TOOLS: dict[str, Entry] = {
    "anylabeling": Entry(AnyLabeling, "AnyLabeling", "anylabeling"),
    "x-anylabeling": Entry(XAnyLabeling, "X-AnyLabeling", "x-anylabeling-cvhub"),
    "edge-sam": Entry(EdgeSam, "X-AnyLabeling, EdgeSAM", "x-anylabeling-cvhub"),
    "rembg": Entry(Rembg, "rembg", "rembg"),
    "osam": Entry(Osam, "osam", "osam"),
    "samexporter": Entry(Samexporter, "samexporter", "samexporter"),
    "transformersjs": Entry(TransformersJs, "transformers.js, in Node", "@huggingface/transformers"),
    "cvat": Entry(Cvat, "CVAT's worker, in Node", repository="cvat-ai/cvat"),
    "opencv": Entry(OpenCv, "OpenCV's zoo", repository="opencv/opencv_zoo"),
    "opencv-4": Entry(OpenCv4, "OpenCV's zoo", repository="opencv/opencv_zoo", files="opencv"),
    "isat": Entry(Isat, "ISAT", "isat-sam"),
    "label-studio": Entry(
        LabelStudio, "Label Studio's backend", repository="HumanSignal/label-studio-ml-backend"
    ),
}


def version_of(name: str, folder: Path) -> str:
    """The version of a tool: of a package here or in a folder of its own, npm's, or a commit."""
    package = TOOLS[name].package
    if source := source_of(name, folder):
        commit = f"commit {source.name[:7]}"
        return f"{opencv_of(name)}, {commit}" if name.startswith("opencv") else commit
    if package.startswith("@"):
        about = ENVIRONMENT / "node/node_modules" / package / "package.json"
        return str(json.loads(about.read_text())["version"])
    inner = ENVIRONMENT / package.removesuffix("-cvhub").removesuffix("-sam")
    return dist_version(inner, package) if inner.is_dir() else version(package)


def opencv_of(name: str) -> str:
    """The version of OpenCV that a line of the table ran."""
    package = "opencv-python-headless"
    inner = ENVIRONMENT / name
    return f"OpenCV {dist_version(inner, package) if inner.is_dir() else version(package)}"


def dist_version(folder: Path, package: str) -> str:
    """The version of a package in a folder of its own."""
    (found,) = folder.glob(f"{package.replace('-', '_')}-*.dist-info")
    return found.name.removesuffix(".dist-info").rsplit("-", 1)[1]


def source_of(name: str, folder: Path) -> Path | None:
    """Where the Makefile put the files of a tool's repository; None without one."""
    repository = TOOLS[name].repository
    return next((folder / "sources" / repository).glob("*"), None) if repository else None


def measure(name: str, folder: Path, reference: Reference, exported: Exported) -> dict[str, Any]:
    """IoU of each case with ``SamPredictor``, and with the reference network inside the tool."""
    entry = TOOLS[name]
    directory = folder / (entry.files or name)
    write_drop_in(exported, directory, find_tool(directory.name), "fp32", force=True)
    source = source_of(name, folder)
    tool = entry.make(directory, source) if source else entry.make(directory)
    cases = {label: (image, prompts_on(image, tool.asks)) for label, image in pictures().items()}
    found = {label: tool.ask(*case) for label, case in cases.items()}
    official = {label: reference.masks(*case, tool.choice) for label, case in cases.items()}
    reference.calls.clear()
    inside = tool.inside(reference, cases) if hasattr(tool, "inside") else official
    if hasattr(tool, "swap"):
        encoder = reference.encoder(tool.layout, tool.input_name)
        tool.swap(encoder, reference.decoder(tool.answers))
        inside = {label: tool.ask(*case) for label, case in cases.items()}
    is_asked = reference.calls["encoder"] and reference.calls["decoder"]
    if inside is not official and not is_asked and name != "label-studio":  # which takes its weights
        raise RuntimeError(f"{name} did not ask the reference that was put in its place")

    def ious(others: dict) -> dict[str, float]:
        return {
            f"{label}, {prompt}": iou(mask, other)
            for label in cases
            for prompt, mask, other in zip(tool.asks, found[label], others[label], strict=True)
        }

    row = {"tool": entry.title, "version": version_of(name, folder), "weights": hash_file(DEFAULT_FILE)}
    return row | {"with_predictor": ious(official), "inside": ious(inside)}


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    case, worst = min(row["with_predictor"].items(), key=lambda entry: entry[1])
    own = "-"
    if row["inside"] != row["with_predictor"]:
        own = f"{min(row['inside'].values()):.4f}"
    shown = f"{worst:.4f}" + (f" ({case})" if worst < BOUND else "")
    return f"| {row['tool']} | {row['version']} | {len(row['inside'])} | {shown} | {own} |"


def write_rows(folder: Path) -> list[dict[str, Any]]:
    """Writes the table of all tools that were measured in a folder, and returns its rows."""
    found = [folder / f"records/{name}.json" for name in TOOLS]
    rows = [json.loads(path.read_text()) for path in found if path.is_file()]
    rows = [row for row in rows if row.get("weights") == hash_file(DEFAULT_FILE)]  # of no earlier ones
    about = (
        f"On {describe_cpu()} with {count_cores()} cores: the weights of this repository at a canvas "
        f"of {SIDE}, fp32; a single pixel counts as rounding."
    )
    inside = "with the reference in the files' place"
    head = f"| tool | version | cases | worst IoU with `SamPredictor` | {inside} |"
    write_table(PAGE, "tools", [about, "", head, "|---|---|---|---|---|", *map(line_of, rows)])
    return rows


def main(folder: Path, *names: str) -> int:
    torch.set_num_threads(THREADS)
    reference, exported = Reference(), Exported(DEFAULT, SIDE, images=[CHECKED])
    (folder / "records").mkdir(parents=True, exist_ok=True)
    left_out = []
    for name in names or TOOLS:
        if TOOLS[name].repository and not source_of(name, folder):
            print(f"{name} is left out: its code could not be fetched", file=sys.stderr)
            left_out.append(name)
            continue
        row = measure(name, folder, reference, exported)
        print(json.dumps(row), file=sys.stderr, flush=True)
        (folder / f"records/{name}.json").write_text(json.dumps(row))
    rows = write_rows(folder)
    is_wrong = any(min(row["inside"].values()) < BOUND for row in rows)
    return int(is_wrong or not rows or bool(left_out))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
