"""``pocketsam compare``: whose masks are closest to a reference system's, and how fast."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pocketsam import terminal
from pocketsam.errors import ImageError, UsageError
from pocketsam.files import make_folder, write_file
from pocketsam.images import Pixels, list_folder, load_image
from pocketsam.runtime.backends.ort import check_threads
from pocketsam.runtime.commands.folders import output_names
from pocketsam.runtime.commands.options import add_device
from pocketsam.runtime.compare.comparison import (
    PROMPTS,
    Answers,
    FastSamSystem,
    SamSystem,
    Summary,
    System,
    compare,
)
from pocketsam.runtime.compare.fastsam import FastSam
from pocketsam.runtime.machine import describe_machine
from pocketsam.runtime.overlay import draw_overlay
from pocketsam.runtime.segmenter import Segmenter

TILE = 320
"""Longest side of an image in a picture, in pixels."""


def add_compare(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "compare",
        help="whose masks are closest to a reference system's, and how fast",
        description="Gives all systems pairs of points at growing distance, and boxes; prints the mean "
        "IoU with the reference.",
    )
    parser.add_argument("images", help="an image, or a folder of images, without the folders inside it")
    parser.add_argument("--reference", required=True, metavar="BUNDLE", help="such as one of SAM ViT-H")
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="[NAME=]BUNDLE", help="repeatable"
    )
    parser.add_argument(
        "--fastsam",
        action="append",
        default=[],
        metavar="[NAME=]FILE.onnx",
        help="FastSAM or another YOLOv8-seg; repeatable",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        default=PROMPTS,
        metavar="N",
        help=f"prompts of each kind per image (default {PROMPTS})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts (default 0)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for a picture of each image")
    parser.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
    add_device(parser)
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> None:
    """Runs the command.

    ``--json`` prints an object: ``machine``, and ``systems``, a ``Summary`` of each by its name.
    """
    check_threads(args.threads)
    if args.prompts < 1:
        raise UsageError(f"--prompts {args.prompts}: must be at least 1")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: must not be negative")
    reference, systems = _open_systems(args)
    paths, skipped = _list_files(Path(args.images))
    pictures = {} if args.output is None else _plan_pictures(args.output, paths)

    def skip(reason: str) -> None:
        terminal.say(f"skipped: {reason}")
        skipped.append(reason)

    def report(name: str, pixels: Pixels, answers: list[Answers]) -> None:
        if not answers:
            skip(f"{name}: no prompt fits in {pixels.shape[1]}x{pixels.shape[0]} pixels")
            return
        if name in pictures:
            draw_picture(pictures[name], pixels, answers)
        terminal.say(f"{name}: {len(answers)} prompts")

    images = _read_images(paths, skip)
    tallies = compare(reference, systems, images, prompts=args.prompts, seed=args.seed, report=report)
    if not tallies["reference"].image_s:
        raise ImageError(f"{args.images}: no image could be used; the first: {skipped[0]}")
    summaries = {name: tally.summary() for name, tally in tallies.items()}
    if args.json:
        terminal.print_json({"machine": describe_machine(), "systems": summaries})
    else:
        print(table(summaries))
    if skipped:
        raise ImageError(f"{args.images}: {len(skipped)} images were skipped; the first: {skipped[0]}")


def _open_systems(args: argparse.Namespace) -> tuple[System, list[System]]:
    """Returns the reference and the systems to compare with it.

    Raises:
        UsageError: there is none, or two have the same name.
    """
    if not args.bundle and not args.fastsam:
        raise UsageError("nothing to compare with the reference: give --bundle or --fastsam")
    bundles, files = ([split_name(text) for text in texts] for texts in (args.bundle, args.fastsam))
    names = ["reference", *(name for name, _ in (*bundles, *files))]
    if len(set(names)) < len(names):
        raise UsageError(f"two systems of the same name ({', '.join(names)}): give NAME=PATH")

    def open_system(name: str, path: str) -> System:
        device = {"providers": terminal.providers(args), "threads": args.threads}
        return SamSystem(name, Segmenter(path, precision=args.precision, **device))

    reference = open_system("reference", args.reference)
    systems = [open_system(*pair) for pair in bundles]
    for name, path in files:
        systems.append(FastSamSystem(name, FastSam(path, terminal.providers(args), args.threads)))
    return reference, systems


def _list_files(path: Path) -> tuple[list[Path], list[str]]:
    """Returns the images that ``images`` names, and a line for each that cannot be taken."""
    if not path.is_dir():
        return [path], []
    files, skipped = list_folder(path)
    for line in skipped:
        terminal.say(f"skipped: {line}")
    return files, skipped


def _plan_pictures(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Returns the picture to draw of each image, by the image's name.

    Raises:
        UsageError: one would replace an image.
    """
    pictures = [folder / f"{name}.png" for name in output_names(files)]
    for picture in pictures:
        if picture.exists() and any(file.exists() and picture.samefile(file) for file in files):
            raise UsageError(f"{picture}: is one of the images; choose another --output")
    return dict(zip((file.name for file in files), pictures, strict=True))


def _read_images(files: Iterable[Path], skip: Callable[[str], None]) -> Iterator[tuple[str, Pixels]]:
    """Yields names and pixels, one image at a time; ``skip`` gets the reason why one cannot be used."""
    for file in files:
        try:
            pixels = load_image(file)
        except ImageError as error:
            skip(str(error))
            continue
        yield file.name, pixels


def split_name(text: str) -> tuple[str, str]:
    """Returns (name, path) of NAME=PATH; the name of a path alone is the file's name."""
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).name or text, text)


def draw_picture(path: Path, pixels: Pixels, answers: list[Answers]) -> None:
    """Draws a row for the first prompt of each kind, a column for each system, the reference first."""
    first: dict[str, Answers] = {}
    for prompt, masks in answers:
        first.setdefault(prompt.kind, (prompt, masks))
    rows = []
    for prompt, masks in first.values():
        points = [] if prompt.points is None else [(float(x), float(y), 1) for x, y in prompt.points]
        boxes = [] if prompt.box is None else [tuple(map(float, prompt.box))]
        tiles = []
        for mask in masks:
            tile = draw_overlay(pixels, [mask], points, boxes)  # type: ignore[arg-type]
            tile.thumbnail((TILE, TILE))
            tiles.append(np.asarray(tile))
        rows.append(np.concatenate(tiles, axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    make_folder(path.parent)
    write_file(path, lambda work: picture.save(work))


def table(summaries: dict[str, Summary]) -> str:
    """Returns Markdown: a line for each system, a column for each kind of prompt."""
    kinds = list(next(iter(summaries.values()))["miou"])
    lines = [f"| system | precision | {' | '.join(kinds)} | image ms | prompt ms |"]
    lines.append("|---|---|" + "---|" * (len(kinds) + 2))
    for name, row in summaries.items():
        ious = " | ".join(f"{row['miou'][kind]:.3f}" for kind in kinds)
        about = f"| {name} | {row['precision']} | {ious} |"
        lines.append(f"{about} {1e3 * row['image_s']:.0f} | {1e3 * row['prompt_s']:.0f} |")
    return "\n".join(lines)
