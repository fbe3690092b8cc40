"""onnxruntime sessions: execution providers by name, threads, and errors that say what is there."""

from collections.abc import Sequence
from typing import Any

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


def provider_names(providers: str | Sequence[str]) -> list[str]:
    """Short or full names to onnxruntime's names, in order of preference.

    Raises:
        ProviderError: a name that is unknown, or a provider that this onnxruntime lacks.
    """
    wanted = [providers] if isinstance(providers, str) else list(providers)
    if not wanted:
        raise ProviderError("providers is empty; name at least one, such as 'cpu'")
    available = ort.get_available_providers()
    full = {name.lower(): name for name in (*PROVIDERS.values(), *available)}
    short = {name: key for key, name in PROVIDERS.items()}
    present = ", ".join(short.get(name, name) for name in available)
    names = []
    for name in wanted:
        key = str(name).lower()
        found = PROVIDERS.get(key) or full.get(key)
        if found is None:
            raise ProviderError(f"unknown provider {name!r}; known are {', '.join(PROVIDERS)}")
        if found not in available:
            raise ProviderError(f"provider {name!r} is not in this onnxruntime; present are: {present}")
        names.append(found)
    return names


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


def open_session(
    model: bytes, name: str, providers: str | Sequence[str] = "cpu", threads: int | None = None
) -> ort.InferenceSession:
    """A session on a model's bytes. ``name`` is what errors call it.

    Raises:
        ProviderError: a provider is missing, or present but not usable on this machine.
        BundleError: onnxruntime cannot load the model.
    """
    names = provider_names(providers)
    options = ort.SessionOptions()
    options.intra_op_num_threads = check_threads(threads)
    options.log_severity_level = 3  # errors; onnxruntime's warnings are about itself
    # so that weights stored in few bits are made float once, at loading, and fused as others are
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = ort.InferenceSession(model, options, providers=names)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        reason = str(error).splitlines()[0]
        raise BundleError(f"{name}: onnxruntime cannot load it: {reason}") from None
    if session.get_providers()[0] != names[0]:  # it falls back without a word
        raise ProviderError(f"provider {names[0]} is installed but does not start on this machine")
    return session
