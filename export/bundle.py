"""Writing a bundle: into a temporary sibling, then renamed into place, either whole or absent."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pocketsam.errors import BundleError
from pocketsam.files import clear_leftovers, staged_directory
from pocketsam.runtime.bundle import hash_tree
from pocketsam.runtime.manifest import MANIFEST_NAME, BundleFile, Manifest


@contextlib.contextmanager
def staged(destination: Path, replace: bool) -> Iterator[Path]:
    """Gives a directory to fill; on leaving without an error it becomes the bundle ``destination``.

    As ``files.staged_directory``; what a killed export left is removed first.

    Args:
        destination: may exist only if it is a bundle and ``replace`` is true.
        replace: whether an old bundle gives way.

    Raises:
        BundleError: the destination is taken, or cannot be written.
    """
    destination = destination.resolve()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(destination)
        _check_free(destination, replace)
        with staged_directory(destination) as work:
            yield work
    except OSError as error:
        raise BundleError(f"{error.filename or destination}: {error.strerror or error}") from error


def _check_free(destination: Path, replace: bool) -> None:
    if not destination.exists() and not destination.is_symlink():
        return
    if not (destination / MANIFEST_NAME).is_file():
        if destination.is_dir() and not any(destination.iterdir()):
            return
        raise BundleError(f"{destination}: exists and is not a bundle; choose another place")
    if not replace:
        raise BundleError(f"{destination}: exists; --force replaces it")


def describe_file(path: Path) -> BundleFile:
    """Returns the name, sha256 and size in bytes of a file or an ``.mlpackage``."""
    if path.is_dir():
        digest, size = hash_tree(path)
        return BundleFile(path.name, digest, size)
    data = path.read_bytes()
    return BundleFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``; the same manifest gives the same bytes."""
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
