"""``pocketsam export --for TOOL``."""

import argparse

from pocketsam import terminal
from pocketsam.errors import UsageError
from pocketsam.export.drop_in import export_for
from pocketsam.export.options import OPTION_NAMES


def run_export_for(args: argparse.Namespace) -> None:
    """Exports for another tool, and says how its masks agree with PyTorch's.

    ``--json`` prints the directory, the tool, the precision and the IoU of each case.
    """
    unread = {"--target": args.target != "onnx", "--also": args.also, "--no-verify": args.no_verify}
    unread |= {"--accept": args.accept != "close", "--keep-failed": args.keep_failed}
    unread |= {f"--{name.replace('_', '-')}": getattr(args, name) is not None for name in OPTION_NAMES}
    for option, is_given in unread.items():
        if is_given:
            raise UsageError(f"--for does nothing with {option}")
    agreement = export_for(
        args.tool,
        args.checkpoint,
        args.output,
        precision=args.precision,
        image_size=args.image_size,
        images=args.images,
        calibration=args.calibration,
        force=args.force,
        progress=terminal.say,
    )
    if args.json:
        about = {"directory": str(args.output), "tool": args.tool, "precision": args.precision}
        terminal.print_json(about | {"mask_iou": agreement.ious})
        return
    case, worst = agreement.worst
    terminal.say(f"mask IoU with PyTorch's: mean {agreement.mean:.4f}, worst {worst:.4f} ({case})")
    terminal.say(f"wrote {args.output}; next: read {args.output / 'README.md'}")
