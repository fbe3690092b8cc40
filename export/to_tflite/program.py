"""The program onnx2tf: which version, where it is, how to get it.

It needs Python 3.12 and pins all its packages exactly, so it lives in an environment of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pocketsam.child import own_environment
from pocketsam.errors import MissingEnvironmentError, PocketSamError

ONNX2TF = "2.6.9"
"""The one version that is used; the Makefile reads it here."""
ONNX2TF_VARIABLE = "POCKETSAM_ONNX2TF"
HOW = (
    "run `make tflite-env` in a checkout, or `python3.12 -m venv DIR && DIR/bin/pip install "
    f"onnx2tf=={ONNX2TF}` and set {ONNX2TF_VARIABLE}=DIR/bin/onnx2tf"
)
STATIC_LAYERS = "static"
"""In the file of samples: the group of the weights of layers whose activations have 8 bits."""
SECONDS = 120.0
"""How long the program may take to say its version: it imports numpy and onnx first."""


def find_onnx2tf() -> str:
    """Returns the path of onnx2tf: ``POCKETSAM_ONNX2TF``, in ``.venv-tflite`` beside the environment
    that this Python runs in, or on PATH; never one in the current directory.

    Raises:
        MissingEnvironmentError: there is none; the error says how to get it.
        PocketSamError: what ``POCKETSAM_ONNX2TF`` names is no program.
    """
    named = os.environ.get(ONNX2TF_VARIABLE)
    if named:
        found = shutil.which(named)
        if not found:
            raise PocketSamError(f"{ONNX2TF_VARIABLE}={named}: no such program")
        return found
    beside = Path(sys.prefix).parent / ".venv-tflite/bin/onnx2tf"
    found = shutil.which(beside) or shutil.which("onnx2tf")
    if not found:
        raise MissingEnvironmentError(
            f"TFLite export needs onnx2tf {ONNX2TF} in an environment of its own (Python 3.12 or "
            f"newer): {HOW}"
        )
    return os.path.abspath(found)


def check_version(program: str) -> None:
    """Asks onnx2tf for its version.

    Raises:
        PocketSamError: it is not ``ONNX2TF``, or it does not say; the error says how to get that one.
    """
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=SECONDS, env=own_environment(), check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"it says no version in {SECONDS:g} s"
        raise PocketSamError(f"{program}: cannot be used: {reason}; {HOW}") from None
    lines = done.stdout.split("\n") if done.returncode == 0 else []
    if ONNX2TF not in (line.strip() for line in lines):
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["nothing"]
        raise PocketSamError(
            f"{program}: onnx2tf {ONNX2TF} is needed, and `--version` of this one says "
            f"{last[0].strip()[:200]!r}; {HOW}"
        )
