"""``python -m pocketsam.runtime``: the part of the command that a base install can run."""

import sys

from pocketsam.runtime.commands.info import COMMANDS
from pocketsam.terminal import run_command

if __name__ == "__main__":
    sys.exit(run_command(COMMANDS))
