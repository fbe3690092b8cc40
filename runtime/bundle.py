"""Reading a bundle: the manifest, and the files it describes, each checked before it is used.

A bundle comes from anywhere, so nothing in it is trusted: file names stay inside the directory, sizes
and hashes must match, and a model may not refer to a file outside itself.
"""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketsam.errors import BundleError, IntegrityError
from pocketsam.runtime.contract import MANIFEST_NAME, SCHEMA_VERSION

NETWORKS = ("encoder", "decoder")
STATIC_TARGETS = ("coreml", "tflite")
"""Formats with static shapes: their decoder takes one prompt with a fixed number of points."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read and checked; its files are read by ``read``.

    Attributes:
        path: the directory.
        manifest: the manifest as it stands in the file.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the square canvas, in pixels."""
        return int(self.manifest["image_size"])

    def read(self, network: str) -> bytes:
        """The bytes of one file: ``encoder``, ``decoder`` or ``golden``.

        Raises:
            IntegrityError: the file is missing, leaves the directory, or is not the one described.
        """
        entry = self.manifest[network]
        try:
            path = self._inside(network, entry["file"])
            data = path.read_bytes()
        except OSError as error:
            raise IntegrityError(f"{self.path / entry['file']}: {error.strerror}") from None
        except ValueError as error:  # a name that no file system takes
            raise IntegrityError(f"{self.path}: {network} file {entry['file']!r}: {error}") from None
        if len(data) != entry["bytes"]:
            raise IntegrityError(f"{path}: {len(data)} bytes, the manifest says {entry['bytes']}")
        found = hashlib.sha256(data).hexdigest()
        if found != entry["sha256"]:
            raise IntegrityError(f"{path}: sha256 is {found}, the manifest says {entry['sha256']}")
        # A tensor kept in another file names it under the key "location". The word occurs in no
        # graph of ours, and any spelling of such a reference must contain it.
        if self.manifest["target"] == "onnx" and network in NETWORKS and b"location" in data:
            raise IntegrityError(f"{path}: refers to external data; a bundle's files stand alone")
        return data

    def inputs(self, network: str) -> list[str]:
        """Names of the tensors that one half takes, as the manifest lists them."""
        return [str(tensor["name"]) for tensor in self.manifest[network].get("inputs", [])]

    @property
    def points(self) -> int:
        """Places for points in the decoder of a target with static shapes."""
        return int(self.manifest["decoder"]["points"])

    def locate(self, network: str) -> Path:
        """The checked path of a half that is a directory, such as an ``.mlpackage``.

        Raises:
            IntegrityError: it is missing, leaves the bundle, or is not the one described.
        """
        entry = self.manifest[network]
        path = self._inside(network, entry["file"])
        if not path.is_dir():
            raise IntegrityError(f"{path}: missing, or not a directory")
        found, _ = hash_tree(path)
        if found != entry["sha256"]:
            wanted = entry["sha256"]
            raise IntegrityError(f"{path}: sha256 is {found}, the manifest says {wanted}")
        return path

    def source(self, network: str) -> bytes | Path:
        """What ``read`` gives, or ``locate`` where the file is a directory: checked either way."""
        is_package = self.manifest["target"] == "coreml" and network in NETWORKS
        return self.locate(network) if is_package else self.read(network)

    def _inside(self, network: str, name: str) -> Path:
        path = self.path / name
        if not is_plain(name) or path.is_symlink():
            raise IntegrityError(
                f"{self.path / MANIFEST_NAME}: {network} file {name!r} leaves the bundle"
            )
        return path


def is_plain(name: str) -> bool:
    """Whether it names something in a directory, and nothing outside."""
    return name not in ("", "..") and Path(name).name == name


def hash_tree(directory: Path) -> tuple[str, int]:
    """sha256 over the names, sizes and contents of a directory's files, and their bytes in sum.

    Raises:
        IntegrityError: a link, or a file that cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        for path in sorted(directory.rglob("*"), key=lambda p: p.relative_to(directory).as_posix()):
            if path.is_symlink():
                raise IntegrityError(f"{path}: a link; a bundle's files stand alone")
            if path.is_file():
                data = path.read_bytes()
                name = path.relative_to(directory).as_posix()
                digest.update(f"{name}\0{len(data)}\0".encode() + data)
                size += len(data)
    except OSError as error:
        raise IntegrityError(f"{error.filename}: {error.strerror}") from None
    return digest.hexdigest(), size


def open_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Reads and checks the manifest of a bundle. Its files are checked when they are read.

    Raises:
        BundleError: not a bundle, or one written by a newer pocketsam.
        IntegrityError: the manifest is damaged.
    """
    path = Path(directory)
    manifest_path = path / MANIFEST_NAME
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: not a bundle (no {MANIFEST_NAME})") from None
    except OSError as error:
        raise BundleError(f"{manifest_path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{manifest_path}: not JSON: {error}") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise IntegrityError(f"{manifest_path}: has no schema_version")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{manifest_path}: schema version {version}, and this pocketsam reads up to "
            f"{SCHEMA_VERSION}; upgrade pocketsam"
        )
    _check_fields(manifest, manifest_path)
    return Bundle(path, manifest)


EIGHT_BITS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU features with which 8-bit products are several times as fast as those of floats."""


def choose_bundle(
    directory: str | os.PathLike[str],
    precision: str | None = None,
    gpu: bool = False,
    flags: Collection[str] = (),
) -> Bundle:
    """The bundle itself, or that of another precision inside it.

    Args:
        directory: the bundle.
        precision: which one; None: fp16 on a GPU, int8 on a CPU with ``EIGHT_BITS``, as far as the
            bundle holds them, otherwise its first.
        gpu: whether a GPU runs it.
        flags: the CPU's features.

    Raises:
        BundleError: not a bundle, or it does not hold the precision.
        IntegrityError: it is damaged.
    """
    bundle = open_bundle(directory)
    first, also = bundle.manifest["precision"], bundle.manifest.get("also", [])
    if precision is None:
        suits = "fp16" if gpu else "int8" if any(flag in EIGHT_BITS for flag in flags) else first
        precision = suits if suits in also else first
    if precision == first:
        return bundle
    if precision not in also:
        raise BundleError(f"{bundle.path}: holds {', '.join((first, *also))}, not {precision}")
    inside = open_bundle(bundle.path / precision)
    same = ("target", "image_size", "model")
    if any(inside.manifest[key] != bundle.manifest[key] for key in same):
        raise IntegrityError(f"{inside.path}: of another checkpoint, target or size than {directory}")
    return inside


def _check_fields(manifest: dict[str, Any], path: Path) -> None:
    """Raises IntegrityError unless every field that the runtime reads has its type."""

    def check(key: str, value: object, kind: type) -> None:
        if type(value) is not kind:
            raise IntegrityError(f"{path}: {key} is missing or not of type {kind.__name__}")

    check("target", manifest.get("target"), str)
    check("precision", manifest.get("precision"), str)
    check("model", manifest.get("model"), dict)
    check("model.trained", manifest["model"].get("trained"), bool)
    check("image_size", manifest.get("image_size"), int)
    check("also", manifest.get("also", []), list)
    for name in manifest.get("also", []):
        if not isinstance(name, str) or not is_plain(name):
            raise IntegrityError(f"{path}: also names {name!r}, which leaves the bundle")
    if manifest["image_size"] <= 0 or manifest["image_size"] % 64:
        raise IntegrityError(f"{path}: image_size {manifest['image_size']} is no multiple of 64")
    for network in (*NETWORKS, "golden"):
        check(network, manifest.get(network), dict)
        for key, kind in (("file", str), ("sha256", str), ("bytes", int)):
            check(f"{network}.{key}", manifest[network].get(key), kind)
    if manifest["target"] in STATIC_TARGETS:
        check("decoder.points", manifest["decoder"].get("points"), int)
