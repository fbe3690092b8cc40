"""Writing a bundle: into a temporary sibling, then renamed into place, either whole or absent."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pocketsam.errors import BundleError
from pocketsam.files import staged_directory
from pocketsam.runtime.bundle import hash_tree
from pocketsam.runtime.manifest import MANIFEST_NAME, Manifest
from pocketsam.runtime.manifest_files import BundleFile


@contextlib.contextmanager
def staged_bundle(output: Path, force: bool) -> Iterator[Path]:
    """Gives a directory to fill; on leaving without an error it becomes the bundle ``output``.

    See ``files.staged_directory``; what a killed export left is removed first. A second export to the
    same place, while one is running, is refused.

    Args:
        output: may exist only if it is a bundle and ``force`` is true, or an empty directory.
        force: whether an old bundle gives way.

    Raises:
        BundleError: the output is taken, or cannot be written.
        PocketSamError: another process is writing it.
    """
    output = resolve_place(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(output) as work:
            check_free(output, force)
            yield work
    except OSError as error:
        raise BundleError(f"{error.filename or output}: {error.strerror or error}") from error


def resolve_place(output: Path) -> Path:
    """Returns the absolute path of a bundle.

    Raises:
        BundleError: a name that no file system takes, or the root of one.
    """
    try:
        resolved = output.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL; links in a circle
        raise BundleError(f"{str(output)!r}: {error}; choose another place") from None
    if not resolved.name:
        raise BundleError(f"{resolved}: is no place for a bundle; choose another one")
    return resolved


def check_free(output: Path, force: bool) -> None:
    """Raises BundleError unless a bundle may be written there; see ``staged_bundle``."""
    if not output.exists() and not output.is_symlink():
        return
    if not (output / MANIFEST_NAME).is_file():
        if output.is_dir() and not any(output.iterdir()):
            return
        raise BundleError(f"{output}: exists and is not a bundle; choose another place")
    if not force:
        raise BundleError(f"{output}: exists; --force replaces it")


def describe_file(path: Path) -> BundleFile:
    """Returns the name, sha256 and size in bytes of a file or an ``.mlpackage``."""
    if path.is_dir():
        digest, size = hash_tree(path)
        return BundleFile(path.name, digest, size)
    data = path.read_bytes()
    return BundleFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Writes ``manifest.json``; the same manifest gives the same bytes. Returns their sha256."""
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    data = f"{text}\n".encode(
        errors="backslashreplace"
    )  # names that are no UTF-8, as JSON escapes them
    (directory / MANIFEST_NAME).write_bytes(data)
    return hashlib.sha256(data).hexdigest()
