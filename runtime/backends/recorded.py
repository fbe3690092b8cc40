"""The provider ``auto``: what ``pocketsam bench --engines`` found best for a bundle on this machine.

A record belongs to a bundle's manifest, a CPU, a number of threads, the engines' versions and
onnxruntime's providers. Where one of these is another, as without a record, ``auto`` is ``cpu``.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import onnxruntime as ort

from pocketsam.errors import ProviderError
from pocketsam.files import write_bytes
from pocketsam.images import StrPath
from pocketsam.reading import read_regular
from pocketsam.runtime.backends import coreml, litert, open_vino
from pocketsam.runtime.backends.ort import GPUS, PROVIDERS, cache_directory
from pocketsam.runtime.backends.providers import AUTO, Providers, is_provider, list_providers
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.contract import ONNX_TARGETS
from pocketsam.runtime.machine import count_cores, cpu_flags, describe_cpu, package_version
from pocketsam.runtime.manifest import MANIFEST_NAME

ENGINES = ("pocketsam", "onnxruntime", "openvino", "ai-edge-litert")
MAX_RECORD = 2**16
"""Bytes of a record; ours have some hundred."""


@dataclass(frozen=True)
class Choice:
    """What runs a bundle best on this machine.

    Attributes:
        provider: as ``Segmenter`` takes it.
        precision: of the bundle's.
    """

    provider: str
    precision: str


def list_candidates(target: str) -> Iterator[str]:
    """Yields the providers that can run a target here, ``cpu`` first."""
    yield "cpu"
    if target in ONNX_TARGETS:
        found = open_vino.arithmetics()
        yield from ("openvino" if name == "f32" else f"openvino:precision={name}" for name in found)
        present = ort.get_available_providers()
        yield from (short for short, full in PROVIDERS.items() if full in GPUS[:1] and full in present)
    elif target == "tflite":
        yield from (f"cpu:precision={name}" for name in litert.arithmetics()[1:])
    elif target == "coreml" and coreml.available():
        yield "coreml"


def resolve_auto(
    bundle_dir: StrPath, providers: Providers, precision: str | None, threads: int | None
) -> tuple[Providers, str | None]:
    """Returns providers and precision; for ``auto`` the recorded ones, or ``cpu`` without a record.

    Args:
        bundle_dir: the bundle.
        providers, precision, threads: as for ``Segmenter``. With a precision of its own, ``auto`` takes
            a record of this precision only.

    Raises:
        ProviderError: ``auto`` has options, or other providers beside it.
        BundleError, IntegrityError: not a bundle, or a damaged one.
    """
    if not is_provider(providers, AUTO):
        return providers, precision
    if [provider.lower() for provider in list_providers(providers)] != [AUTO]:
        raise ProviderError("provider auto stands alone, without options")
    choice = read_choice(bundle_dir, threads)
    if choice is None or precision not in (None, choice.precision):
        return "cpu", precision
    return choice.provider, choice.precision


def read_choice(bundle_dir: StrPath, threads: int | None) -> Choice | None:
    """Returns what was recorded for a bundle; None without a record, or with one that does not fit."""
    manifest = open_bundle(bundle_dir).manifest
    key = _key(bundle_dir, threads)
    try:
        record = json.loads(read_regular(_path(key), MAX_RECORD))
        choice = Choice(**record["choice"])
        is_whole = record["key"] == key and type(choice.provider) is type(choice.precision) is str
    except (OSError, ValueError, TypeError, LookupError, RecursionError, RuntimeError):
        return None
    is_held = choice.precision in (manifest.precision, *manifest.also)
    if is_whole and is_held and choice.provider in list_candidates(manifest.target):
        return choice
    return None


def write_choice(bundle_dir: StrPath, threads: int | None, choice: Choice | None) -> Path:
    """Records what ``auto`` takes for a bundle, and returns the file; None removes the record.

    Raises:
        OSError, PocketSamError, RuntimeError: the cache cannot be written, or there is no home.
    """
    key = _key(bundle_dir, threads)
    path = _path(key)
    if choice is None:
        path.unlink(missing_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps({"choice": asdict(choice), "key": key}, indent=2).encode())
    return path


def _path(key: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_directory() / "engines" / f"{name}.json"


def _key(bundle_dir: StrPath, threads: int | None) -> dict[str, Any]:
    """Returns what a measurement depends on."""
    return {
        "bundle": hashlib.sha256((Path(bundle_dir) / MANIFEST_NAME).read_bytes()).hexdigest(),
        "cpu": describe_cpu(),
        "flags": cpu_flags(),
        "cores": count_cores(),
        "machine": platform.machine(),
        "threads": threads,
        "providers": ort.get_available_providers(),
        **{name: _version(name) for name in ENGINES},
    }


def _version(package: str) -> str | None:
    try:
        return package_version(package)
    except PackageNotFoundError:
        return None
