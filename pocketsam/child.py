"""Converters as programs of their own: they print without end, pin what they like, hang and crash."""

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketsam.errors import ConversionError

FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system says of a disk that takes no more, in whatever line of a log."""
CHAINED = "The above exception was the direct cause of the following exception:"


def own_environment() -> dict[str, str]:
    """Our variables for a Python of another environment: a leaked PYTHONPATH would mix the two."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run_child(
    command: Sequence[str], what: str, seconds: float, environment: Mapping[str, str] | None = None
) -> None:
    """Runs a converter to its end, its output in a log that is kept only if it fails.

    Args:
        command: program and arguments.
        what: used in error messages.
        seconds: how long it may take.
        environment: its variables; None: ours.

    Raises:
        ConversionError: it is missing, failed, or took too long; the error names the log.
    """
    with tempfile.NamedTemporaryFile("w+b", prefix="pocketsam-", suffix=".log", delete=False) as file:
        log = Path(file.name)
        file.write((" ".join(command) + "\n").encode())
        file.flush()
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=seconds,
                env=None if environment is None else dict(environment), check=False,
            )  # fmt: skip
            problem = _exit(done.returncode) if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"took longer than {seconds:g} s"
        except OSError as error:
            problem = f"cannot be started: {error.strerror}"
        except BaseException:
            log.unlink()
            raise
    if not problem:
        log.unlink()
        return
    last = _last_line(log)
    raise ConversionError(
        f"{what} {problem}, after {time.monotonic() - start:.0f} s{last}; its log: {log}"
    )


def _exit(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _last_line(log: Path) -> str:
    """What a log ends with: of a chain of Python exceptions the first, which has the reason; if a disk
    is full, the line that says so wherever it is."""
    lines = log.read_text(errors="replace").strip().splitlines()[1:]
    if CHAINED in lines:
        lines = [line for line in lines[: lines.index(CHAINED)] if line.strip()]
    telling = [line for line in lines if any(reason in line for reason in FULL)] or lines
    return f": {telling[-1].strip()[:300]}" if telling else ""
