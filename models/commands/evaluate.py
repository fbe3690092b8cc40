"""The commands of training: distill, evaluate."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import ImageError, PocketSamError


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
        "--precision",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        help="default: bf16-mixed where the machine computes it, else 32-true",
    )
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.set_defaults(run=run_distill)


def run_distill(args: argparse.Namespace) -> None:
    """Checks the images, fills the cache, trains."""
    with terminal.extra_needed("train"):
        from pocketsam.models.checkpoint import load_model
        from pocketsam.models.images import check_images, list_images
        from pocketsam.models.training.distill import Recipe, distill
        from pocketsam.models.training.run import flush_denormals, usual_precision
    flush_denormals()
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
        precision=args.precision or usual_precision(),
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


def add_evaluate(subparsers: terminal.Subparsers) -> None:
    """Adds ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="mIoU of a model's masks with its teacher's, or with the truth",
        description="Asks every model for masks at the same points, boxes and pairs of points, and "
        "trivial baselines beside them.",
    )
    parser.add_argument("student", metavar="CHECKPOINT", help="the model to judge")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder; what cannot be read is skipped"
    )
    parser.add_argument("--teacher", metavar="CKPT", help="whose masks are the reference")
    parser.add_argument(
        "--truth", type=Path, metavar="DIR", help="label maps STEM.png of the images; 0 is no object"
    )
    parser.add_argument(
        "--scenes", type=int, default=0, metavar="N", help="generated scenes, whose truth is known"
    )
    parser.add_argument(
        "--image-size", type=terminal.image_size, metavar="S", help="canvas; default: the student's own"
    )
    parser.add_argument("--prompts", type=int, default=8, help="clicks in an image without truth")
    parser.add_argument("--seed", type=int, default=0, help="of clicks drawn at random")
    parser.add_argument("--gallery", type=Path, metavar="FILE.png", help="picture of clicks and masks")
    parser.add_argument("--rows", type=int, default=12, help="clicks in the gallery")
    parser.add_argument("--json", action="store_true", help="per image and in sum, to stdout")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Compares image by image, then prints the sums."""
    with terminal.extra_needed("export"):
        import numpy as np

        from pocketsam.models.checkpoint import default_image_size, load_model
        from pocketsam.models.evaluation import evaluate, gallery
        from pocketsam.models.images import check_images, list_images
    _check_evaluation(args)
    size = args.image_size or default_image_size(args.student)
    sources = {evaluate.STUDENT: args.student}
    if args.teacher:
        sources[evaluate.TEACHER] = args.teacher
    loaded = {name: load_model(source, size) for name, source in sources.items()}
    paths, skipped = check_images(list_images(args.images)) if args.images else ([], [])
    found = evaluate.folder_examples(paths, args.truth, size, skipped)
    if args.scenes:
        found = evaluate.scene_examples(args.scenes, size)
    models = {name: one.model for name, one in loaded.items()}
    rng = np.random.default_rng(args.seed)
    scores, panels, images = [], [], []
    for number, example in enumerate(found, start=1):
        more, clicks = evaluate.compare(example, models, args.prompts, rng)
        scores += more
        images.append({"name": example.name, "scores": evaluate.summary(more)})
        if number <= args.rows:
            panels += clicks[:1]
        terminal.show_progress(f"{number} images", number == (args.scenes or len(paths)))
    for line in skipped:
        terminal.say(f"skipped: {line}")
    if not scores:
        raise ImageError(f"{args.images}: no image can be used")
    rows = evaluate.summary(scores)
    if args.gallery:
        gallery.save_picture(gallery.draw_rows(panels), args.gallery)
    if args.json:
        about = {name: {"name": one.name, "sha256": one.sha256} for name, one in loaded.items()}
        terminal.print_json(
            {"image_size": size, **about, "sum": rows, "images": images, "skipped": skipped}
        )
        return
    print(evaluate.table(rows))
    print(f"{len(images)} images, {len(skipped)} skipped, canvas {size}")


def _check_evaluation(args: argparse.Namespace) -> None:
    """Raises PocketSamError where there is nothing to compare, or nothing to compare with."""
    if bool(args.images) == bool(args.scenes):
        raise PocketSamError("evaluate needs either --images DIR or --scenes N")
    if args.truth and args.scenes:
        raise PocketSamError("--truth belongs to --images; scenes know their own")
    if not (args.teacher or args.truth or args.scenes):
        raise PocketSamError("nothing to compare with: give --teacher, --truth, or --scenes")
    if args.truth and not args.truth.is_dir():
        raise ImageError(f"{args.truth}: no such folder")
    for name in ("prompts", "rows"):
        if getattr(args, name) < 1:
            raise PocketSamError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.scenes < 0:
        raise PocketSamError(f"--scenes must be at least 1, not {args.scenes}")
    if args.gallery and not args.gallery.parent.is_dir():
        raise PocketSamError(f"{args.gallery.parent}: no such folder for the gallery")
