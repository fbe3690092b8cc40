"""``python -m pocketsam.export``: the whole command, as ``pocketsam``."""

import sys

from pocketsam.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
