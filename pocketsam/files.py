"""Files and directories that are written whole or not at all: the one writer of every room."""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pocketsam.errors import PocketSamError

try:
    import fcntl
except ModuleNotFoundError:  # Windows; there nothing is exported, and files are written without locks
    fcntl = None  # type: ignore[assignment]


MAX_NAME = 255
"""Bytes of the longest file name that common file systems take."""
OWNER = "process"
"""Name of the file in a claimed directory that says who claimed it."""


def make_folder(path: Path) -> None:
    """Makes a directory and those above it.

    Raises:
        PocketSamError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PocketSamError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # a name that no file system takes
        raise PocketSamError(f"{str(path)!r}: {error}") from None


@contextlib.contextmanager
def _staged_file(path: Path) -> Iterator[Path]:
    """Gives a sibling to write; on leaving without an error it takes the place of ``path``.

    The sibling ``.NAME.partial.SUFFIX`` is locked, so that a second writer waits. A kill leaves it, and
    whoever writes the file next takes it over.

    Raises:
        PocketSamError: the file cannot be written.
    """
    try:
        work = path.with_name(_partial_name(path.stem, path.suffix))
        lock = _claim_file(work)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
        reason = error.strerror if isinstance(error, OSError) else None
        raise PocketSamError(f"{str(path)!r}: cannot be written: {reason or error}") from None
    try:
        try:
            yield work
            work.replace(path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise
        finally:
            _unlock(lock)
    except OSError as error:
        raise PocketSamError(f"{path}: cannot be written: {error.strerror or error}") from None


def _partial_name(stem: str, suffix: str = "") -> str:
    """Returns the hidden name under which something is written; a long one is cut, and stays unique."""
    name = f".{stem}.partial{suffix}"
    if len(os.fsencode(name)) <= MAX_NAME:
        return name
    return f".{hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]}.partial{suffix}"


def write_files(jobs: Sequence[tuple[Path, Callable[[Path], object]]]) -> None:
    """Writes siblings, and renames them, the last one first, once all are whole.

    Args:
        jobs: each file, whose folder exists, and what fills the sibling whose path it is given (with
            the same suffix).

    Raises:
        PocketSamError: a file cannot be written; then none is, unless a rename fails.
    """
    for path, _ in jobs:
        if os.path.isdir(path):  # False for names that no file system takes, which are refused below
            raise PocketSamError(f"{path}: cannot be written: is a directory")
    with contextlib.ExitStack() as stack:
        for path, write in jobs:
            write(stack.enter_context(_staged_file(path)))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file as ``write_files`` does."""
    write_files([(path, write)])


def _claim_file(work: Path) -> int | None:
    """Makes an empty file, once no other process writes it; returns the descriptor with its lock."""
    while True:
        lock = os.open(work, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            status = os.fstat(lock)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # it would be overwritten
                raise OSError(errno.EINVAL, f"{work} is not a file of ours; remove it")
            if fcntl:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
            is_ours = _has_name(lock, work)  # else another writer has finished meanwhile
            if is_ours:
                os.ftruncate(lock, 0)
            if is_ours and fcntl:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # Windows renames no open file
        if is_ours:
            return None


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


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
    claim = destination.with_name(_partial_name(destination.name))
    lock = _lock(claim, destination)
    try:
        _settle(claim, destination)
        (claim / OWNER).write_text(str(os.getpid()))
        work = claim / "new"
        work.mkdir()
        yield work
        _sync(work)
        _swap(claim, destination)
    finally:
        with contextlib.suppress(OSError):  # what stays, the next run removes
            _settle(claim, destination)
            claim.rmdir()
        _unlock(lock)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keeps a directory for this process while a long run writes to it; a kill frees it.

    Args:
        folder: it exists. Where there are no locks (Windows, some file systems of a network), none is
            taken.

    Raises:
        PocketSamError: another process has it.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if fcntl else None
    try:
        if lock is not None:
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise PocketSamError(
                        f"{folder}: another pocketsam trains in it; wait, or choose another folder"
                    ) from None
        yield
    finally:
        _unlock(lock)


def _lock(claim: Path, destination: Path) -> int | None:
    """Makes a directory, or takes over a killed run's; returns the descriptor that holds its lock."""
    while True:
        try:
            claim.mkdir()
            is_new = True
        except FileExistsError:
            is_new = False
        if not fcntl:
            if is_new:
                return None
            raise _busy(destination, claim, is_certain=False)
        try:
            lock = os.open(claim, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another run has ended meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or not is_new:
                os.close(lock)
                is_certain = isinstance(error, BlockingIOError)
                raise _busy(destination, claim, is_certain=is_certain) from None
        if _has_name(lock, claim):
            return lock
        os.close(lock)


def _busy(destination: Path, claim: Path, *, is_certain: bool) -> PocketSamError:
    """Returns the error that says who writes a directory, and what to do."""
    owner = ""
    with contextlib.suppress(OSError, ValueError):
        owner = f" (process {int((claim / OWNER).read_text())})"
    hint = "" if is_certain else f"; if none is, remove {claim}"
    return PocketSamError(
        f"{destination}: another pocketsam{owner} is writing it; wait for it, or choose another place"
        f"{hint}"
    )


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
        with path.open("rb+") as stream:  # Windows syncs no file that is open for reading only
            os.fsync(stream.fileno())


def _swap(claim: Path, destination: Path) -> None:
    """``new`` takes the name; what was there goes once the new one is in place.

    Linux and macOS exchange the two in one step. Elsewhere the old one is moved aside first, and a kill
    between the two renames leaves it there, from where the next run brings it back.
    """
    if destination.exists() and not _exchange(claim / "new", destination):
        destination.rename(claim / "old")
    if not destination.exists():
        (claim / "new").rename(destination)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two directories in one step; returns whether the system and its disk can."""
    names = [os.fsencode(path) for path in (first, second)]
    with contextlib.suppress(AttributeError, OSError, TypeError):  # a C library without it
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, 2) == 0)  # RENAME_SWAP
        at_cwd, exchange = -100, 2
        return bool(library.renameat2(at_cwd, names[0], at_cwd, names[1], exchange) == 0)
    return False
