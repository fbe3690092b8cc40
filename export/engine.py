"""Engines that live in an environment of their own: where it is, what it runs, arrays to and fro.

A vendor's packages pin what they like, so they are not imported here: a *worker*, a module of the
target's package, is run by the environment's Python, which also finds this package and its torch.
``Environment.run`` has a worker convert; ``open_engine`` has it open a file and answer calls until the
``Engine`` is dropped. Both ends of that pipe are here: the worker calls ``serve``.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.child import own_environment, run_child
from pocketsam.errors import BundleError, MissingEnvironmentError, PocketSamError, first_line

Arrays = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]
Opened = tuple[Callable[[Arrays], Arrays], Shapes]
"""What a worker makes of a file: the network as a function of arrays, and the shapes of its inputs."""

ERROR = "error"
SOURCE = "source"
LENGTH = 8
"""Bytes in front of a message, which say how long it is."""
SECONDS = 120.0
"""How long the environment's Python may take to say which versions it has."""

Scratch = tempfile.TemporaryDirectory[str]
"""Removed when the worker ends."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An environment of its own.

    Attributes:
        title: the engine, in messages.
        package: its distribution on PyPI, imported as ``module``.
        module: see there.
        version: the one that is used.
        folder: beside the environment that this Python runs in.
        variable: of the system's environment; names another Python that has it.
        make: what makes the folder, in a checkout.
    """

    title: str
    package: str
    module: str
    version: str
    folder: str
    variable: str
    make: str

    def python(self) -> str:
        """Returns the Python that has the engine: ``variable``, in ``folder``, or this one.

        Raises:
            MissingEnvironmentError: there is none; the error says how to get it.
            PocketSamError: what ``variable`` names does not run, or has another version.
        """
        named = os.environ.get(self.variable)
        beside = Path(sys.prefix).parent / self.folder / "bin/python"
        if named:
            found = shutil.which(named)
            if not found:
                raise PocketSamError(f"{self.variable}={named}: no such program")
        elif beside.is_file():
            found = str(beside)
        elif find_spec(self.module) is not None:
            found = sys.executable
        else:
            raise MissingEnvironmentError(
                f"{self.title} {self.version} is not installed; run `{self.make}` in a checkout, or "
                f"`pip install {self.package}=={self.version}` beside pocketsam; "
                f"{self.variable}=PYTHON names another environment"
            )
        _check_version(found, self)
        return found

    def run(self, worker: str, arguments: Sequence[str], seconds: float) -> None:
        """Runs a worker to its end.

        Args:
            worker: its module.
            arguments: of it.
            seconds: how long it may take.

        Raises:
            ConversionError: it failed, or took too long; the error names its log.
            PocketSamError: see ``python``.
        """
        command = [self.python(), "-P", "-m", worker, *arguments]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            run_child(command, self.title, seconds, _variables(scratch))


def _variables(scratch: str, threads: int | None = None) -> dict[str, str]:
    """Returns a worker's environment.

    Args:
        scratch: folder for temporary files. Engines leave theirs behind: Core AI tens of megabytes for
            each network that it opens.
        threads: at most so many; None: as many as the engine takes.
    """
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    fixed = {
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
    }  # the same seed for sets, the same bytes
    return own_environment() | fixed | {"TMPDIR": scratch} | limit


@cache
def _check_version(python: str, environment: Environment) -> None:
    """Raises PocketSamError unless a Python has the engine in its version, and this package."""
    code = (
        "import importlib.metadata as m, pocketsam.export.engine; "
        f"print(m.version({environment.package!r}))"
    )
    try:
        done = subprocess.run(
            [python, "-P", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=SECONDS, env=_variables(tempfile.gettempdir()), check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"it does not answer in {SECONDS:g} s"
        raise PocketSamError(f"{python}: cannot be used: {reason}") from None
    if done.stdout.strip() != environment.version:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["nothing"]
        raise PocketSamError(
            f"{python}: {environment.package} {environment.version} is needed, and pocketsam beside "
            f"it; it says {last[0].strip()[:200]!r}; run `{environment.make}` in a checkout"
        )


class Engine:
    """A file that a worker has opened: float32 arrays by name in, the outputs by name out.

    The worker ends when this object is dropped.

    Attributes:
        shapes: of the inputs in the file.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", log: IO[bytes], scratch: Scratch, name: str
    ) -> None:
        self._process, self._log, self._name = process, log, name
        self._turn = threading.Lock()
        weakref.finalize(self, _end, process, log, scratch)
        self.shapes: Shapes = {}

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Returns the outputs.

        Raises:
            BundleError: the engine failed, or ended.
        """
        return self.ask({key: feeds[key] for key in self.shapes if key in feeds})

    def ask(self, message: Arrays) -> Arrays:
        """Sends a message and returns the answer; see ``serve``."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None and pipe_out is not None  # noqa: PT018 - they are pipes
        try:
            with self._turn:
                _send(pipe_in, message)
                answer = _receive(pipe_out)
        except (OSError, EOFError):
            raise BundleError(f"{self._name}: {self._last_words()}") from None
        if ERROR in answer:
            raise BundleError(f"{self._name}: {answer[ERROR]}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"its engine {how}" + (f": {lines[-1].strip()[:300]}" if lines else "")


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes], scratch: Scratch) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, log):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what it had not read
                continue
    scratch.cleanup()


def open_engine(
    environment: Environment, worker: str, source: bytes | Path, name: str, threads: int | None = None
) -> Engine:
    """Has a worker open a network.

    Args:
        environment: where it runs.
        worker: its module.
        source: a file's bytes, or the path of a directory.
        name: the file, in error messages.
        threads: at most so many; None: as many as the engine takes.

    Raises:
        BundleError: it cannot be opened.
        PocketSamError: see ``Environment.python``.
    """
    python = environment.python()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the engine's as long as it lives
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    process = subprocess.Popen(
        [python, "-P", "-m", worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=log, env=_variables(scratch.name, threads),
    )  # fmt: skip
    engine = Engine(process, log, scratch, name)
    content = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.array(str(source))
    answer = engine.ask({SOURCE: content})
    engine.shapes = {key: tuple(int(side) for side in shape) for key, shape in answer.items()}
    return engine


def serve(open_network: Callable[[Any], Opened]) -> None:
    """Answers ``open_engine`` and the calls after it, until the pipe closes. Runs in the worker.

    The first message holds the file, its answer the shapes of the inputs; then each message is a call.

    Args:
        open_network: takes the file's bytes, or a path as text.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the engine prints goes to the log
    network: Callable[[Arrays], Arrays] | None = None
    while True:
        try:
            message = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if network is None:
                source = message[SOURCE]
                opened = str(source) if source.ndim == 0 else source.tobytes()
                network, shapes = open_network(opened)
                answer = {key: np.array(shape, np.int64) for key, shape in shapes.items()}
            else:
                answer = network(message)
        except Exception as error:  # engines raise whatever they like
            answer = {ERROR: np.array(first_line(error)[:500])}
        _send(answers, answer)


def _send(pipe: IO[bytes], message: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **message)  # type: ignore[arg-type]
    data = buffer.getbuffer()
    pipe.write(len(data).to_bytes(LENGTH, "big"))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Arrays:
    """Returns the next message; raises EOFError where the other end is gone."""
    data = _whole(pipe, int.from_bytes(_whole(pipe, LENGTH), "big"))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _whole(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data
