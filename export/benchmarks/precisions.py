"""Every precision of a target from one checkpoint, and a table of it: ``make export-coreml``,
``make export-tflite``, ``make parity``. Run as ``python -m pocketsam.export.benchmarks.precisions``.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from pocketsam import terminal
from pocketsam.errors import PocketSamError
from pocketsam.export.options import Options
from pocketsam.export.parity import Report, ReportedParityError
from pocketsam.export.pipeline import export_bundle
from pocketsam.export.targets import TARGETS
from pocketsam.models.checkpoint import DEFAULT, default_image_size
from pocketsam.runtime.bundle import NETWORKS, open_bundle
from pocketsam.runtime.commands.bench import bundle_stages, drawn_image, summarise, time_interleaved

RUNS = 5


def export_all(
    checkpoint: str, target: str, folder: Path, image_size: int, precisions: tuple[str, ...]
) -> dict[str, Report]:
    """Exports each precision to ``folder/precision``; also reports those that failed parity."""
    reports = {}
    for precision in precisions:
        start = time.monotonic()
        say = lambda line, p=precision: terminal.say(f"{target} {p}: {line}")  # noqa: E731
        try:
            report = export_bundle(
                checkpoint,
                folder / precision,
                target,
                Options(precision),
                image_size,
                replace=True,
                progress=say,
            )
            assert report is not None  # it is None only without verification
        except ReportedParityError as error:
            report = error.report
            terminal.say(f"{target} {precision}: {error}")
        reports[precision] = report
        terminal.say(f"{target} {precision}: {time.monotonic() - start:.0f} s")
    return reports


def latencies(bundles: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Median seconds of each half of bundles that run on this machine, in interleaved rounds."""
    stages: dict[str, Any] = {}
    pixels = drawn_image()
    for name, path in bundles.items():
        try:
            stages |= bundle_stages(path, pixels, "cpu", None, f"{name}/")
        except PocketSamError as error:
            terminal.say(f"no latency for {path}: {error}")
    stages = {name: stage for name, stage in stages.items() if name.endswith(NETWORKS)}
    times = time_interleaved(stages, RUNS, 1)
    found: dict[str, dict[str, float]] = {}
    for key, samples in times.items():
        name, network = key.split("/")
        found.setdefault(name, {})[network] = summarise(samples)["p50"]
    return found


def table(reports: dict[str, Report], folder: Path) -> str:
    """file, size, precision, parity, latency: one line for each half that was written."""
    written = {name: folder / name for name, report in reports.items() if not report.failed}
    times = latencies(written)
    lines = [f"{'file':44}{'MB':>7}  {'precision':13}{'parity, worst case':44}{'ms':>8}"]
    for precision, report in reports.items():
        parity = summary(report)
        if report.failed:
            lines.append(f"{'(not written)':51}  {precision:13}{terminal.mark(False)} {parity}")
            continue
        bundle = open_bundle(folder / precision)
        for network in NETWORKS:
            entry = bundle.manifest.network(network)
            seconds = times.get(precision, {}).get(network)
            latency = f"{seconds * 1e3:8.1f}" if seconds else f"{'-':>8}"
            file = str(folder / precision / entry.file)
            lines.append(
                f"{file:44}{entry.bytes / 1e6:7.1f}  {precision:13}"
                f"{terminal.mark(True)} {parity:42}{latency}"
            )
    return "\n".join(lines)


def summary(report: Report) -> str:
    """The two figures that matter most of a report: both halves chained, against PyTorch."""
    rows = {row.name: row for row in report.rows}
    iou = rows["end to end masks"].figures["iou"]
    return f"IoU {iou:.4f}, SNR {rows['end to end low_res_masks'].figures['snr_db']:.0f} dB"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.benchmarks.precisions", description=__doc__
    )
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("folder", type=Path, help="bundles go to FOLDER/PRECISION")
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.image_size, metavar="S")
    parser.add_argument("--precision", action="append", help="only these; may be repeated")
    args = parser.parse_args(argv)
    every = TARGETS[args.target][2]
    try:
        reports = export_all(
            args.checkpoint,
            args.target,
            args.folder,
            args.image_size or default_image_size(args.checkpoint),
            tuple(args.precision or every),
        )
        print(table(reports, args.folder))
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    failed = [name for name, report in reports.items() if report.failed]
    shown = next((name for name in ("fp16", *reports) if name in reports and name not in failed), None)
    if shown:
        print(f"\nnext: {NEXT[args.target].format(path=args.folder / shown)}")
    return 3 if failed else 0


NEXT = {
    "onnx": "pocketsam segment {path} PHOTO --point X,Y --output out",
    "coreml": "drag both .mlpackage and Usage.swift of {path} into Xcode\n      pocketsam info {path}",
    "tflite": "copy {path}/*.tflite into app/src/main/assets and {path}/Usage.kt beside your code\n"
    "      pocketsam segment {path} PHOTO --point X,Y --output out",
}

if __name__ == "__main__":
    sys.exit(main())
