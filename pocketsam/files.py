"""Files and directories that are written whole or not at all: the one writer of every room."""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pocketsam.errors import PocketSamError


def make_folder(path: Path) -> None:
    """Makes a directory and those above it.

    Raises:
        PocketSamError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PocketSamError(f"{path}: {error.strerror}") from None


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a sibling and renames it once it is whole; the old file stays until then.

    Args:
        path: the file; its folder exists.
        write: is given the sibling's path (with the same suffix) and fills it.

    Raises:
        PocketSamError: the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        work = Path(name)
        try:
            write(work)
            work.chmod(0o644)
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise PocketSamError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes bytes as ``write_file`` does.

    Raises:
        PocketSamError: the file cannot be written.
    """
    write_file(path, lambda work: work.write_bytes(data))


@contextlib.contextmanager
def staged_directory(destination: Path) -> Iterator[Path]:
    """Gives a directory to fill; on leaving without an error it takes the place of ``destination``.

    An error, a full disk included, leaves ``destination`` as it was. A kill leaves at most a hidden
    sibling ``.NAME.XXXX.partial``; ``clear_leftovers`` removes it.

    Args:
        destination: absolute; its parent exists. A directory already there is replaced.

    Raises:
        OSError: the disk takes no more, or the destination cannot be written.
    """
    prefix, suffix = f".{destination.name}.", ".partial"
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=destination.parent))
    try:
        work.chmod(0o755)
        yield work
        _sync(work)
        _swap(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def clear_leftovers(destination: Path) -> None:
    """Removes what a killed ``staged_directory`` left; what it had moved aside comes back."""
    for leftover in destination.parent.glob(f".{glob.escape(destination.name)}.*.partial"):
        if leftover.name.endswith(".old.partial") and not destination.exists():
            leftover.rename(destination)
        else:
            shutil.rmtree(leftover)


def _sync(directory: Path) -> None:
    """Data before name: a crash after the rename must not show a directory of empty files."""
    for path in (p for p in directory.rglob("*") if p.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(work: Path, destination: Path) -> None:
    """``work`` takes the name; what was there goes only once the new one is in its place."""
    if not destination.exists():
        work.rename(destination)
        return
    old = work.with_name(f"{work.name.removesuffix('.partial')}.old.partial")
    destination.rename(old)
    try:
        work.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old)
