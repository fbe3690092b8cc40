"""``python -m pocketsam``, and the start of the ``pocketsam`` command."""

import os
import signal
import sys

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""


def main() -> int:
    """Runs the command line, Ctrl-C included; returns the exit code.

    While modules are imported, and once the command is done, Ctrl-C ends the process at once: an
    exception there may come out of a library as another one, or be swallowed.
    """
    stopped: list[int] = []

    def remember(number: int, frame: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in the background of a script
    if not is_ignored:
        signal.signal(signal.SIGINT, _stop_at_once)
    if sys.argv[1:2] == ["everything"]:  # numpy's threads spin on, on the cores that the decoder wants
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from pocketsam.cli import main as run

    if not is_ignored:
        signal.signal(signal.SIGINT, remember)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)  # `timeout`, a service that stops: nothing half done stays
    try:
        code = run()
    except BaseException:  # a library that is imported late may make another error of it
        if not stopped:
            raise
        _say()
        return INTERRUPTED
    finally:
        if not is_ignored:
            signal.signal(signal.SIGINT, _stop_at_once)
    return INTERRUPTED if stopped and code else code


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _stop_at_once(number: int, frame: object) -> None:
    _say()
    os._exit(INTERRUPTED)


def _say() -> None:
    os.write(2, b"pocketsam: interrupted\n")


if __name__ == "__main__":
    sys.exit(main())
