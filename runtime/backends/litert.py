"""TFLite files through LiteRT: ai-edge-litert, the runtime of Android, here on the CPU (XNNPACK)."""

import threading
from typing import Any

import numpy as np

from pocketsam.errors import BundleError, ProviderError, first_line
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.ort import Arrays, Providers, check_threads
from pocketsam.runtime.machine import count_cores
from pocketsam.terminal import extra_needed

SIGNATURE = "serving_default"
CHANNELS_LAST = (c.PIXEL_VALUES, c.IMAGE_EMBEDDINGS)
"""Tensors that TFLite files hold as ``[1, H, W, C]``, as the manifest's ``layout`` says."""


class TfliteNetwork:
    """A network as a callable: float32 arrays by name in, float32 arrays by name out.

    All arrays have the shapes of ``contract``; ``CHANNELS_LAST`` are transposed to the file's layout
    and back.

    Attributes:
        shapes: the inputs' shapes in the file.
    """

    def __init__(self, runner: Any, name: str) -> None:
        self._runner, self._name = runner, name
        self._turn = threading.Lock()  # an interpreter has one set of tensors, whichever thread asks
        self.shapes: dict[str, tuple[int, ...]] = {
            key: tuple(map(int, detail["shape"])) for key, detail in runner.get_input_details().items()
        }

    def __call__(self, feeds: Arrays) -> Arrays:
        """Returns the outputs.

        Raises:
            BundleError: LiteRT failed.
        """
        used = {
            key: np.ascontiguousarray(_transposed(key, feeds[key], (0, 2, 3, 1)), np.float32)
            for key in self.shapes
            if key in feeds
        }
        try:
            with self._turn:
                found: Arrays = self._runner(**used)
        except Exception as error:
            raise BundleError(f"{self._name}: LiteRT failed: {first_line(error)}") from None
        return {key: _transposed(key, array, (0, 3, 1, 2)) for key, array in found.items()}


def open_tflite(
    data: bytes, name: str, providers: Providers = "cpu", threads: int | None = None
) -> TfliteNetwork:
    """Returns an encoder or a decoder as a callable.

    Args:
        data: the bytes of a TFLite file.
        name: used in error messages.
        providers: only ``cpu``.
        threads: None: one per core (LiteRT itself would take a single thread).

    Raises:
        BundleError: LiteRT cannot load the file.
        ProviderError: another provider.
        MissingExtraError: ai-edge-litert is not installed.
    """
    wanted = [providers] if isinstance(providers, str) else list(providers)
    if wanted != ["cpu"]:
        raise ProviderError(f"a TFLite bundle runs with provider cpu, not {', '.join(wanted)}")
    count = check_threads(threads) or count_cores()
    with extra_needed("litert"):
        from ai_edge_litert.interpreter import Interpreter
    try:
        interpreter = Interpreter(model_content=data, num_threads=count)
        return TfliteNetwork(interpreter.get_signature_runner(SIGNATURE), name)
    except Exception as error:  # LiteRT raises ValueError and RuntimeError alike
        raise BundleError(f"{name}: LiteRT cannot load it: {first_line(error)}") from None


def _transposed(name: str, array: Any, axes: tuple[int, ...]) -> Any:
    return array.transpose(axes) if name in CHANNELS_LAST and array.ndim == 4 else array
