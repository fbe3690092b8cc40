"""What happens to a network before it becomes an ML program: weights are rounded to small palettes."""

from collections.abc import Sequence

from pocketsam.export.cases import Case, samples_of
from pocketsam.export.options import Options
from pocketsam.export.quantization import smallest
from pocketsam.export.quantization.grids import Palette
from pocketsam.export.quantization.plan import Plan, static_encoder
from pocketsam.export.quantization.rounding import few_bit_layers, rounded_encoder, rounded_network
from pocketsam.export.target import Progress
from pocketsam.export.traced import Encoder, StaticDecoder, TracedNetwork
from pocketsam.runtime.backends.networks import fill_up

BITS = {"palette6": 6, "palette4": 4}


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
    if options.precision in BITS:
        bits, samples = BITS[options.precision], samples_of(network, calibration)
        progress(f"rounding weights to {bits} bits")
        if isinstance(network, StaticDecoder):
            samples = [fill_up(sample, *network.shape) for sample in samples]
        return rounded_network(network, samples, few_bit_layers, Palette(bits)), None
    if not isinstance(network, Encoder):
        return network, None
    if options.precision == "int8":
        least = smallest.COREML
        return static_encoder(network, calibration, outputs=False, smallest=least, progress=progress)
    if options.precision == "int8-weights":
        return rounded_encoder(network, calibration, smallest.COREML, progress), None
    return network, None


def bias_name(layer: str) -> str:
    """Returns the start of the name that coremltools gives to the bias of an encoder's layer."""
    return f"part_model_image_encoder_{layer.replace('.', '_')}_bias"
