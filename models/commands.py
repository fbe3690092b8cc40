"""The commands of training: distill."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import ImageError


def add_distill(subparsers: terminal.Subparsers) -> None:
    """Adds ``distill``."""
    parser = subparsers.add_parser(
        "distill",
        help="train MobileSAM's encoder to imitate a larger one",
        description="Runs on any folder of images. Killed and started again, it goes on where it was.",
    )
    parser.add_argument("images", type=Path, help="folder; files that cannot be read are skipped")
    parser.add_argument("--teacher", required=True, help="checkpoint: sam_vit_b, _l, _h, or our own")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: the output's `cache`")
    parser.add_argument("--start", help="a MobileSAM checkpoint to start from")
    parser.add_argument(
        "--mode", choices=("decoupled", "semi-coupled", "coupled", "finetune"), default="decoupled"
    )
    parser.add_argument("--image-size", type=terminal.image_size, default=1024, metavar="S")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=4, help="images at a time")
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--prompts", type=int, default=8, help="per image, where masks are compared")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="bf16-mixed"
    )
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.set_defaults(run=run_distill)


def run_distill(args: argparse.Namespace) -> None:
    """Checks the images, fills the cache, trains."""
    with terminal.extra_needed("train"):
        from pocketsam.models.checkpoint import load_model
        from pocketsam.models.distill import Recipe, distill
        from pocketsam.models.images import check_images, list_images
    good, skipped = check_images(list_images(args.images))
    for line in skipped:
        terminal.say(f"skipped: {line}")
    terminal.say(f"{len(good)} images, {len(skipped)} skipped")
    if not good:
        raise ImageError(f"{args.images}: no image can be used")
    recipe = Recipe(
        mode=args.mode,
        image_size=args.image_size,
        steps=args.steps,
        batch=args.batch,
        accumulate=args.accumulate,
        prompts=args.prompts,
        learning_rate=args.learning_rate,
        seed=args.seed,
        precision=args.precision,
    )

    def progress(what: str, done: int, total: int) -> None:
        terminal.show_progress(f"{what}: {done} of {total}", done == total)

    print(
        distill(
            good,
            load_model(args.teacher, args.image_size),
            args.output,
            args.cache or args.output / "cache",
            recipe,
            args.start,
            args.save_every,
            progress,
        )
    )
