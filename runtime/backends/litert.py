"""TFLite files through LiteRT: ai-edge-litert, the runtime of Android, here on the CPU (XNNPACK).

The interpreter runs them in the file's precision. An encoder can be computed in float16 instead, by
LiteRT's newer ``CompiledModel``: fast where the CPU has such arithmetic (a Raspberry Pi 5's has, flag
``asimdhp``), and emulated elsewhere, slowly.
"""

import math
import threading
from importlib.util import find_spec
from typing import Any

import numpy as np

from pocketsam.errors import BundleError, ProviderError, first_line
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.ort import Arrays, check_threads
from pocketsam.runtime.backends.providers import (
    Providers,
    list_providers,
    read_arithmetic,
    split_provider,
)
from pocketsam.runtime.machine import count_cores, cpu_flags
from pocketsam.terminal import extra_needed

SIGNATURE = "serving_default"
CHANNELS_LAST = (c.PIXEL_VALUES, c.IMAGE_EMBEDDINGS)
"""Tensors that TFLite files hold as ``[1, H, W, C]``, as the manifest's ``layout`` says."""
ARITHMETICS = ("f32", "f16")
FORCE_FP16 = 4
"""XNNPACK's flag of that name: float32 layers are computed in float16."""


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
        self.shapes = _shapes(runner.get_input_details())

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


class CompiledRunner:
    """A TFLite file as a ``CompiledModel``, called like an interpreter's signature runner.

    Args:
        data: the bytes of a TFLite file.
        threads: how many.
        flags: of XNNPACK, such as ``FORCE_FP16``.
    """

    def __init__(self, data: bytes, threads: int, flags: int) -> None:
        from ai_edge_litert.compiled_model import (
            CompiledModel,
            CpuOptions,
            HardwareAccelerator,
            Options,
        )

        cpu = CpuOptions(num_threads=threads, xnnpack_flags=flags)
        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        self._model = CompiledModel.from_buffer(data, options=options)
        self._inputs = self._model.get_input_tensor_details(SIGNATURE)
        self._outputs = _shapes(self._model.get_output_tensor_details(SIGNATURE))
        make = self._model.create_input_buffer_by_name
        self._fed = {key: make(SIGNATURE, key) for key in self._inputs}
        make = self._model.create_output_buffer_by_name
        self._found = {key: make(SIGNATURE, key) for key in self._outputs}

    def get_input_details(self) -> dict[str, Any]:
        """Returns the inputs by name; ``shape`` of each is its shape."""
        details: dict[str, Any] = self._inputs
        return details

    def __call__(self, **feeds: Any) -> Arrays:
        """Returns copies of the outputs, float32 arrays by name."""
        for key, buffer in self._fed.items():
            buffer.write(feeds[key])
        self._model.run_by_name(SIGNATURE, self._fed, self._found)
        return {
            key: np.array(self._found[key].read(math.prod(shape), np.float32)).reshape(shape)
            for key, shape in self._outputs.items()
        }


def arithmetics() -> tuple[str, ...]:
    """Returns what LiteRT computes an encoder in fast on this CPU, ``f32`` first; () without LiteRT."""
    if find_spec("ai_edge_litert") is None:
        return ()
    return ARITHMETICS if "asimdhp" in cpu_flags() else ARITHMETICS[:1]


def open_tflite(
    data: bytes,
    name: str,
    providers: Providers = "cpu",
    threads: int | None = None,
    *,
    network: str = "encoder",
) -> TfliteNetwork:
    """Returns an encoder or a decoder as a callable.

    Args:
        data: the bytes of a TFLite file.
        name: used in error messages.
        providers: only ``cpu``, or ``cpu:precision=f16`` for an encoder in float16 arithmetic.
        threads: None: one per core (LiteRT itself would take a single thread).
        network: ``encoder`` or ``decoder``, which is always computed in the file's precision.

    Raises:
        BundleError: LiteRT cannot load the file.
        ProviderError: another provider.
        MissingExtraError: ai-edge-litert is not installed.
    """
    wanted = list_providers(providers)
    if [split_provider(provider)[0].lower() for provider in wanted] != ["cpu"]:
        raise ProviderError(f"a TFLite bundle runs with provider cpu, not {', '.join(wanted)}")
    is_half = read_arithmetic(providers, ARITHMETICS) == "f16" and network == "encoder"
    count = check_threads(threads) or count_cores()
    with extra_needed("litert"):
        from ai_edge_litert.interpreter import Interpreter
    try:
        if is_half:
            return TfliteNetwork(CompiledRunner(data, count, FORCE_FP16), name)
        interpreter = Interpreter(model_content=data, num_threads=count)
        return TfliteNetwork(interpreter.get_signature_runner(SIGNATURE), name)
    except Exception as error:  # LiteRT raises ValueError and RuntimeError alike
        raise BundleError(f"{name}: LiteRT cannot load it: {first_line(error)}") from None


def _shapes(details: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(map(int, detail["shape"])) for key, detail in details.items()}


def _transposed(name: str, array: Any, axes: tuple[int, ...]) -> Any:
    return array.transpose(axes) if name in CHANNELS_LAST and array.ndim == 4 else array
