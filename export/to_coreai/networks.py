"""The networks as Core AI gets them: channels first, as the Neural Engine's rules ask.

Files take and return float32. Of fp16 the encoder computes in float16, and the decoder in float32: a
token adds over thousands of image tokens, Apple's executor for Linux adds in float16 (4096 times 0.1 is
256), and float16 has steps of half a pixel from 512 on.
"""

import copy

import torch
from torch import Tensor, nn

from pocketsam.export.to_coreml.channels_first import (
    MAX_SIDE,
    ChannelNorm,
    ChannelNorm2d,
    MaskDecoderFirst,
    channels_first,
)
from pocketsam.export.traced import Encoder
from pocketsam.models.sam import Sam


def _norm_channels(x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    """LayerNorm over axis 1 of ``[B, C, H, W]``."""
    centred = x - x.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    weight, bias = (norm.get_parameter(name).view(1, -1, 1, 1) for name in ("weight", "bias"))
    return centred * torch.rsqrt(variance + eps) * weight + bias


class _Norm(ChannelNorm):
    """Without the detour that coremltools wants of ``norm_channels``."""

    def forward(self, x: Tensor) -> Tensor:
        return _norm_channels(x, self, self.eps)


class _Norm2d(ChannelNorm2d):
    """See ``_Norm``."""

    def forward(self, x: Tensor) -> Tensor:
        return _norm_channels(x, self, self.eps)


class _Decoder(MaskDecoderFirst):
    """The masks' product with its factors changed over.

    Apple's executor computes ``a @ b.reshape(...)`` wrongly where axis 2 of ``b`` is as long as the
    sum, as it is on a canvas of 128 pixels; it leaves a transposed ``b`` alone.
    """

    @staticmethod
    def _combine(weights: Tensor, upscaled: Tensor) -> Tensor:
        batch, channels, height, width = upscaled.shape
        matrix = weights.reshape(batch, 1, channels, -1)
        strips = torch.split(upscaled, min(height, MAX_SIDE // width), dim=2)
        flat = [strip.reshape(batch, 1, channels, -1).transpose(-2, -1) for strip in strips]
        masks = [(pixels @ matrix).transpose(-2, -1) for pixels in flat]
        return torch.cat([m.reshape(batch, weights.shape[3], -1, width) for m in masks], dim=2)


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    ChannelNorm: _Norm,
    ChannelNorm2d: _Norm2d,
    MaskDecoderFirst: _Decoder,
}


def prepared(model: Sam) -> Sam:
    """Returns the same network with channels first; it shares all parameters."""
    twin = channels_first(model)
    for module in twin.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return twin


class HalfEncoder(Encoder):
    """The encoder in float16, with parameters of its own; its input and output stay in float32."""

    def __init__(self, model: Sam) -> None:
        super().__init__(copy.deepcopy(model))
        self.model.image_encoder.half()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (pixel_values,) = inputs
        return (self.model.encode(pixel_values.half()).float(),)
