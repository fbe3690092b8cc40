"""Every precision of some targets from one checkpoint, and a table of each target.

``make export-coreml``, ``make export-tflite`` and ``make parity`` run it.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from pocketsam import terminal
from pocketsam.errors import ParityError, PocketSamError
from pocketsam.export.options import Options
from pocketsam.export.pipeline import write_bundle
from pocketsam.export.reference import Reference
from pocketsam.export.target import Target
from pocketsam.export.targets import TARGETS, find_precision
from pocketsam.export.verification.report import Report
from pocketsam.models.checkpoint import DEFAULT, default_image_size
from pocketsam.runtime.benchmarks.timing import bundle_tasks, drawn_image, summarise, time_interleaved
from pocketsam.runtime.bundle import NETWORKS, open_bundle
from pocketsam.runtime.commands.info import notes
from pocketsam.runtime.segmenter import Segmenter

RUNS = 5


def export_all(
    reference: Reference, target: Target, folder: Path, precisions: list[str]
) -> dict[str, Report]:
    """Writes each precision to ``folder/PRECISION``; the reports of those that failed are there too."""
    reports = {}
    for precision in precisions:
        promised = find_precision(target, precision).grade
        start = time.monotonic()
        try:
            (report,) = write_bundle(
                reference,
                folder / precision,
                target,
                Options(precision),
                accept=promised,
                force=True,
                progress=partial(_say, f"{target.name} {precision}"),
            )
        except ParityError as error:
            if error.report is None:
                raise
            report = error.report
            terminal.say(f"{target.name} {precision}: {error}")
        reports[precision] = report
        terminal.say(f"{target.name} {precision}: {time.monotonic() - start:.0f} s")
    return reports


def _say(what: str, line: str) -> None:
    terminal.say(f"{what}: {line}")


def latencies(bundles: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Returns median seconds of each network of bundles that run here, in interleaved rounds."""
    stages: dict[str, Any] = {}
    pixels = drawn_image()
    for name, path in bundles.items():
        try:
            stages |= bundle_tasks(Segmenter(path), pixels, f"{name}/")
        except PocketSamError as error:
            terminal.say(f"no latency for {path}: {error}")
    stages = {name: stage for name, stage in stages.items() if name.endswith(NETWORKS)}
    found: dict[str, dict[str, float]] = {}
    for key, samples in time_interleaved(stages, RUNS, 1).items():
        name, network = key.split("/")
        found.setdefault(name, {})[network] = summarise(samples)["p50"]
    return found


def table(target: Target, reports: dict[str, Report], folder: Path) -> str:
    """Returns a line for each network: file, size, precision, grade, masks, latency.

    ✓ is for what is equivalent or close, ``!`` for what is lossy, ✗ for what failed.
    """
    written = {name: folder / name for name, report in reports.items() if report.ok}
    times = latencies(written)
    lines = [
        f"{'file':44}{'MB':>7}  {'precision':13}{'grade':11}{'masks, encoder and decoder':48}{'ms':>8}"
    ]
    for precision, report in reports.items():
        label = f"{precision:13}{report.grade:11}"
        parity = summary(report)
        if precision not in written:
            lines.append(f"{'(not written)':51}  {label}{terminal.mark(False)} {parity}")
            continue
        manifest = open_bundle(folder / precision).manifest
        for network in NETWORKS:
            entry = manifest.network(network)
            seconds = times.get(precision, {}).get(network)
            latency = f"{seconds * 1e3:8.1f}" if seconds else f"{'-':>8}"
            file = str(folder / precision / entry.file)
            figures = f"{terminal.mark_grade(report.grade, True)} {parity:46}{latency}"
            lines.append(f"{file:44}{entry.bytes / 1e6:7.1f}  {label}{figures}")
            lines += [f"  {note}" for note in notes(entry)]
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Returns the figures that matter most: encoder and decoder chained, against PyTorch."""
    rows = {row.name: row.summary() for row in report.rows}
    masks, low_res = rows["end to end masks"], rows["end to end low_res_masks"]
    least, mean = masks["mask_iou"], masks["mask_iou_mean"]
    return f"IoU {mean:.4f}, the least {least:.4f}, SNR {low_res['snr_db']:.0f} dB"


def run_target(
    reference: Reference, target: Target, folder: Path, precisions: list[str] | None
) -> bool:
    """Exports to a target and prints its table; returns whether every precision passed."""
    every = [precision.name for precision in target.precisions]
    reports = export_all(reference, target, folder, precisions or every)
    print(table(target, reports, folder))
    failed = [name for name, report in reports.items() if not report.ok]
    passed = [name for name in ("fp16", *reports) if name in reports and name not in failed]
    if passed:
        print(f"\nnext: {target.next_step.format(path=folder / passed[0])}\n")
    return not failed


def _parse_target(text: str) -> tuple[Target, list[str]]:
    """Returns a target and the precisions that are asked for: ``coreai:fp32,fp16``."""
    name, _, precisions = text.partition(":")
    if name not in TARGETS:
        raise argparse.ArgumentTypeError(f"{name!r}: known are {', '.join(TARGETS)}")
    return TARGETS[name], list(filter(None, precisions.split(",")))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.benchmarks.precisions", description=__doc__
    )
    parser.add_argument(
        "targets",
        nargs="+",
        type=_parse_target,
        metavar="TARGET[:PRECISION,…]",
        help="of them, only these",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for DIR/TARGET/…")
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.parse_image_size, metavar="S")
    parser.add_argument("--precision", action="append", help="only these; may be repeated")
    args = parser.parse_args(argv)
    size = args.image_size or default_image_size(args.checkpoint)
    try:
        reference = Reference(args.checkpoint, size, progress=terminal.say)
        passed = [
            run_target(reference, target, args.output / target.name, precisions or args.precision)
            for target, precisions in args.targets
        ]
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0 if all(passed) else 3


if __name__ == "__main__":
    sys.exit(main())
