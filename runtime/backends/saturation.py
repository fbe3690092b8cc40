"""Whether sums of 8-bit products are right on this CPU.

x86 CPUs without VNNI add two products of 8-bit numbers in 16 bits, and a sum that does not fit becomes
the largest that does, without a word. Files whose weights use all 8 bits need a CPU that adds in 32:
x86 with AVX512-VNNI, AVX-VNNI or AMX, and ARM.
"""

from functools import cache
from importlib.resources import files

import numpy as np

from pocketsam.errors import BundleError
from pocketsam.runtime.backends.ort import open_session

PRODUCTS_NAME = "products.onnx"
"""Multiplies ``x [M, 64]`` uint8 by a matrix of 127s of int8: ``y [M, 64]`` int32."""
_ROWS, _SIDE = 64, 64


@cache
def saturates() -> bool:
    """Returns whether sums of the largest 8-bit products come out too small in onnxruntime here."""
    model = files("pocketsam.runtime.backends").joinpath(PRODUCTS_NAME).read_bytes()
    largest = np.full((_ROWS, _SIDE), 255, np.uint8)
    (sums,) = open_session(model, PRODUCTS_NAME).run(None, {"x": largest})
    return bool((sums != _SIDE * 255 * 127).any())


def check_weight_bits(bits: int | None, name: str) -> None:
    """Raises BundleError if a network's 8-bit weights would be multiplied wrongly here.

    Args:
        bits: that the weights use, see ``NetworkFile.weight_bits``.
        name: of the network, for the error.
    """
    if bits is not None and bits > 7 and saturates():
        raise BundleError(
            f"{name}: its weights use {bits} bits, and this CPU saturates sums of such products "
            "without a word (it has no VNNI); export int8 with --weight-bits 7, the default"
        )
