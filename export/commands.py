"""The commands of the exporter: export, verify against a checkpoint, download."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pocketsam.export as exporter
from pocketsam import terminal
from pocketsam.errors import ParityError
from pocketsam.export.drop_in.command import run_export_for
from pocketsam.export.drop_in.tools import TOOLS
from pocketsam.export.options import OPTION_NAMES, Options
from pocketsam.export.targets import TARGETS
from pocketsam.models.download import CHECKPOINTS, download
from pocketsam.runtime.bundle import choose_bundles
from pocketsam.runtime.commands import verify as golden_command
from pocketsam.runtime.commands.info import print_parity
from pocketsam.runtime.verification.tolerance import GRADE_NAMES

if TYPE_CHECKING:
    from pocketsam.export.verification.report import Report

CHECKPOINT_HELP = (
    f".pt, .pth, .ckpt, .bin or .safetensors file; {', '.join(CHECKPOINTS)}: official weights, "
    "downloaded once; `default`: the repository's weights, in an editable install; `seeded`: untrained"
)


def add_export(subparsers: terminal.Subparsers) -> None:
    """Adds ``export``."""
    parser = subparsers.add_parser("export", help="turn a checkpoint into a verified bundle")
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the bundle")
    _add_what(parser)
    parser.add_argument(
        "--image-size",
        type=terminal.parse_image_size,
        metavar="S",
        help="side of the canvas, a multiple of 64; cost falls with its square (default: what the "
        "checkpoint says that it was trained at, 512 for `default`; else 1024)",
    )
    _add_judgement(parser)
    parser.add_argument("--force", action="store_true", help="replace a bundle that is already there")
    parser.add_argument("--json", action="store_true", help="print the parity report to stdout")
    _add_images(parser)
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="PATH",
        help="photographs to measure ranges on, files or folders, for the precisions that need them "
        "(default: three more of scikit-image's)",
    )
    _add_target_options(parser)
    parser.set_defaults(run=run_export)


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Adds what is written: the format or the tool, and the precisions."""
    precisions = sorted({p.name for target in TARGETS.values() for p in target.precisions})
    parser.add_argument(
        "--target", choices=sorted(TARGETS), default="onnx", help="format (default: onnx)"
    )
    parser.add_argument(
        "--for",
        dest="tool",
        choices=list(TOOLS),
        help="instead of a bundle, files that this tool takes as they are",
    )
    parser.add_argument(
        "--precision",
        choices=precisions,
        help="one of the target's (default: fp32, for the web int8-weights)",
    )
    parser.add_argument(
        "--also",
        action="append",
        choices=precisions,
        default=[],
        help="a further precision in the same bundle, repeatable; the runtime takes the most "
        "precise, on a GPU fp16",
    )


def _add_judgement(parser: argparse.ArgumentParser) -> None:
    """Adds what becomes of files that differ from PyTorch."""
    parser.add_argument("--no-verify", action="store_true", help="skip parity; the bundle will say so")
    parser.add_argument(
        "--accept",
        choices=GRADE_NAMES,
        default="close",
        help="the worst grade that is written: masks as the checkpoint's to round-off (equivalent), "
        "to the eye (close, default), or whatever they are (lossy)",
    )
    parser.add_argument(
        "--keep-failed",
        action="store_true",
        help="keep files that fail in DIR.failed, and draw the worst mask in DIR.failed.png",
    )


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    """Adds the fields of ``Options``; those that a target does not read are refused."""
    group = parser.add_argument_group("options of single targets and precisions")
    group.add_argument(
        "--max-points",
        type=int,
        metavar="N",
        help="not for ONNX: points of a prompt in the decoder, 10 or more; a box takes two "
        f"(default: {Options.max_points})",
    )
    group.add_argument(
        "--prompts-per-call",
        type=int,
        metavar="Q",
        help="not for ONNX: prompts that the decoder answers at once, always all of them: 1 for "
        f"clicks (default: {Options.prompts_per_call}), 64 for everything mode",
    )
    group.add_argument(
        "--input",
        choices=("tensor", "image"),
        help="Core ML: the encoder takes a normalised tensor (default), or an image that it normalises",
    )
    group.add_argument(
        "--deployment-target", metavar="iOSNN", help="Core ML: oldest system to run on, such as iOS17"
    )
    group.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help=f"not for ONNX: for a run of an outside converter (default: {Options.timeout:g})",
    )
    _add_onnx_options(group)


def _add_onnx_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--min-miou",
        type=float,
        metavar="X",
        help="ONNX int8: mean IoU with PyTorch's masks; layers stay in float32 until it is reached "
        f"(default: {Options.min_miou})",
    )
    group.add_argument(
        "--min-speedup",
        type=float,
        metavar="X",
        help="ONNX int8: refuse an encoder that is not X times as fast as float32 here "
        f"(default: {Options.min_speedup:g})",
    )
    group.add_argument(
        "--weight-bits",
        type=int,
        metavar="N",
        help="ONNX int8: bits that weights use, 7 or 8; with 8 the masks are better, and the file runs "
        f"only on CPUs with VNNI or AMX, or ARM's (default: {Options.weight_bits})",
    )
    group.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="ONNX: operator set of the files, 15 to 20, for engines that know no newer one (20)",
    )
    group.add_argument(
        "--disabled-passes",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,…",
        help="ONNX: leave out passes that make the decoder fast: cells, masks",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="PATH",
        help="photographs to verify on, files or folders (default: three of scikit-image's)",
    )


def run_export(args: argparse.Namespace) -> None:
    """Exports, verifies, and prints the report.

    ``--json`` prints an object: ``bundle``, ``target``, ``precision``, and ``parity``, the report
    of the first precision (null with ``--no-verify``), which has the ``grade``.
    """
    args.precision = args.precision or TARGETS[args.target].usual_precision
    if args.tool is not None:
        run_export_for(args)
        return
    try:
        report = exporter.export(
            args.checkpoint,
            args.output,
            target=args.target,
            precision=args.precision,
            also=args.also,
            image_size=args.image_size,
            images=args.images,
            calibration=args.calibration,
            verify=not args.no_verify,
            accept=args.accept,
            force=args.force,
            keep_failed=args.keep_failed,
            progress=terminal.say,
            **{name: getattr(args, name) for name in OPTION_NAMES},
        )
    except ParityError as error:
        if error.report is not None:
            _print_exported(args, error.report)
        raise
    _print_exported(args, report)
    for inside in choose_bundles(args.output)[1:]:
        terminal.say(f"also {inside.manifest.precision}: {inside.manifest.grade or 'not verified'}")
    next_step = TARGETS[args.target].next_step.format(path=args.output)
    terminal.say(f"wrote {args.output}; next: {next_step}")


def _print_exported(args: argparse.Namespace, report: "Report | None") -> None:
    parity = None if report is None else report.to_json()
    if args.json:
        precision = args.precision if report is None else report.precision
        about = {"target": args.target, "precision": precision, "parity": parity}
        terminal.print_json({"bundle": str(args.output), **about})
    elif parity is not None:
        print_parity(parity)
    else:
        terminal.say("not verified, as asked; the bundle's manifest says so")


def add_verify(subparsers: terminal.Subparsers) -> None:
    """Adds ``verify``: golden vectors, or a comparison with a checkpoint."""
    parser = golden_command.add_verify(subparsers)
    parser.add_argument("--checkpoint", metavar="FILE", help=f"compare with PyTorch: {CHECKPOINT_HELP}")
    _add_images(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> None:
    """Compares a bundle with a checkpoint, or runs its golden vectors."""
    if args.checkpoint is None:
        how = {"images": args.images, "threads": args.threads, "precision": args.precision}
        results: Any = exporter.verify(args.bundle, providers=terminal.providers(args), **how)
        golden_command.report_golden(args, results)
        return
    reports: Any = exporter.verify(
        args.bundle,
        checkpoint=args.checkpoint,
        images=args.images,
        precision=args.precision,
        providers=terminal.providers(args),
        threads=args.threads,
        progress=terminal.say,
    )
    parity = {report.precision: report.to_json() for report in reports}
    if args.json:
        golden_command.print_verified(args.bundle, {}, parity)
    else:
        for entry in parity.values():
            print_parity(entry)
    for report in reports:
        report.raise_if_failed()
    if not args.json:
        grades = {name: entry["grade"] for name, entry in parity.items()}
        golden_command.print_ok(grades, f"every tensor and mask beside {args.checkpoint}")


def add_download(subparsers: terminal.Subparsers) -> None:
    """Adds ``download``."""
    parser = subparsers.add_parser("download", help="fetch an official checkpoint, verified")
    parser.add_argument("name", choices=sorted(CHECKPOINTS))
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="PATH", help="file or directory (default: here)"
    )
    parser.add_argument("--url", help="another address of the same file")
    parser.set_defaults(run=run_download)


def run_download(args: argparse.Namespace) -> None:
    """Downloads; a broken download resumes when run again."""

    def progress(done: int, total: int) -> None:
        terminal.show_progress(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB", done == total)

    print(download(args.name, args.output, url=args.url, progress=progress))


COMMANDS: tuple[terminal.AddCommand, ...] = (add_export, add_verify, add_download)
