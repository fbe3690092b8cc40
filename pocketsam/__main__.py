"""The ``pocketsam`` command: what the rooms offer, behind one door."""

import sys

from pocketsam.export import commands as exporter
from pocketsam.models import commands as trainer
from pocketsam.runtime.commands import info as runtime
from pocketsam.terminal import run_command


def main() -> int:
    """Runs the command line; returns the exit code."""
    return run_command(
        [
            exporter.add_export,
            exporter.add_verify,
            *(add for add in runtime.COMMANDS if add is not runtime.add_verify_golden),
            exporter.add_download,
            trainer.add_distill,
            trainer.add_evaluate,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
