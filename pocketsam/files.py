"""Files and directories that are written whole or not at all: the one writer of every room."""

import contextlib
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

    An error, a full disk included, leaves ``destination`` as it was. All happens in a hidden sibling
    ``.NAME.partial``, which is locked; the system takes the lock from a process that ends. A kill
    leaves the sibling, and the next run takes it over. A file system without locks (some of a network)
    cannot tell a killed run from a running one, and the error says what to remove.

    Args:
        destination: absolute; its parent exists. A directory already there is replaced.

    Raises:
        PocketSamError: another process is writing the same destination.
        OSError: the disk takes no more, or the destination cannot be written.
    """
    claim = destination.with_name(f".{destination.name}.partial")
    lock = _lock(claim, destination)
    try:
        _settle(claim, destination)
        work = claim / "new"
        work.mkdir()
        work.chmod(0o755)
        yield work
        _sync(work)
        _swap(claim, destination)
    finally:
        with contextlib.suppress(OSError):  # what stays, the next run removes
            _settle(claim, destination)
            claim.rmdir()
        os.close(lock)


def _lock(claim: Path, destination: Path) -> int:
    """Makes a directory, or takes over a killed run's; returns the descriptor that holds its lock."""
    import fcntl  # of POSIX; this module is imported where nothing is exported, too

    while True:
        try:
            claim.mkdir()
            is_new = True
        except FileExistsError:
            is_new = False
        try:
            lock = os.open(claim, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another run has ended meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or not is_new:
                os.close(lock)
                hint = "" if isinstance(error, BlockingIOError) else f"; if none is, remove {claim}"
                raise PocketSamError(
                    f"{destination}: another pocketsam is writing it; wait for it, or choose another "
                    f"place{hint}"
                ) from None
        if _has_name(lock, claim):
            return lock
        os.close(lock)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:  # as above
        return False


def _settle(claim: Path, destination: Path) -> None:
    """Empties a claimed directory; what a swap that was cut short had moved aside comes back first."""
    old = claim / "old"
    if old.exists() and not destination.exists():
        old.rename(destination)
    elif old.exists():  # half removed, it must not come back
        old.rename(claim / "gone")
    for entry in claim.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(directory: Path) -> None:
    """Data before name: a crash after the rename must not show a directory of empty files."""
    for path in (p for p in directory.rglob("*") if p.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(claim: Path, destination: Path) -> None:
    """``new`` takes the name; what was there is moved aside, and goes once the new one is in place."""
    if destination.exists():
        destination.rename(claim / "old")
    (claim / "new").rename(destination)
