"""The ``pocketsam`` command: every command there is, in the order in which a user meets them."""

from collections.abc import Sequence

from pocketsam.export import commands as exporter
from pocketsam.models import commands as trainer
from pocketsam.runtime import commands as runner
from pocketsam.terminal import AddCommand, run_command

COMMANDS: tuple[AddCommand, ...] = (
    exporter.add_export,
    exporter.add_verify,
    *runner.COMMANDS,
    exporter.add_download,
    *trainer.COMMANDS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run_command(COMMANDS, argv)
