"""What happens to a network's weights before it becomes ONNX: rounded to the grid of a precision."""

from collections.abc import Sequence

from pocketsam.export.cases import Case, samples_of
from pocketsam.export.options import Options
from pocketsam.export.quantization import smallest
from pocketsam.export.quantization.decisions import FEW_BITS
from pocketsam.export.quantization.grids import Steps
from pocketsam.export.quantization.plan import Plan, static_encoder
from pocketsam.export.quantization.rounding import few_bit_layers, rounded_network
from pocketsam.export.target import Progress
from pocketsam.export.to_onnx.int8 import LARGEST
from pocketsam.export.traced import Encoder, TracedNetwork


def prepare(
    network: TracedNetwork, options: Options, calibration: Sequence[Case], progress: Progress
) -> tuple[TracedNetwork, Plan | None]:
    """Returns a network whose weights are stored exactly, and the layers of 8-bit activations.

    Args:
        network: the encoder or the decoder.
        options: the precision.
        calibration: photographs with PyTorch's answers.
        progress: called with a line about each step.

    Returns:
        The network itself and None, where the precision rounds each weight by itself.

    Raises:
        ConversionError: no layer bears 8 bits.
    """
    if options.precision == "int4-weights":
        progress("rounding weights to 4 bits")
        steps, samples = Steps(7, FEW_BITS.block), samples_of(network, calibration)
        return rounded_network(network, samples, few_bit_layers, steps), None
    if options.precision != "int8-static" or not isinstance(network, Encoder):
        return network, None
    sizes = {"smallest": smallest.ENCODER, "largest": LARGEST}
    return static_encoder(network, calibration, outputs=False, **sizes, progress=progress)
