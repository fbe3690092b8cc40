"""``pocketsam evaluate``: the mIoU of a checkpoint's masks with a teacher's, or with the truth."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketsam import terminal
from pocketsam.errors import ImageError, PocketSamError, UsageError

if TYPE_CHECKING:
    from pocketsam.models.checkpoint import Loaded
    from pocketsam.models.evaluation.evaluate import Panel, Score
    from pocketsam.models.evaluation.examples import Example
    from pocketsam.models.training.answers import Answers

_PROMPTS, _SEED, _ROWS = 8, 0, 12


@dataclass
class _Compared:
    """What is found in the images.

    Attributes:
        scores: of all masks.
        images: name and means of each image.
        panels: of the gallery.
        answers: of the checkpoint, to a click on each object, where the true masks are known.
    """

    scores: "list[Score]" = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    panels: "list[Panel]" = field(default_factory=list)
    answers: "list[Answers]" = field(default_factory=list)


def add_evaluate(subparsers: terminal.Subparsers) -> None:
    """Adds ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="mIoU of a checkpoint's masks with a teacher's, or with the truth",
        description="Compares masks of the checkpoint, its teacher and trivial baselines at the same "
        "points, boxes and pairs of points.",
    )
    parser.add_argument("checkpoint", help="to evaluate: a file or a name, as of `export`")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder; files that cannot be read are skipped"
    )
    parser.add_argument(
        "--scenes", type=int, metavar="N", help="generated scenes with known masks, instead of --images"
    )
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="its masks are a reference")
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="DIR",
        help="label maps of the images, STEM.png: 0 is no object, any other value is one; STEM_2.png "
        "for objects that overlap those",
    )
    _add_numbers(parser)
    parser.add_argument(
        "--gallery", type=Path, metavar="FILE", help="draw clicks and masks into a .png or .jpg"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="draw predicted and true IoU into a .png or .jpg; needs known masks",
    )
    parser.add_argument(
        "--json", action="store_true", help="one object to stdout, described in docs/distillation.md"
    )
    parser.set_defaults(run=run_evaluate)


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    """Adds the options that are numbers."""
    parser.add_argument(
        "--image-size",
        type=terminal.parse_image_size,
        metavar="S",
        help="side of the canvas, a multiple of 64 (default: the checkpoint's, 512 for `default`, else "
        "1024)",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        metavar="N",
        help=f"random clicks in each image; not with known masks (default: {_PROMPTS})",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=f"of random clicks and of pairs of points; needs --teacher (default: {_SEED})",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help=f"clicks in the gallery (default: {_ROWS})"
    )


def run_evaluate(args: argparse.Namespace) -> None:
    """Compares image by image, then prints the means."""
    _check(args)
    with terminal.extra_needed("export"):
        from pocketsam.models.checkpoint import default_image_size, load_model
        from pocketsam.models.evaluation import evaluate, examples
        from pocketsam.models.images import check_folder
    size = args.image_size or default_image_size(args.checkpoint)
    paths, skipped = check_folder(args.images) if args.images else ([], [])
    models = {evaluate.STUDENT: load_model(args.checkpoint, size, terminal.say)}
    if args.teacher:
        models[evaluate.TEACHER] = load_model(args.teacher, size, terminal.say)
    if args.scenes:
        found = examples.scene_examples(args.scenes, size)
    else:
        found = examples.folder_examples(paths, args.truth, size, skipped)
    compared = _compare(found, models, args)
    for line in skipped:
        terminal.say(f"skipped: {line}")
    if not compared.scores:
        raise ImageError(f"{args.images}: no image can be used")
    _draw(compared, args)
    _print(compared, models, size, skipped, args.json)


def _draw(compared: "_Compared", args: argparse.Namespace) -> None:
    """Draws the pictures that were asked for."""
    from pocketsam.models.evaluation import gallery

    if args.gallery:
        gallery.save_picture(gallery.draw_rows(compared.panels), args.gallery)
    if args.calibration:
        with terminal.extra_needed("train"):
            from pocketsam.models.training.answers import join_answers
            from pocketsam.models.training.plots import draw_calibration
        answers = join_answers(compared.answers)
        draw_calibration(answers.scores, answers.ious, args.calibration)


def _print(
    compared: "_Compared", models: "dict[str, Loaded]", size: int, skipped: list[str], as_json: bool
) -> None:
    """Prints the means."""
    from pocketsam.models.evaluation import evaluate
    from pocketsam.models.training.answers import by_size, join_answers, score_error, size_table

    rows = evaluate.summary(compared.scores)
    answers = join_answers(compared.answers) if compared.answers else None
    if as_json:
        student, teacher = (_about(models.get(name)) for name in (evaluate.STUDENT, evaluate.TEACHER))
        result: dict[str, Any] = {
            "image_size": size,
            "student": student,
            "teacher": teacher,
            "summary": rows,
        }
        if answers:
            result |= {"sizes": by_size(answers), "score_error": score_error(answers)}
        terminal.print_json({**result, "images": compared.images, "skipped": skipped})
        return
    print(evaluate.table(rows))
    if answers:
        print(size_table(answers))
    print(f"{len(compared.images)} images, {len(skipped)} skipped, canvas {size}")


def _about(loaded: "Loaded | None") -> dict[str, str] | None:
    """Returns a checkpoint's ``name`` and ``sha256``."""
    return None if loaded is None else {"name": loaded.name, "sha256": loaded.sha256}


def _compare(
    examples: "Iterable[Example]", models: "dict[str, Loaded]", args: argparse.Namespace
) -> "_Compared":
    """Returns what is found in all images."""
    import numpy as np

    from pocketsam.models.evaluation import evaluate

    networks = {name: loaded.model for name, loaded in models.items()}
    click_count, seed, rows = (
        usual if value is None else value
        for value, usual in ((args.prompts, _PROMPTS), (args.seed, _SEED), (args.rows, _ROWS))
    )
    rng = np.random.default_rng(seed)
    found = _Compared()
    for example in examples:
        clicked = evaluate.Clicked(example, networks, click_count, rng)
        new_scores = evaluate.score_image(clicked, rng)
        found.scores += new_scores
        found.images.append({"name": example.name, "scores": evaluate.summary(new_scores)})
        answers = clicked.by_object()
        found.answers += [answers] if answers else []
        if len(found.images) <= rows:
            found.panels += evaluate.panels_of(clicked)[:1]
        terminal.show_progress(f"{len(found.images)} images", last=False)
    terminal.show_progress(f"{len(found.images)} images", last=True)
    return found


def _check(args: argparse.Namespace) -> None:
    """Checks the options.

    Raises:
        UsageError: there is nothing to compare, or to compare with, a value is out of range, or an
            option does nothing.
        PocketSamError: a folder is missing.
    """
    for name in ("scenes", "prompts", "rows"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    if args.seed is not None and args.seed < 0:
        raise UsageError(f"--seed must not be negative, but it is {args.seed}")
    if (args.images is None) == (args.scenes is None):
        raise UsageError("evaluate needs either --images DIR or --scenes N")
    if args.truth and args.scenes:
        raise UsageError("--truth belongs to --images; the masks of scenes are known")
    if not (args.teacher or args.truth or args.scenes):
        raise UsageError("nothing to compare with: give --teacher, --truth, or --scenes")
    if args.prompts is not None and (args.truth or args.scenes):
        raise UsageError("--prompts does nothing with --truth or --scenes: each object gets a click")
    if args.seed is not None and not args.teacher:
        raise UsageError("--seed does nothing without --teacher: no prompt is random")
    if args.rows is not None and not args.gallery:
        raise UsageError("--rows does nothing without --gallery")
    if args.calibration and not (args.truth or args.scenes):
        raise UsageError("--calibration needs --truth or --scenes: without masks no IoU is true")
    for name in ("gallery", "calibration"):
        path = getattr(args, name)
        if path and path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise UsageError(f"{path}: the {name} must be a .png or .jpg file")
        if path and not path.parent.is_dir():
            raise PocketSamError(f"{path.parent}: no such folder for the {name}")
    if args.truth and not args.truth.is_dir():
        raise ImageError(f"{args.truth}: no such folder")
