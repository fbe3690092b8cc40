"""onnxruntime sessions: execution providers by name, threads, and errors that say what is there."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pocketsam.errors import BundleError, ProviderError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
MAX_THREADS = 1024
GPUS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
"""Providers whose tensors live in a GPU's memory: between the halves, the embedding stays there."""
GRAPHS = {
    "CUDAExecutionProvider": "enable_cuda_graph",
    "TensorrtExecutionProvider": "trt_cuda_graph_enable",
}
"""The option that records a run once and replays it. It wants static shapes, which the encoder has."""
DEFAULTS: dict[str, dict[str, str]] = {
    # TF32 rounds products to 10 bits: parity with PyTorch in float32 would be lost without a word
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    # building an engine takes minutes, so it is kept; fp16 is the bundle's to choose, not TensorRT's
    "TensorrtExecutionProvider": {
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_fp16_enable": "0",
    },
}
"""Options that differ from onnxruntime's own defaults."""

CONFIG = {
    # threads that spin on after a run take the cores from the other half, and from numpy
    "session.force_spinning_stop": "1",
    # so that weights stored in few bits are made float once, at loading, and fused as others are
    "session.disable_quant_qdq": "1",
}
"""Of every session; ``docs/speed.md`` says what the first one gains."""


def provider_names(providers: str | Sequence[str]) -> list[str]:
    """Short or full names to onnxruntime's names, in order of preference.

    Raises:
        ProviderError: a name that is unknown, or a provider that this onnxruntime lacks.
    """
    return [name for name, _ in provider_options(providers)]


def provider_options(providers: str | Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Providers as onnxruntime takes them, from ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``.

    The options are onnxruntime's own, over those of ``DEFAULTS``: ``cuda:device_id=1``,
    ``tensorrt:trt_fp16_enable=1``. TensorRT keeps its engines in pocketsam's cache.

    Raises:
        ProviderError: as ``provider_names``, or an option that is not KEY=VALUE.
    """
    wanted = [providers] if isinstance(providers, str) else list(providers)
    if not wanted:
        raise ProviderError("providers is empty; name at least one, such as 'cpu'")
    available = ort.get_available_providers()
    full = {name.lower(): name for name in (*PROVIDERS.values(), *available)}
    short = {name: key for key, name in PROVIDERS.items()}
    present = ", ".join(short.get(name, name) for name in available)
    chosen = []
    for given in wanted:
        name, _, text = given.partition(":") if isinstance(given, str) else (given, "", "")
        key = str(name).lower()
        found = PROVIDERS.get(key) or full.get(key)
        if found is None:
            raise ProviderError(f"unknown provider {name!r}; known are {', '.join(PROVIDERS)}")
        if found not in available:
            raise ProviderError(f"provider {name!r} is not in this onnxruntime; present are: {present}")
        options = dict(DEFAULTS.get(found, {}))
        if found == "TensorrtExecutionProvider":
            options["trt_engine_cache_path"] = str(cache_directory() / "tensorrt")
        for entry in text.split(",") if text else []:
            key, equals, value = entry.partition("=")
            if not key or not equals:
                raise ProviderError(f"{given!r}: options are KEY=VALUE, separated by commas")
            options[key] = value
        chosen.append((found, options))
    return chosen


def asks_for_gpu(providers: str | Sequence[str]) -> bool:
    """Whether the first provider is one of ``GPUS``, present here or not."""
    first = providers if isinstance(providers, str) else next(iter(providers), "")
    key = str(first).partition(":")[0].lower()
    return any(key in (short, full.lower()) for short, full in PROVIDERS.items() if full in GPUS)


def cache_directory() -> Path:
    """Where this user's programs keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketsam"


def check_threads(threads: int | None) -> int:
    """The number of threads for onnxruntime, 0 meaning its own choice (one per physical core)."""
    if threads is None:
        return 0
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise ProviderError(f"threads must be a whole number from 1 to {MAX_THREADS}, not {threads}")
    return threads


def run_session(
    session: ort.InferenceSession, name: str, outputs: Sequence[str], feeds: dict[str, Any]
) -> list[Any]:
    """The named outputs for the named inputs, or BundleError with onnxruntime's reason."""
    try:
        results: list[Any] = session.run(list(outputs), feeds)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise BundleError(f"{name}: onnxruntime failed: {str(error).splitlines()[0]}") from None
    return results


def run_bound(
    session: ort.InferenceSession,
    name: str,
    outputs: Sequence[str],
    feeds: dict[str, Any],
    device: str,
    kept: Collection[str] = (),
) -> list[Any]:
    """``run_session`` by I/O binding: what is on the device already is not copied there again.

    Args:
        device: ``cuda``, or ``cpu``.
        feeds: arrays, or what an earlier call kept.
        kept: outputs that stay on the device, as ``OrtValue``; the others come as arrays.
    """
    try:
        binding = session.io_binding()
        for key, value in feeds.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(key, value)
            else:
                binding.bind_cpu_input(key, np.ascontiguousarray(value))
        for key in outputs:
            binding.bind_output(key, device if key in kept else "cpu")
        session.run_with_iobinding(binding)
        values = binding.get_outputs()
        return [
            value if key in kept else value.numpy() for key, value in zip(outputs, values, strict=True)
        ]
    except Exception as error:  # as above
        raise BundleError(f"{name}: onnxruntime failed: {str(error).splitlines()[0]}") from None


class Recorded:
    """The encoder as a CUDA graph: input and output stay at their places, and runs are replayed.

    Args:
        session: with ``GRAPHS``' option on, of one input and one output of static shapes.
        device: ``cuda``; ``cpu`` does the same without recording.
    """

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        self._session = session
        (source,), (result,) = session.get_inputs(), session.get_outputs()
        self._name = source.name
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._input = make(source.shape, np.float32, device, 0)
        self._output = make(result.shape, np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._input)
        self._binding.bind_ortvalue_output(result.name, self._output)

    def __call__(self, feeds: dict[str, Any]) -> Any:
        """The output, on the device: the next call overwrites it."""
        self._input.update_inplace(np.ascontiguousarray(feeds[self._name]))
        self._session.run_with_iobinding(self._binding)
        return self._output


def open_session(
    model: bytes,
    name: str,
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
    static: bool = False,
) -> ort.InferenceSession:
    """A session on a model's bytes.

    Args:
        model: an ONNX file.
        name: what errors call it.
        providers: see ``provider_options``.
        threads: see ``check_threads``.
        static: whether all shapes are, so that ``GRAPHS`` may be used; otherwise it is switched off.

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
    for key, value in CONFIG.items():
        options.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(model, options, providers=chosen)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        reason = str(error).splitlines()[0]
        raise BundleError(f"{name}: onnxruntime cannot load it: {reason}") from None
    if session.get_providers()[0] != chosen[0][0]:  # it falls back without a word
        raise ProviderError(f"provider {chosen[0][0]} is installed but does not start on this machine")
    return session
