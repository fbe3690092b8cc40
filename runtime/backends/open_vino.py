"""ONNX encoders through OpenVINO (extra ``openvino``): float32, or what the CPU has for less.

The decoder stays in onnxruntime: a click there takes less time, prompts of new shapes cost nothing, and
OpenVINO 2026.4 computes other masks from our int8-weights decoder. See ``docs/speed.md``.
"""

import hashlib
import io
import platform
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pocketsam.errors import BundleError, MissingExtraError, PocketSamError, ProviderError
from pocketsam.files import make_folder, write_bytes
from pocketsam.reading import read_regular
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.ort import Arrays, Network, cache_directory, check_threads
from pocketsam.runtime.backends.providers import Providers, read_arithmetic
from pocketsam.runtime.machine import cpu_flags, package_version
from pocketsam.terminal import extra_needed

CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What OpenVINO calls a CPU's arithmetic, by our names."""
MAX_COMPILED = 2**31
"""Bytes of a compiled network in the cache; ours have some ten million."""
NEEDS = {
    "bf16": "a CPU with bfloat16 arithmetic (avx512_bf16, AMX, AVX-NE-CONVERT)",
    "f16": "an ARM CPU with float16 arithmetic (asimdhp)",
}


def arithmetics() -> tuple[str, ...]:
    """Returns what OpenVINO computes an encoder in on this CPU, ``f32`` first; () without OpenVINO."""
    try:
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except MissingExtraError:
        return ()
    is_arm = platform.machine().lower() in (
        "aarch64",
        "arm64",
    )  # float16 overflows less often than it pays
    return tuple(
        name
        for name, capability in CAPABILITIES.items()
        if capability in capabilities and (name != "f16" or is_arm)
    )


def check_openvino(providers: Providers) -> str:
    """Returns the arithmetic that ``openvino`` or ``openvino:precision=…`` asks for.

    Raises:
        ProviderError: other options, other providers beside it, or a CPU that lacks the arithmetic.
        MissingExtraError: OpenVINO is not installed.
    """
    arithmetic = read_arithmetic(providers)
    _core()
    present = arithmetics()
    if arithmetic not in present:
        raise ProviderError(
            f"openvino:precision={arithmetic} needs {NEEDS[arithmetic]}; "
            f"this one has {', '.join(present)}"
        )
    return arithmetic


def open_openvino(
    data: bytes, name: str, providers: Providers = "openvino", threads: int | None = None
) -> Network:
    """Returns an encoder as a callable: float32 arrays by name in, the embedding out, a copy per call.

    Threads take turns. What OpenVINO compiled is kept in pocketsam's cache, if that can be written,
    with its sha256: OpenVINO itself would run a damaged one.

    Args:
        data: the bytes of an ONNX file with static shapes.
        name: used in error messages.
        providers: ``openvino``, with ``precision=bf16`` or ``precision=f16`` where the CPU has it.
        threads: see ``check_threads``.

    Raises:
        BundleError: OpenVINO cannot load the file.
        ProviderError: as ``check_openvino``, or OpenVINO computes in another format after all.
        MissingExtraError: OpenVINO is not installed.
    """
    arithmetic = check_openvino(providers)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": arithmetic,
    }
    if count := check_threads(threads):
        settings["INFERENCE_NUM_THREADS"] = count
    try:
        compiled = _compile(data, settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        request = compiled.create_infer_request()
    except Exception as error:  # OpenVINO raises RuntimeError for everything
        raise BundleError(f"{name}: OpenVINO cannot load it: {_reason(error)}") from None
    if used != arithmetic:  # it takes another format without a word
        raise ProviderError(f"{name}: OpenVINO computes in {used} on this CPU, not in {arithmetic}")
    inputs = [entry.get_names() for entry in compiled.inputs]  # fp16 files: the cast's name as well
    turn = threading.Lock()

    def call(feeds: Arrays) -> Arrays:
        used = [
            np.ascontiguousarray(feeds[key], np.float32)
            for names in inputs
            for key in names.intersection(feeds)
        ]
        try:
            with turn:  # the result is copied before the next call overwrites it
                found = request.infer(used, share_outputs=True)
                return {c.IMAGE_EMBEDDINGS: np.array(found[c.IMAGE_EMBEDDINGS], np.float32)}
        except Exception as error:  # as above
            raise BundleError(f"{name}: OpenVINO failed: {_reason(error)}") from None

    return call


@cache
def _core() -> Any:
    """Returns OpenVINO's core, without its telemetry.

    ``import openvino`` reports to a server that it was imported, and writes to ``~/intel``, unless the
    module for that is absent; then it takes a stub.
    https://github.com/openvinotoolkit/openvino/blob/master/tools/ovc/openvino/tools/ovc/__init__.py
    """
    telemetry = "openvino_telemetry"
    before = sys.modules.get(telemetry)
    sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        with extra_needed("openvino"):
            import openvino
    finally:
        if before is None:
            del sys.modules[telemetry]
        else:
            sys.modules[telemetry] = before
    return openvino.Core()


def _compile(data: bytes, settings: dict[str, Any]) -> Any:
    """Returns a compiled network: from the cache, or compiled, and then kept there."""
    core, path = _core(), _cached(data, settings)
    try:
        kept = read_regular(path, MAX_COMPILED) if path else b""
        digest, compiled = kept[:32], kept[32:]
        if compiled and hashlib.sha256(compiled).digest() == digest:
            return core.import_model(io.BytesIO(compiled), "CPU", settings)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: OpenVINO's; it compiles
        pass
    network = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings)
    if path:
        stream = io.BytesIO()
        try:
            network.export_model(stream)
            compiled = stream.getvalue()
            make_folder(path.parent)
            write_bytes(path, hashlib.sha256(compiled).digest() + compiled)
        except (PocketSamError, RuntimeError):  # no place for it: it is compiled again the next time
            pass
    return network


def _cached(data: bytes, settings: dict[str, Any]) -> Path | None:
    """Returns the file of a compiled network, named by what it follows from; None without a home."""
    key = [hashlib.sha256(data).hexdigest(), sorted(settings.items()), cpu_flags()]
    name = hashlib.sha256(repr([*key, package_version("openvino")]).encode()).hexdigest()
    try:
        return cache_directory() / "openvino" / f"{name}.compiled"
    except RuntimeError:
        return None


def _reason(error: Exception) -> str:
    """Returns the first line of an error that says more than where in OpenVINO it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(error).__name__])[0][:300]
