"""``pocketsam verify`` without a checkpoint: a bundle's golden vectors, on this machine."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pocketsam import terminal
from pocketsam.runtime.bundle import choose_bundles
from pocketsam.runtime.commands.options import add_bundle, add_device
from pocketsam.runtime.verification.golden import check_golden, raise_if_failed
from pocketsam.runtime.verification.golden_result import GoldenResult


def add_verify(subparsers: terminal.Subparsers) -> argparse.ArgumentParser:
    """Adds the command, and returns its parser: the exporter adds ``--checkpoint``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="does this bundle compute what PyTorch computes?",
        description="Without a checkpoint: the bundle's golden vectors, on this machine. Each "
        "precision of a bundle that holds several, unless --precision names one.",
    )
    add_bundle(parser)
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
    parser.set_defaults(run=run_verify)
    return parser


def run_verify(args: argparse.Namespace) -> None:
    """Runs the golden vectors.

    Raises:
        ParityError: a result is outside the tolerance.
    """
    how = {"threads": args.threads, "precision": args.precision}
    report_golden(args, check_golden(args.bundle, providers=terminal.providers(args), **how))


def report_golden(args: argparse.Namespace, results: Sequence[GoldenResult]) -> None:
    """Prints golden results, and a last line that says OK.

    Raises:
        ParityError: a result is outside the tolerance, or there is none.
    """
    by_precision: dict[str, list[GoldenResult]] = {}
    for result in results:
        by_precision.setdefault(result.precision, []).append(result)
    if args.json:
        found = {name: [r.to_json() for r in group] for name, group in by_precision.items()}
        print_verified(args.bundle, found, {})
    else:
        for result in results:
            print(f"{terminal.mark(result.ok)} {_line(result)}")
    raise_if_failed(results)
    if not args.json:
        bundles = (choose_bundles(args.bundle, name)[0] for name in by_precision)
        grades = {bundle.manifest.precision: bundle.manifest.grade for bundle in bundles}
        reduced = {result.arithmetic for result in results} - {"f32"}
        told = {name: _computed(grade, reduced) for name, grade in grades.items()}
        print_ok(told, "golden vectors")


def _computed(grade: str | None, reduced: Collection[str]) -> str | None:
    """Returns a grade as it is where an encoder is computed in fewer bits: at best ``close``."""
    if not reduced:
        return grade
    return f"{'close' if grade == 'equivalent' else grade or 'not graded'}, in {' '.join(reduced)}"


def print_verified(
    directory: str, golden: Mapping[str, Any], parity: Mapping[str, dict[str, Any]]
) -> None:
    """Prints the result of ``verify`` as JSON.

    An object: ``bundle``, ``passed``, and ``precisions``: of each its ``precision``, ``grade`` (that
    the report found; without a checkpoint the export's, null if it was not verified), ``passed``,
    ``golden`` (a list of results; null with a checkpoint) and ``parity`` (the report; null without).

    Args:
        directory: the bundle.
        golden: precision to results.
        parity: precision to report.
    """
    entries = []
    for precision in golden or parity:
        (bundle,) = choose_bundles(directory, precision)
        report, results = parity.get(precision), golden.get(precision)
        passed = report["passed"] if report else all(result["ok"] for result in results or [])
        grade = report["grade"] if report else bundle.manifest.grade
        if grade == "equivalent" and any("arithmetic" in result for result in results or []):
            grade = "close"
        about = {"precision": precision, "grade": grade, "passed": passed}
        entries.append(about | {"golden": results, "parity": report})
    passed = bool(entries) and all(entry["passed"] for entry in entries)
    terminal.print_json({"bundle": str(directory), "passed": passed, "precisions": entries})


def print_ok(grades: Mapping[str, str | None], what: str) -> None:
    """Prints the last line: OK, with the precisions and their grades."""
    listed = ", ".join(f"{name} ({grade or 'not graded'})" for name, grade in grades.items())
    print(f"OK: {what}: {listed}")


def _line(result: GoldenResult) -> str:
    figures = result.figures
    how = "" if result.arithmetic == "f32" else f" in {result.arithmetic}"
    return (
        f"{result.precision}{how}, golden {result.where} beside {result.against}: "
        f"SNR {figures['snr_db']:.1f} dB, IoU of the least mask {figures['mask_iou']:.4f}, "
        f"|Δ| of the scores {figures['score']:.1e}, best mask "
        f"{'kept' if figures['best_kept'] == 1 else 'another'}"
    )
