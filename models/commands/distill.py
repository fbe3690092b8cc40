"""``pocketsam distill``: trains MobileSAM's encoder to imitate a larger one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pocketsam import terminal
from pocketsam.errors import ImageError, UsageError
from pocketsam.traits import Traits

if TYPE_CHECKING:
    from pocketsam.models.checkpoint import Loaded

_PROMPTS = 8


def add_distill(subparsers: terminal.Subparsers) -> None:
    """Adds ``distill``."""
    parser = subparsers.add_parser(
        "distill",
        help="train MobileSAM's encoder to imitate a larger one",
        description="Trains on any folder of images, and prints the path of the student. After a kill, "
        "the same command resumes.",
    )
    parser.add_argument("images", type=Path, help="folder; files that cannot be read are skipped")
    parser.add_argument("--teacher", required=True, metavar="CHECKPOINT", help="SAM, as of `export`")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of the teacher's embeddings (default: `cache` in the output)",
    )
    parser.add_argument(
        "--start",
        metavar="CHECKPOINT",
        help="MobileSAM checkpoint to start from; needed with --mode finetune (default: an untrained "
        "encoder under the teacher's decoder)",
    )
    parser.add_argument(
        "--mode",
        choices=("decoupled", "semi-coupled", "coupled", "finetune"),
        default="decoupled",
        help="what is compared and what is trained; see docs/distillation.md (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=terminal.parse_image_size,
        metavar="S",
        help="side of the canvas, a multiple of 64 (default: the teacher's, 512 for `default`, else "
        "1024)",
    )
    _add_training_options(parser)
    parser.set_defaults(run=run_distill)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the numbers of the training."""

    def add(name: str, default: float, text: str, metavar: str = "N") -> None:
        text = f"{text} (default: %(default)s)"
        parser.add_argument(name, type=type(default), default=default, metavar=metavar, help=text)

    add("--steps", 10_000, "steps of the optimizer")
    add("--batch", 4, "images that are computed together")
    add("--accumulate", 1, "batches for each step")
    parser.add_argument(
        "--prompts",
        type=int,
        metavar="N",
        help=f"random prompts for each image; not with --mode decoupled (default: {_PROMPTS})",
    )
    add("--learning-rate", 1e-3, "the highest, after the warm-up", "X")
    add("--seed", 0, "of the order of the images and of the prompts")
    parser.add_argument(
        "--compute",
        choices=("fp32", "bf16", "fp16"),
        help="number format of the training (default: bf16 where the machine computes it, else fp32)",
    )
    add("--save-every", 200, "steps between saved states")


def run_distill(args: argparse.Namespace) -> None:
    """Checks the options and the images, then trains."""
    with terminal.extra_needed("train"):
        from pocketsam.models.checkpoint import default_image_size
        from pocketsam.models.images import check_folder
        from pocketsam.models.training.distill import distill
        from pocketsam.models.training.recipe import Recipe, check_recipe
        from pocketsam.models.training.run import default_compute, flush_denormals
    if args.prompts is not None and args.mode == "decoupled":
        raise UsageError("--prompts does nothing with --mode decoupled, which compares no masks")
    recipe = Recipe(
        mode=args.mode,
        image_size=args.image_size or default_image_size(args.teacher),
        steps=args.steps,
        batch=args.batch,
        accumulate=args.accumulate,
        prompts=_PROMPTS if args.prompts is None else args.prompts,
        learning_rate=args.learning_rate,
        seed=args.seed,
        compute=args.compute or default_compute(),
    )
    check_recipe(recipe, args.start, args.save_every)
    flush_denormals()
    outputs = [args.output, *([args.cache] if args.cache else [])]
    images, skipped = check_folder(args.images, outputs)
    for line in skipped:
        terminal.say(f"skipped: {line}")
    terminal.say(f"{len(images)} images, {len(skipped)} skipped, canvas {recipe.image_size}")
    if not images:
        raise ImageError(f"{args.images}: no image can be used")
    student = distill(
        images,
        _load_teacher(args.teacher, recipe.image_size),
        args.output,
        recipe,
        cache_folder=args.cache,
        start=args.start,
        save_every=args.save_every,
        progress=_show_progress,
    )
    print(student)
    terminal.say(f"the student is trained; next: pocketsam export {student} --output BUNDLE")


def _load_teacher(source: str, image_size: int) -> "Loaded":
    """Returns a checkpoint, unless MobileSAM's encoder cannot imitate its encoder."""
    from pocketsam.models.checkpoint import load_model

    teacher = load_model(source, image_size, terminal.say)
    if teacher.model.traits != Traits():
        raise UsageError(
            f"{source}: {teacher.architecture} has an embedding or a normalisation of another kind "
            "than MobileSAM, whose encoder cannot imitate it"
        )
    return teacher


def _show_progress(what: str, done: int, total: int) -> None:
    """Shows a line of progress."""
    terminal.show_progress(f"{what}: {done} of {total}", done == total)
