"""Options that several commands share."""

import argparse
import math
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import UsageError
from pocketsam.images import Pixels, StrPath, Window, load_image
from pocketsam.runtime.bundle import DEFAULT_BUNDLE
from pocketsam.runtime.manifest import MANIFEST_NAME
from pocketsam.runtime.segmenter import Segmenter


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Adds the bundle, which may be left out."""
    parser.add_argument(
        "bundle",
        nargs="?",
        default=str(DEFAULT_BUNDLE),
        help="directory that `pocketsam export` wrote (default: the bundle in this package)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--provider``, ``--threads`` and ``--precision``."""
    terminal.add_device_options(parser)
    terminal.add_precision(parser)


def open_segmenter(args: argparse.Namespace) -> Segmenter:
    """Returns a segmenter of the command's bundle; says on stderr if the weights are untrained."""
    segmenter = Segmenter(
        args.bundle,
        providers=terminal.providers(args),
        threads=args.threads,
        precision=args.precision,
    )
    if not segmenter.manifest.model.trained:
        terminal.say("note: this bundle holds untrained weights; its masks mean nothing")
    return segmenter


def add_window(parser: argparse.ArgumentParser) -> None:
    """Adds ``--window``."""
    parser.add_argument(
        "--window",
        type=_parse_window,
        metavar="LOW,HIGH",
        help="of images with 16 bits: the values that become black and white (default: 0,65535)",
    )


def _parse_window(text: str) -> Window:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be two numbers, LOW,HIGH") from None
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: LOW must be less than HIGH, both finite")
    return low, high


def read_image(args: argparse.Namespace, path: StrPath) -> Pixels:
    """Returns an image's pixels through ``--window``, which must not change.

    Raises:
        ImageError: as ``load_image`` does.
    """
    pixels = load_image(path, window=args.window)
    pixels.flags.writeable = False  # so that nobody needs a copy
    return pixels


def check_is_no_bundle(image: str) -> None:
    """Raises UsageError if a bundle is named where the image should be: the image was forgotten."""
    if (Path(image) / MANIFEST_NAME).is_file():
        raise UsageError(f"{image}: is a bundle; name an image after it")
