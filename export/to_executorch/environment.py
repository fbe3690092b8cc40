"""Where ExecuTorch is: its packages pin some of ours, so it has an environment of its own."""

from pocketsam.export.engine import Environment

EXECUTORCH = Environment(
    title="ExecuTorch",
    package="executorch",
    module="executorch",
    version="1.5.1",
    folder=".venv-executorch",
    variable="POCKETSAM_EXECUTORCH",
    make="make executorch-env",
)
"""``requirements.txt`` beside this file names the same version, and what else it imports."""
