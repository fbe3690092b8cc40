"""ONNX networks through onnxruntime: execution providers by name, threads, and clear errors."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pocketsam.errors import BundleError, ProviderError, UsageError, first_line
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.bound import Device, Recorded, run_bound
from pocketsam.runtime.backends.providers import ALONE, Providers, list_providers, split_provider

Arrays = dict[str, Any]
"""Arrays by name; on a GPU the embedding is an ``OrtValue`` in its memory."""
Network = Callable[[Arrays], Arrays]

OUTPUTS = {"encoder": (c.IMAGE_EMBEDDINGS,), "decoder": (c.IOU_PREDICTIONS, c.LOW_RES_MASKS)}

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
MAX_THREADS = 1024
GPUS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
"""Providers whose tensors live in a GPU's memory: the embedding stays there for the decoder."""
GRAPHS = {
    "CUDAExecutionProvider": "enable_cuda_graph",
    "TensorrtExecutionProvider": "trt_cuda_graph_enable",
}
"""The option that records a run once and replays it: for static shapes, as the encoder has."""
DEFAULTS: dict[str, dict[str, str]] = {
    # TF32 rounds products to 10 bits, which would silently break parity with PyTorch in float32
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    # building an engine takes minutes, so it is kept; the bundle chooses the precision, not TensorRT
    "TensorrtExecutionProvider": {
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_fp16_enable": "0",
    },
}
"""Options that differ from onnxruntime's own defaults."""

# threads that spin on after a run take the cores from the next network, and from numpy
FOREIGN_CONFIG = {"session.force_spinning_stop": "1"}
"""Options of a session for a file of others; ``docs/speed.md`` says what it gains."""
# makes float32 of weights in few bits once, at loading, so that they are fused like others; a file with
# activations in few bits as well, which we do not write, would lose its integer kernels
CONFIG = FOREIGN_CONFIG | {"session.disable_quant_qdq": "1"}
"""Options of a session for a file of ours."""


def provider_names(providers: Providers) -> list[str]:
    """Returns onnxruntime's names of providers, in order of preference.

    Args:
        providers: short names such as ``cpu``, or onnxruntime's own.

    Raises:
        ProviderError: a name that is unknown, or a provider that this onnxruntime lacks.
    """
    return [name for name, _ in provider_options(providers)]


def provider_options(providers: Providers) -> list[tuple[str, dict[str, str]]]:
    """Returns providers and their options as onnxruntime takes them.

    Args:
        providers: ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``, such as ``cuda:device_id=1``. The options
            are onnxruntime's own, and replace ``DEFAULTS``. TensorRT keeps its engines in
            pocketsam's cache.

    Raises:
        ProviderError: a name that is unknown, a provider that this onnxruntime lacks, or an option that
            is not KEY=VALUE.
    """
    wanted = list_providers(providers)
    if not wanted:
        raise ProviderError("providers is empty; name at least one, such as 'cpu'")
    available = ort.get_available_providers()
    full = {name.lower(): name for name in (*PROVIDERS.values(), *available)}
    short = {name: key for key, name in PROVIDERS.items()}
    present = ", ".join(short.get(name, name) for name in available)
    chosen = []
    for provider in wanted:
        name, given = split_provider(provider)
        key = str(name).lower()
        found = PROVIDERS.get(key) or full.get(key)
        if key in ALONE:
            raise ProviderError(f"provider {key} opens bundles, and stands alone")
        if found is None:
            known = ", ".join((*PROVIDERS, *ALONE))
            raise ProviderError(f"unknown provider {name!r}; known are {known}")
        if found not in available:
            raise ProviderError(f"provider {name!r} is not in this onnxruntime; present are: {present}")
        options = dict(DEFAULTS.get(found, {}))
        if found == "TensorrtExecutionProvider":
            options["trt_engine_cache_path"] = str(cache_directory() / "tensorrt")
        if "precision" in given and found in short:
            raise ProviderError(
                f"onnxruntime's {short[found]} has no option precision; openvino and TFLite do"
            )
        chosen.append((found, options | given))
    return chosen


def asks_for_gpu(providers: Providers) -> bool:
    """Returns whether the first provider is one of ``GPUS``, whether it is installed or not."""
    first = next(iter(list_providers(providers)), "")
    key = first.partition(":")[0].lower()
    return any(key in (short, full.lower()) for short, full in PROVIDERS.items() if full in GPUS)


def cache_directory() -> Path:
    """Returns pocketsam's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketsam"


def check_threads(threads: int | None) -> int:
    """Returns the number of threads for onnxruntime; 0, its own choice (one per core), for None.

    Raises:
        UsageError: not a whole number from 1 to ``MAX_THREADS``.
    """
    if threads is None:
        return 0
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads must be a whole number from 1 to {MAX_THREADS}, not {threads}")
    return threads


def run_session(
    session: ort.InferenceSession, name: str, outputs: Sequence[str], feeds: dict[str, Any]
) -> list[Any]:
    """Returns the named outputs for the named inputs.

    Raises:
        BundleError: onnxruntime failed.
    """
    try:
        results: list[Any] = session.run(list(outputs), feeds)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise BundleError(f"{name}: onnxruntime failed: {first_line(error)}") from None
    return results


def open_session(
    model: bytes,
    name: str,
    providers: Providers = "cpu",
    threads: int | None = None,
    static: bool = False,
    *,
    foreign: bool = False,
) -> ort.InferenceSession:
    """Returns a session that runs an ONNX file.

    Args:
        model: the bytes of an ONNX file.
        name: used in error messages.
        providers: see ``provider_options``.
        threads: see ``check_threads``.
        static: whether all shapes are static; ``GRAPHS`` is switched off otherwise.
        foreign: whether the file is not of pocketsam's export: it runs as onnxruntime would run it.

    Raises:
        ProviderError: a provider is missing, or present but not usable on this machine.
        BundleError: onnxruntime cannot load the model.
    """
    chosen = provider_options(providers)
    for full, settings in chosen:
        if not static and full in GRAPHS:
            settings.pop(GRAPHS[full], None)
    options = ort.SessionOptions()
    options.intra_op_num_threads = check_threads(threads)
    options.log_severity_level = 3  # errors; onnxruntime's warnings are about itself
    for key, value in (FOREIGN_CONFIG if foreign else CONFIG).items():
        options.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(model, options, providers=chosen)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise BundleError(f"{name}: onnxruntime cannot load it: {first_line(error)}") from None
    if session.get_providers()[0] != chosen[0][0]:  # onnxruntime falls back silently
        raise ProviderError(f"provider {chosen[0][0]} is installed but does not start on this machine")
    return session


def open_onnx(
    data: bytes, name: str, network: str, providers: Providers = "cpu", threads: int | None = None
) -> Network:
    """Returns an encoder or a decoder as a callable.

    Args:
        data: the bytes of an ONNX file.
        name: used in error messages.
        network: ``encoder`` or ``decoder``.
        providers: see ``provider_options``.
        threads: see ``check_threads``.

    Raises:
        ProviderError, BundleError: as ``open_session``.
    """
    session = open_session(data, name, providers, threads, static=network == "encoder")
    first, options = provider_options(providers)[0]
    device = gpu_memory(first, options)
    if device and network == "encoder" and options.get(GRAPHS[first], "0").lower() in ("1", "true"):
        recorded = Recorded(session, device)
        return lambda feeds: {c.IMAGE_EMBEDDINGS: recorded(feeds)}
    return onnx_network(session, network, name, device)


def gpu_memory(provider: str, options: dict[str, str]) -> Device | None:
    """Returns the memory in which a provider's tensors can stay: a GPU's, or None."""
    return ("cuda", int(options.get("device_id", 0))) if provider in GPUS else None


def onnx_network(
    session: ort.InferenceSession, network: str, name: str, device: Device | None
) -> Network:
    """Returns the encoder or decoder of an open session as a callable.

    Args:
        session: the session.
        network: ``encoder`` or ``decoder``.
        name: used in error messages.
        device: where the embedding stays between encoder and decoder; None: in numpy's memory.
    """
    outputs = OUTPUTS[network]

    def call(feeds: Arrays) -> Arrays:
        if network == "decoder":  # (0, 0): no full-size masks; ``Upscaler`` is exact and cheaper
            feeds = feeds | {c.ORIG_IM_SIZE: np.zeros(2, np.float32)}
        if device:
            results = run_bound(session, name, outputs, feeds, device, kept=(c.IMAGE_EMBEDDINGS,))
        else:
            results = run_session(session, name, outputs, feeds)
        return dict(zip(outputs, results, strict=True))

    return call
