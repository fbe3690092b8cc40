"""Runs whose tensors stay in a GPU's memory, from the encoder to the decoder."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from pocketsam.errors import BundleError, first_line

Device = tuple[str, int]
"""onnxruntime's name of a kind of memory, ``cuda`` or ``cpu``, and the number of the device."""
CPU: Device = ("cpu", 0)


def run_bound(
    session: ort.InferenceSession,
    name: str,
    outputs: Sequence[str],
    feeds: dict[str, Any],
    device: Device,
    *,
    kept: Collection[str] = (),
) -> list[Any]:
    """Returns the named outputs, like ``run_session``, without copying what is on the device already.

    Args:
        device: where the kept outputs stay.
        feeds: arrays, or ``OrtValue``s that an earlier call returned.
        kept: outputs that stay on the device, as ``OrtValue``; the others are returned as arrays.

    Raises:
        BundleError: onnxruntime failed.
    """
    try:
        binding = session.io_binding()
        for key, value in feeds.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(key, value)
            else:
                binding.bind_cpu_input(key, np.ascontiguousarray(value))
        for key in outputs:
            binding.bind_output(key, *(device if key in kept else CPU))
        session.run_with_iobinding(binding)
        values = binding.get_outputs()
        return [
            value if key in kept else value.numpy() for key, value in zip(outputs, values, strict=True)
        ]
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise BundleError(f"{name}: onnxruntime failed: {first_line(error)}") from None


class Recorded:
    """The encoder as a CUDA graph, whose runs are replayed with input and output at fixed addresses.

    Args:
        session: has one input and one output of static shapes, and the option of ``GRAPHS``.
        device: a GPU; on a CPU it does the same without recording.
    """

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        (source,), (result,) = session.get_inputs(), session.get_outputs()
        self._name = source.name
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._input = make(source.shape, np.float32, *device)
        self._output = make(result.shape, np.float32, *device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._input)
        self._binding.bind_ortvalue_output(result.name, self._output)

    def __call__(self, feeds: dict[str, Any]) -> Any:
        """Returns the output, which stays on the device and which the next call overwrites."""
        self._input.update_inplace(np.ascontiguousarray(feeds[self._name]))
        self._session.run_with_iobinding(self._binding)
        return self._output
