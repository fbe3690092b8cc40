"""``python -m pocketsam``: the ``pocketsam`` command."""

import sys

from pocketsam.cli import main

if __name__ == "__main__":
    sys.exit(main())
