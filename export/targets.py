"""The formats a bundle can be written in. Each is a module with ``convert`` and ``load``."""

from importlib import import_module
from types import ModuleType

from pocketsam.errors import MissingExtraError, PocketSamError

# target: (module, extra that brings its packages, precisions)
TARGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "onnx": ("pocketsam.export.to_onnx", "export", ("fp32",)),
}


def open_target(target: str, precision: str) -> ModuleType:
    """The module that writes ``target``.

    Raises:
        PocketSamError: an unknown target, or a precision that it does not have.
        MissingExtraError: its packages are not installed.
    """
    if target not in TARGETS:
        raise PocketSamError(f"unknown target {target!r}; known are {', '.join(TARGETS)}")
    name, extra, precisions = TARGETS[target]
    if precision not in precisions:
        raise PocketSamError(f"{target} has no precision {precision!r}; it has {', '.join(precisions)}")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or name, extra) from None
