"""The commands of the exporter: export, verify against a checkpoint, download."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.export.options import POINTS, Options
from pocketsam.export.targets import TARGETS
from pocketsam.runtime.commands import info as runtime_commands

CHECKPOINT_HELP = (
    ".pt or .safetensors file; `default`: the trained weights in this package; `seeded`: untrained"
)


def add_export(subparsers: terminal.Subparsers) -> None:
    """Adds ``export``."""
    parser = subparsers.add_parser("export", help="turn a checkpoint into a verified bundle")
    parser.add_argument("checkpoint", nargs="?", default="default", help=CHECKPOINT_HELP)
    parser.add_argument("--target", choices=sorted(TARGETS), default="onnx")
    precisions = sorted({p for _, _, names in TARGETS.values() for p in names})
    parser.add_argument("--precision", choices=precisions, default="fp32")
    parser.add_argument(
        "--also",
        action="append",
        choices=precisions,
        default=[],
        help="a further precision in the same bundle, repeatable; the runtime takes what suits",
    )
    parser.add_argument(
        "--image-size",
        type=terminal.image_size,
        metavar="S",
        help="side of the canvas, a multiple of 64; cost falls with its square (default: what the "
        "checkpoint was trained at, 512 for `default`, 1024 for others)",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=POINTS,
        metavar="N",
        help=f"places for points in Core ML's and TFLite's decoder; a box takes two (default {POINTS})",
    )
    parser.add_argument(
        "--input",
        choices=("tensor", "image"),
        default="tensor",
        help="Core ML: the encoder takes a normalised tensor, or a picture that it normalises itself",
    )
    parser.add_argument(
        "--deployment-target",
        metavar="iOSNN",
        help="Core ML: oldest system to run on, such as iOS17",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=Options.timeout,
        metavar="S",
        help="seconds for an outside converter",
    )
    _add_onnx_options(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is already there")
    parser.add_argument("--no-verify", action="store_true", help="skip parity; the bundle will say so")
    parser.add_argument("--json", action="store_true", help="the parity report to stdout")
    _add_images(parser)
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="PATH",
        help="photographs to measure ranges on (fp16, int8); default: three more of scikit-image's",
    )
    parser.set_defaults(run=run_export)


def _add_onnx_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-miou",
        type=_share,
        default=Options.min_miou,
        metavar="X",
        help="ONNX int8: mean IoU with float32's masks; layers stay in float32 until it is reached",
    )
    parser.add_argument(
        "--min-speedup",
        type=float,
        default=Options.min_speedup,
        metavar="X",
        help="ONNX int8: refuse to write an encoder that is not X times as fast as float32 here",
    )
    parser.add_argument(
        "--without-pass",
        action="append",
        default=[],
        metavar="NAME",
        help="ONNX: leave out a pass that makes the decoder fast: cells, masks",
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="PATH",
        help="photographs (files or folders) to verify on; default: three of scikit-image's",
    )


def run_export(args: argparse.Namespace) -> None:
    """Exports, verifies, and prints the report."""
    with terminal.extra_needed("export"):
        from pocketsam.export.parity import ReportedParityError
        from pocketsam.export.pipeline import export_bundle
        from pocketsam.models.checkpoint import default_image_size
    try:
        report = export_bundle(
            args.checkpoint,
            args.output,
            args.target,
            Options(
                args.precision,
                args.points,
                args.input == "image",
                args.deployment_target,
                args.timeout,
                args.min_miou,
                args.min_speedup,
                tuple(args.disable_pass),
            ),
            args.image_size or default_image_size(args.checkpoint),
            verify=not args.no_verify,
            replace=args.force,
            photos=args.images,
            calibration=args.calibration,
            progress=terminal.say,
            also=args.also,
        )
    except ReportedParityError as error:
        _print_report(error.report.to_json(), args.json)
        raise
    if report is None:
        terminal.say("not verified, as asked; the bundle's manifest says so")
    else:
        _print_report(report.to_json(), args.json)
    terminal.say(f"wrote {args.output}")


def _print_report(report: dict[str, object], as_json: bool) -> None:
    if as_json:
        terminal.print_json(report)
    else:
        runtime_commands.print_parity(report)


def add_verify(subparsers: terminal.Subparsers) -> None:
    """Adds ``verify``: the runtime's, and against a checkpoint."""
    parser = runtime_commands.add_verify(subparsers)
    parser.add_argument("--checkpoint", metavar="FILE", help=f"compare with PyTorch: {CHECKPOINT_HELP}")
    _add_images(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> None:
    """Compares a bundle with a checkpoint, or runs its golden vectors."""
    if args.checkpoint is None:
        runtime_commands.run_verify(args)
        return
    with terminal.extra_needed("export"):
        from pocketsam.export.pipeline import verify_bundle
    report = verify_bundle(
        Path(args.bundle),
        args.checkpoint,
        args.images,
        terminal.say,
        terminal.providers(args),
        args.threads,
    )
    _print_report(report.to_json(), args.json)
    report.raise_if_failed()


def add_download(subparsers: terminal.Subparsers) -> None:
    """Adds ``download``."""
    from pocketsam.models.download import CHECKPOINTS

    parser = subparsers.add_parser("download", help="fetch an official checkpoint, verified")
    parser.add_argument("name", choices=sorted(CHECKPOINTS))
    parser.add_argument("--output", type=Path, default=Path(), metavar="PATH", help="file or directory")
    parser.add_argument("--url", help="another address of the same file")
    parser.set_defaults(run=run_download)


def run_download(args: argparse.Namespace) -> None:
    """Downloads; a broken download resumes when run again."""
    from pocketsam.models.download import download

    def progress(done: int, total: int) -> None:
        terminal.show_progress(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB", done == total)

    print(download(args.name, args.output, url=args.url, progress=progress))


COMMANDS: tuple[terminal.AddCommand, ...] = (add_export, add_verify, add_download)
