"""The formats a bundle can be written in. Each is a module with ``traced_networks``, ``convert``,
``load`` and ``runner``."""

from importlib import import_module
from types import ModuleType

from pocketsam.errors import MissingExtraError, PocketSamError
from pocketsam.export.options import Options

# target: (module, extra that brings its packages, precisions)
TARGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "onnx": (
        "pocketsam.export.to_onnx.convert",
        "export",
        ("fp32", "fp16", "int8", "int8-weights", "int4-weights"),
    ),
    "coreml": (
        "pocketsam.export.to_coreml.convert",
        "coreml",
        ("fp32", "fp16", "int8-weights", "palette8", "palette6", "palette4", "int8"),
    ),
    "tflite": (
        "pocketsam.export.to_tflite.convert",
        "tflite",
        ("fp32", "fp16", "int8-weights", "int8-dynamic", "int8"),
    ),
}


def open_target(target: str, options: Options) -> ModuleType:
    """The module that writes ``target``.

    Raises:
        PocketSamError: an unknown target, or a precision or option that it does not have.
        MissingExtraError: its packages are not installed.
    """
    if target not in TARGETS:
        raise PocketSamError(f"unknown target {target!r}; known are {', '.join(TARGETS)}")
    name, extra, precisions = TARGETS[target]
    precision = options.precision
    if precision not in precisions:
        raise PocketSamError(f"{target} has no precision {precision!r}; it has {', '.join(precisions)}")
    if target != "onnx" and options.disabled_passes:
        raise PocketSamError(f"{target} has no passes to leave out: those are ONNX's")
    if target != "coreml":
        if options.image_input:
            raise PocketSamError(f"{target} has no image input: that is Core ML's")
        if options.deployment_target:
            raise PocketSamError(f"{target} has no deployment target: that is Core ML's")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or name, extra) from None
