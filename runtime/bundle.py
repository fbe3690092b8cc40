"""Reads a bundle: the manifest, and the files that it describes, each checked before it is used.

A bundle comes from anywhere, so nothing in it is trusted: file names stay inside the directory, only
regular files are opened (or links to them, as caches of models make), sizes and hashes must match, and
a model may not refer to a file outside itself.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pocketsam.errors import BundleError, IntegrityError
from pocketsam.reading import read_regular, regular_size
from pocketsam.runtime.contract import ONNX_TARGETS, POINT_LABELS, check_contract
from pocketsam.runtime.json_fields import check_json
from pocketsam.runtime.manifest import MANIFEST_NAME, Manifest
from pocketsam.runtime.manifest_files import MAX_PROMPTS, BundleFile

NETWORKS = ("encoder", "decoder")
MAX_MANIFEST = 2**24
"""Bytes of ``manifest.json``; ours have some ten thousand."""
MAX_FILE = 2**31
"""Bytes of an encoder's, a decoder's or a golden file: no ONNX or TFLite file can be larger."""
CHUNK = 2**20
DEFAULT_BUNDLE = Path(__file__).parent / "default_bundle"
"""The bundle in this package, made from the weights ``default``; see ``models/MODEL_CARD.md``."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read and checked.

    Attributes:
        path: the directory.
        manifest: what ``manifest.json`` says.
    """

    path: Path
    manifest: Manifest

    @property
    def image_size(self) -> int:
        """Side of the square canvas, in pixels."""
        return self.manifest.image_size

    def read(self, network: str) -> bytes:
        """Returns the bytes of a file, after checking them against the manifest.

        Args:
            network: ``encoder``, ``decoder`` or ``golden``.

        Raises:
            IntegrityError: the file is missing, no regular file, or not the one that the manifest
                describes.
            BundleError: it does not fit in memory.
        """
        entry = self._entry(network)
        path = self.path / entry.file
        try:
            self._check_size(path, regular_size(path), entry)
            data = read_regular(path, MAX_FILE)
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}") from None
        except ValueError as error:  # a name that no file system takes
            raise IntegrityError(f"{self.path}: {network} file {entry.file!r}: {error}") from None
        except MemoryError:
            raise BundleError(
                f"{path}: {entry.bytes} bytes do not fit in this machine's memory"
            ) from None
        self._check_hash(path, hashlib.sha256(data).hexdigest(), entry)
        # A tensor kept in another file names it under the key "location". No graph that pocketsam
        # writes contains the word, and any spelling of such a reference must.
        if self.manifest.target in ONNX_TARGETS and network in NETWORKS and b"location" in data:
            raise IntegrityError(f"{path}: refers to external data; a bundle's files stand alone")
        return data

    def inputs(self, network: str) -> list[str]:
        """Returns the names of the encoder's or the decoder's inputs."""
        return [tensor.name for tensor in self.manifest.network(network).inputs]

    @property
    def max_points(self) -> int:
        """Points per prompt in the decoder of a target with static shapes.

        Raises:
            IntegrityError: the manifest does not say.
        """
        points = self.manifest.decoder.max_points
        if points is None:
            raise IntegrityError(f"{self.path / MANIFEST_NAME}: decoder.points is missing")
        return points

    @property
    def prompts_per_call(self) -> int:
        """Prompts that the decoder of a target with static shapes answers at once.

        Raises:
            IntegrityError: the manifest does not say.
        """
        shapes = {tensor.name: tensor.shape for tensor in self.manifest.decoder.inputs}
        count, *_ = *shapes.get(POINT_LABELS, ()), None
        if not isinstance(count, int) or not 1 <= count <= MAX_PROMPTS:
            raise IntegrityError(
                f"{self.path / MANIFEST_NAME}: decoder.inputs: {POINT_LABELS} has no number of "
                f"prompts, 1 to {MAX_PROMPTS}"
            )
        return count

    def locate(self, network: str) -> Path:
        """Returns the path of a network that is a directory (``.mlpackage``), after checking it.

        Args:
            network: ``encoder`` or ``decoder``.

        Raises:
            IntegrityError: the directory is missing, or is not the one that the manifest describes.
        """
        entry = self._entry(network)
        path = self.path / entry.file
        if not path.is_dir():
            raise IntegrityError(f"{path}: missing, or not a directory")
        self._check_size(path, sum(size for _, size in _tree(path)), entry)
        self._check_hash(path, hash_tree(path)[0], entry)
        return path

    def source(self, network: str) -> bytes | Path:
        """Returns the checked path of a directory, or the checked bytes of a file."""
        is_directory = (self.path / self._entry(network).file).is_dir()
        return self.locate(network) if is_directory else self.read(network)

    def _entry(self, name: str) -> BundleFile:
        return self.manifest.golden if name == "golden" else self.manifest.network(name)

    def _check_size(self, path: Path, size: int, entry: BundleFile) -> None:
        if size != entry.bytes:
            raise IntegrityError(f"{path}: {size} bytes, the manifest says {entry.bytes}")

    def _check_hash(self, path: Path, found: str, entry: BundleFile) -> None:
        if found != entry.sha256:
            raise IntegrityError(f"{path}: sha256 is {found}, the manifest says {entry.sha256}")


def hash_tree(directory: Path) -> tuple[str, int]:
    """Returns a sha256 over the names, sizes and contents of a directory's files, and their total size.

    Raises:
        IntegrityError: a file that cannot be read, is not regular, or a link to a directory.
    """
    digest, total = hashlib.sha256(), 0
    try:
        for path, size in _tree(directory):
            digest.update(f"{path.relative_to(directory).as_posix()}\0{size}\0".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
            total += size
    except OSError as error:
        raise IntegrityError(f"{error.filename}: {error.strerror}") from None
    return digest.hexdigest(), total


def _tree(directory: Path) -> Iterator[tuple[Path, int]]:
    """Yields the files below a directory in the order of their names, and their sizes in bytes."""
    try:
        for path in sorted(directory.rglob("*"), key=lambda p: p.relative_to(directory).as_posix()):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size
            elif path.is_symlink() or not stat.S_ISDIR(status.st_mode):
                raise IntegrityError(f"{path}: neither a regular file nor a directory")
    except OSError as error:
        raise IntegrityError(f"{error.filename}: {error.strerror}") from None


def read_model(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a network's file that belongs to no bundle.

    Raises:
        BundleError: it cannot be read, is no regular file, or is too large.
    """
    try:
        return read_regular(Path(path), MAX_FILE)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # a name that no file system takes
        raise BundleError(f"{os.fspath(path)!r}: {error}") from None


def open_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Returns a bundle after checking its manifest; other files are checked when they are read.

    Raises:
        BundleError: not a bundle, or one written by a newer pocketsam.
        IntegrityError: the manifest is damaged.
    """
    path = Path(directory)
    return _parse_bundle(path, _read_manifest(path))


def _read_manifest(path: Path) -> bytes:
    manifest_path = path / MANIFEST_NAME
    try:
        return read_regular(manifest_path, MAX_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: not a bundle (no {MANIFEST_NAME})") from None
    except (OSError, ValueError) as error:  # a name that no file system takes
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{manifest_path}: {reason}") from None


def _parse_bundle(path: Path, data: bytes) -> Bundle:
    manifest_path = path / MANIFEST_NAME
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise IntegrityError(f"{manifest_path}: not JSON: {error}") from None
    check_json(value, manifest_path)
    manifest = Manifest.from_json(value, manifest_path)
    check_contract(manifest, manifest_path)
    return Bundle(path, manifest)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


MOST_PRECISE = ("fp32", "fp16")
"""Precisions that are taken unasked, the first one that a bundle holds."""


def choose_bundle(
    directory: str | os.PathLike[str],
    precision: str | None = None,
    gpu: bool = False,
) -> Bundle:
    """Returns the bundle of a directory, or the bundle of another precision inside it.

    Args:
        directory: the bundle.
        precision: its name; None: fp16 on a GPU, the first of ``MOST_PRECISE`` elsewhere, if the bundle
            holds it; otherwise the bundle's first.
        gpu: whether a GPU runs it.

    Raises:
        BundleError: not a bundle, or it does not hold the precision.
        IntegrityError: it is damaged.
    """
    bundle = open_bundle(directory)
    first, also = bundle.manifest.precision, bundle.manifest.also
    if precision is None:
        wanted = ("fp16",) if gpu else MOST_PRECISE
        precision = next((name for name in wanted if name in (first, *also)), first)
    if precision == first:
        return bundle
    if precision not in also:
        raise BundleError(f"{bundle.path}: holds {', '.join((first, *also))}, not {precision}")
    return _open_inner(bundle, precision)


def choose_bundles(directory: str | os.PathLike[str], precision: str | None = None) -> list[Bundle]:
    """Returns the bundles of a directory: of one precision, or by None of every one that it holds.

    Raises:
        BundleError: not a bundle, or it does not hold the precision.
        IntegrityError: it is damaged.
    """
    if precision is not None:
        return [choose_bundle(directory, precision)]
    bundle = open_bundle(directory)
    return [bundle, *(_open_inner(bundle, name) for name in bundle.manifest.also)]


def _open_inner(bundle: Bundle, precision: str) -> Bundle:
    """Returns the bundle inside another one, if it is the one that the outer manifest names."""
    data = _read_manifest(bundle.path / precision)
    inside = _parse_bundle(bundle.path / precision, data)
    outer, inner = bundle.manifest, inside.manifest
    if (inner.target, inner.image_size, inner.model) != (outer.target, outer.image_size, outer.model):
        raise IntegrityError(f"{inside.path}: another checkpoint, target or size than {bundle.path}")
    wanted = outer.also[precision]
    if wanted and hashlib.sha256(data).hexdigest() != wanted:
        raise IntegrityError(
            f"{inside.path / MANIFEST_NAME}: not the manifest that {bundle.path / MANIFEST_NAME} names "
            f"(sha256 {wanted})"
        )
    if inner.precision != precision:
        raise IntegrityError(f"{inside.path}: its manifest says {inner.precision}, not {precision}")
    return inside
