"""Where Apple's packages are: pre-releases, pinned, in an environment of their own."""

from pocketsam.export.engine import Environment

COREAI = Environment(
    title="Core AI",
    package="coreai-core",
    module="coreai",
    version="1.0.0b3",
    folder=".venv-coreai",
    variable="POCKETSAM_COREAI",
    make="make coreai-env",
)
"""``requirements.txt`` beside this file names the same version, and what else it imports."""
PROGRAMS = {"coreai-torch": "0.4.3", "coreai-opt": "0.4.0"}
"""What comes with it: the converter, and what makes weights small."""
