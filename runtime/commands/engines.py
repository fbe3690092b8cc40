"""``pocketsam bench --engines``: which engine and precision to use on this machine."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from pocketsam import terminal
from pocketsam.errors import PocketSamError, UsageError
from pocketsam.images import StrPath
from pocketsam.runtime.backends.recorded import Choice, write_choice
from pocketsam.runtime.benchmarks.engines import MIN_IOU, STAGES, Measured, Row, measure_engines
from pocketsam.runtime.bundle import choose_bundle
from pocketsam.runtime.machine import describe_machine, read_state

ENGINES_HELP = (
    "measure every engine and precision that runs the bundle here (and those of the --against bundle), "
    "say which to use, and record it for --provider auto"
)


def run_engines(args: argparse.Namespace) -> None:
    """Runs ``bench --engines``, and records the choice of each bundle.

    Raises:
        UsageError: options that choose an engine beside it.
    """
    for name in ("provider", "precision"):
        if getattr(args, name):
            raise UsageError(f"--engines measures all of them; leave out --{name}")
    bundles = [args.bundle, *([args.against] if args.against else [])]
    how = {"runs": args.runs, "warmup": args.warmup, "threads": args.threads, "image": args.image}
    before = read_state()
    measured = measure_engines(bundles, **how)
    state = {"before": before, "after": read_state()}
    if args.json:
        terminal.print_json(_to_json(measured, bundles[0], how, state))
    else:
        print_engines(measured, bundles)
    for bundle in bundles:
        _record(bundle, args.threads, measured.choices.get(bundle))


def _record(bundle: StrPath, threads: int | None, row: Row | None) -> None:
    choice = Choice(row["provider"], row["precision"]) if row else None
    try:
        path = write_choice(bundle, threads, choice)
    except (OSError, PocketSamError, RuntimeError) as error:
        terminal.say(f"note: not recorded for --provider auto: {error}")
    else:
        done = "recorded for --provider auto" if choice else "--provider auto has no record now"
        terminal.say(f"{done}: {path}")


def _to_json(
    measured: Measured, bundle: StrPath, settings: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what ``--json`` prints; ``summary`` is short enough to paste."""
    machine, manifest = describe_machine(), choose_bundle(bundle).manifest
    use = {path: {key: row[key] for key in ("provider", "precision")} for path, row in _uses(measured)}
    return {
        "machine": machine,
        "state": state,
        "settings": settings,
        "rows": [
            {**row, "golden": not row["golden"], "golden_error": row["golden"]} for row in measured.rows
        ],
        "failed": measured.failed,
        "use": use,
        "summary": {
            "machine": {key: machine[key] for key in ("cpu", "flags", "cores", "system")},
            "checkpoint": manifest.model.checkpoint,
            "image_size": manifest.image_size,
            "rows": [_summary(row) for row in measured.rows],
            "use": list(use.values()),
        },
    }


def _uses(measured: Measured) -> Sequence[tuple[str, Row]]:
    return [(str(path), row) for path, row in measured.choices.items()]


def _summary(row: Row) -> dict[str, Any]:
    """Returns a row's engine, precision, mask IoU with the default's, and median milliseconds."""
    milliseconds = {name: round(row["stages"][name]["p50"] * 1e3, 1) for name in STAGES}
    return {
        "engine": f"{row['target']} {row['provider']}",
        "precision": row["precision"],
        "mask_iou_mean": round(row["mask_iou_mean"], 4),
        "mask_iou": round(row["mask_iou"], 4),
        "golden": not row["golden"],
        "ms": milliseconds,
    }


def print_engines(measured: Measured, bundles: Sequence[StrPath]) -> None:
    """Prints a line for each engine and precision, why others did not run, and which to use."""
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])})")
    names = [f"{row['provider']} {row['target']} {row['precision']}" for row in measured.rows]
    width = max(map(len, names))
    print(
        f"{'median ms':{width}}  encoder   click  in all  ratio  mask IoU mean  worst  golden vectors"
    )
    for name, row in zip(names, measured.rows, strict=True):
        encoder, click, total = (row["stages"][stage]["p50"] * 1e3 for stage in STAGES)
        print(
            f"{name:{width}} {encoder:8.1f}{click:8.1f}{total:8.1f}{row['ratio']:7.2f}"
            f"{row['mask_iou_mean']:15.4f}{row['mask_iou']:7.3f}  {terminal.mark(not row['golden'])}"
            + (f" {row['golden']}" if row["golden"] else "")
        )
    for label, reason in measured.failed.items():
        print(f"{label}: {reason}")
    print("Ratio and mask IoU are beside the first line, what runs unless you say otherwise.")
    for bundle in dict.fromkeys(map(str, bundles)):
        print(f"use for {bundle}: {_advice(measured.choices.get(bundle))}")


def _advice(row: Row | None) -> str:
    if row is None:
        return f"none passes its golden vectors with a mean mask IoU of {MIN_IOU}"
    return (
        f"--provider {row['provider']} --precision {row['precision']}, or --provider auto: "
        f"{row['ratio']:.2f} of the time, mask IoU {row['mask_iou_mean']:.4f}"
    )
