"""The ``pocketsam`` command: every command there is, in the order in which a user meets them."""

from collections.abc import Sequence

from pocketsam.export import commands as exporter
from pocketsam.models.commands.distill import add_distill
from pocketsam.models.commands.evaluate import add_evaluate
from pocketsam.runtime.commands.bench import add_bench
from pocketsam.runtime.commands.embed import add_embed
from pocketsam.runtime.commands.everything import add_everything
from pocketsam.runtime.commands.info import add_info
from pocketsam.runtime.commands.roofline import add_roofline
from pocketsam.runtime.commands.segment import add_segment
from pocketsam.runtime.compare.comparison import add_compare
from pocketsam.terminal import AddCommand, run_command

COMMANDS: tuple[AddCommand, ...] = (
    exporter.add_export,
    exporter.add_verify,
    add_info,
    add_segment,
    add_everything,
    add_embed,
    add_compare,
    add_bench,
    add_roofline,
    exporter.add_download,
    add_distill,
    add_evaluate,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run_command(COMMANDS, argv)
