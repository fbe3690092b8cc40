"""Writing a bundle: into a temporary sibling, then renamed into place, either whole or absent."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketsam.errors import BundleError
from pocketsam.runtime.bundle import hash_tree
from pocketsam.runtime.contract import MANIFEST_NAME


@contextlib.contextmanager
def staged(destination: Path, replace: bool) -> Iterator[Path]:
    """A directory to fill; on leaving without an error it becomes ``destination``.

    An error, a full disk included, leaves ``destination`` as it was. A kill leaves at most a hidden
    sibling ``.NAME.XXXX.partial``, which the next export to the same place removes.

    Args:
        destination: may exist only if it is a bundle and ``replace`` is true.
        replace: whether an old bundle gives way.

    Raises:
        BundleError: the destination is taken, or cannot be written.
    """
    destination = destination.resolve()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _clear_left_overs(destination)
        _check_free(destination, replace)
        work = Path(
            tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent)
        )
        try:
            work.chmod(0o755)
            yield work
            _sync(work)
            _swap(work, destination)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"{error.filename or destination}: {error.strerror or error}") from error


def _clear_left_overs(destination: Path) -> None:
    """What a killed export left; an old bundle that it had moved aside comes back first."""
    for left_over in destination.parent.glob(f".{glob.escape(destination.name)}.*.partial"):
        if left_over.name.endswith(".old.partial") and not destination.exists():
            left_over.rename(destination)
        else:
            shutil.rmtree(left_over)


def _check_free(destination: Path, replace: bool) -> None:
    if not destination.exists() and not destination.is_symlink():
        return
    if not (destination / MANIFEST_NAME).is_file():
        if destination.is_dir() and not any(destination.iterdir()):
            return
        raise BundleError(f"{destination}: exists and is not a bundle; choose another place")
    if not replace:
        raise BundleError(f"{destination}: exists; --force replaces it")


def _sync(directory: Path) -> None:
    """Data before name: a crash after the rename must not show a bundle with empty files."""
    for path in (p for p in directory.rglob("*") if p.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(work: Path, destination: Path) -> None:
    """``work`` takes the name; an old bundle goes only once the new one is in its place."""
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


def describe_file(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file or package: its name, sha256 and size in bytes."""
    if path.is_dir():
        digest, size = hash_tree(path)
        return {"file": path.name, "sha256": digest, "bytes": size}
    data = path.read_bytes()
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes ``manifest.json``; the same manifest gives the same bytes."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
