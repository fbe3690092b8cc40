"""``pocketsam verify`` without a checkpoint: a bundle's golden vectors, on this machine."""

import argparse

from pocketsam import terminal
from pocketsam.runtime.backends.networks import open_for_device
from pocketsam.runtime.backends.ort import check_threads
from pocketsam.runtime.commands.options import add_bundle
from pocketsam.runtime.golden import check_golden, raise_if_failed


def add_verify(subparsers: terminal.Subparsers) -> argparse.ArgumentParser:
    """Adds the command, and returns its parser: the exporter adds ``--checkpoint``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="does this bundle compute what PyTorch computes?",
        description="Without a checkpoint: the bundle's golden vectors, on this machine.",
    )
    add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
    parser.set_defaults(run=run_verify)
    return parser


def run_verify(args: argparse.Namespace) -> None:
    """Runs the golden vectors.

    ``--json`` prints an object: ``bundle``, ``precision``, ``passed``, ``golden`` (a list of
    ``GoldenResult``) and ``parity`` (null; with a checkpoint the report, and ``golden`` is null).

    Raises:
        ParityError: a result is outside the tolerance.
    """
    check_threads(args.threads)
    bundle = open_for_device(args.bundle, terminal.providers(args), args.precision)
    precision = bundle.manifest.precision
    results = check_golden(
        bundle.path, providers=terminal.providers(args), threads=args.threads, precision=precision
    )
    if args.json:
        terminal.print_json(
            {
                "bundle": str(args.bundle),
                "precision": precision,
                "passed": all(result.ok for result in results),
                "golden": [vars(result) for result in results],
                "parity": None,
            }
        )
    else:
        for result in results:
            print(
                f"{terminal.mark(result.ok)} golden {result.prompt}, {precision}: max |Δ| of the "
                f"logits {result.error:.1e} × scale, of the scores {result.score_error:.1e}"
            )
    raise_if_failed(results)
