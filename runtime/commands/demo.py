"""``pocketsam demo``: cuts an object out of a photograph; bundle and photograph are in this package."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import UsageError
from pocketsam.files import make_folder, write_bytes
from pocketsam.images import load_image
from pocketsam.runtime.commands import results
from pocketsam.runtime.commands.segment import find_objects
from pocketsam.runtime.prompts import Point
from pocketsam.runtime.segmenter import Segmenter

PHOTO = Path(__file__).parent.parent / "demo.jpg"
"""Eileen Collins, by NASA, in the public domain; ``astronaut`` in scikit-image."""
CLICK: Point = (225, 110, 1)


def add_demo(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "demo",
        help="cut an object out of a photograph that comes with pocketsam",
        description="Needs no file, no network and no PyTorch.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("pocketsam-demo"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> None:
    """Writes the photograph and what ``segment`` writes for a click on it.

    Raises:
        UsageError: the folder holds files of these names that the demo did not write.
    """
    make_folder(args.output)
    photo = args.output / "photo.jpg"
    is_ours = photo.is_file() and photo.read_bytes() == PHOTO.read_bytes()
    for file in (photo, *(args.output / name for name in results.ALL_NAMES)):
        if file.exists() and not is_ours:
            raise UsageError(f"{file}: exists, and is not the demo's; choose another --output")
    write_bytes(photo, PHOTO.read_bytes())
    image = load_image(photo)
    segmenter = Segmenter()
    segmenter.set_image(image)
    found = find_objects(segmenter, [CLICK], [])
    written = results.write_all(
        args.output, results.Results(photo.name, image, found, segmenter.manifest)
    )
    for file in written:
        print(f"wrote {file}")
    x, y, _ = CLICK
    print(f"the same by hand: pocketsam segment {photo} --point {x},{y} --output {args.output}")
