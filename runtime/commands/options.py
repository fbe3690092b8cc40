"""Options that several commands share."""

import argparse

from pocketsam import terminal
from pocketsam.runtime.segmenter import Segmenter

BUNDLE_HELP = "directory that `pocketsam export` wrote"


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Adds the bundle, ``--provider``, ``--threads`` and ``--precision``."""
    parser.add_argument("bundle", help=BUNDLE_HELP)
    add_device(parser)


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
