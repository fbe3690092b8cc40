"""Options that several commands share."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import UsageError
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


def check_is_no_bundle(image: str) -> None:
    """Raises UsageError if a bundle is named where the image should be: the image was forgotten."""
    if (Path(image) / MANIFEST_NAME).is_file():
        raise UsageError(f"{image}: is a bundle; name an image after it")
