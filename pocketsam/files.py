"""Files that are whole or not there."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pocketsam.errors import PocketSamError


def make_folder(path: Path) -> None:
    """A directory, with those above it; raises PocketSamError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PocketSamError(f"{path}: {error.strerror}") from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a sibling written and renames it, so that the file is whole or as it was.

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
