"""The decisions: which layers have 8-bit activations, and which weights have 4 bits.

They name kinds of layers, never layers of one checkpoint; what differs between checkpoints is
measured at export. ``python -m pocketsam.export.quantization`` prints what each layer costs, and
``docs/quantization.md`` says what was tried. Converters read this module and ``plan``, and decide
nothing themselves.
"""

from dataclasses import dataclass

from torch import nn

from pocketsam.models.layers import MLP
from pocketsam.models.tiny_vit import TinyViT
from pocketsam.models.transformer import MLPBlock


@dataclass(frozen=True, kw_only=True)
class Static8Bits:
    """8-bit activations whose ranges are measured before the export.

    Attributes:
        kinds: layers of the image encoder that may have them. Convolutions (the stem, the patch
            embedding, stage 0, depthwise ones, the neck) stay in float: all together they cost more of
            the masks than all linear layers do, for a third of the multiply-adds. So do both products
            of attention, softmax, LayerNorm, additions and the mask decoder.
        min_snr_db: what the embedding must keep, on the calibration photographs. Layers are taken in
            the order of the noise that they add per multiply-add, as many as this allows. Masks of an
            embedding with white noise of 45 dB have a mean IoU of 0.998, the least 0.966.
        activation_levels: of an activation, from its least to its greatest value, 0 among them: an
            asymmetric grid, since GELU has no values below -0.17.
        probes: calibration photographs on which single layers are measured; ranges and the whole are
            measured on all of them.
    """

    kinds: tuple[type[nn.Module], ...]
    min_snr_db: float
    activation_levels: int
    probes: int


STATIC = Static8Bits(kinds=(nn.Linear,), min_snr_db=46.0, activation_levels=256, probes=1)


@dataclass(frozen=True, kw_only=True)
class FewBits:
    """Weights of fewer than 8 bits, rounded with error feedback; all others have 8.

    Attributes:
        decoder: modules of the mask decoder whose linear layers have few bits. Its attention does not
            bear them: a sixteenth of the weights, the image's queries for the tokens, costs 0.02 of
            mean IoU.
        smallest: weights with fewer elements have 8 bits. So have convolutions: the neck alone costs
            as much as all linear layers of the encoder.
        most_inputs: layers with more inputs, and encoders other than ``feedback``, are rounded to the
            nearest: the work grows with the cube.
        feedback: encoders whose layers are rounded with error feedback.
        block: inputs that share a step, where a step is stored for each block of each output.
    """

    decoder: tuple[type[nn.Module], ...]
    smallest: int
    most_inputs: int
    feedback: tuple[type[nn.Module], ...]
    block: int


FEW_BITS = FewBits(
    decoder=(MLP, MLPBlock), smallest=40_000, most_inputs=2560, feedback=(TinyViT,), block=32
)

FLOAT16_MAX, HEADROOM = 65504.0, 8.0
"""float16 operations keep their values below ``FLOAT16_MAX / HEADROOM``; others stay in float32."""
