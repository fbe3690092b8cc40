"""The networks as Core AI gets them: channels first, as the Neural Engine's rules ask, and in float16.

The prompt encoder computes in float32 in every precision: float16 has steps of half a pixel from 512
on. The files take and return float32; the casts stand at their ends.
"""

import copy

import torch
from torch import Tensor, nn

from pocketsam.export.to_coreml.channels_first import (
    AttentionFirst,
    ChannelNorm,
    ChannelNorm2d,
    attend,
    channels_first,
)
from pocketsam.export.traced import Encoder, StaticDecoder, TracedNetwork
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


FORMS: dict[type[nn.Module], type[nn.Module]] = {ChannelNorm: _Norm, ChannelNorm2d: _Norm2d}


def prepared(model: Sam) -> Sam:
    """Returns the same network with channels first; it shares all parameters."""
    twin = channels_first(model)
    for module in twin.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return twin


class WideAttention(AttentionFirst):
    """The decoder's attention with its products in float32, and all else in float16.

    A token adds over thousands of image tokens, and Apple's executor for Linux adds in float16: ones
    times 0.1 end at 256. Masks of the whole decoder in float16 had an IoU of 0.87 at 512 pixels.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        tokens = q.shape[3]
        wide = [x.float() for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v))]
        q, k, v = (self._split(x) for x in wide)
        attended = attend(q, k, v, None if bias is None else bias.float())
        return self.out_proj(attended.reshape(len(attended), -1, 1, tokens).half())


class HalfEncoder(Encoder):
    """The encoder in float16; its input and output stay in float32."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (pixel_values,) = inputs
        return (self.model.encode(pixel_values.half()).float(),)


class HalfDecoder(StaticDecoder):
    """The decoder in float16, less its prompt encoder; inputs and outputs stay in float32."""

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        prompts = self.model.prompt_encoder
        padding = self.padding_mask(point_labels)
        assert padding is not None  # a static decoder has one
        low_res_masks, iou_predictions = self.model.mask_decoder(
            image_embeddings.half(),
            prompts.dense_pe().half(),
            prompts.embed_points(point_coords, point_labels).half(),
            prompts.embed_masks(mask_input, has_mask_input.clamp(0, 1)).half(),
            padding.half(),
        )
        return iou_predictions.float(), low_res_masks.float()


def halved(network: TracedNetwork) -> TracedNetwork:
    """Returns a network that computes in float16, with parameters of its own."""
    model = copy.deepcopy(network.model)
    for part in (model.image_encoder, model.mask_decoder):
        part.half()
    for module in model.mask_decoder.modules():
        if type(module) is AttentionFirst:
            module.__class__ = WideAttention
    if isinstance(network, StaticDecoder):
        return HalfDecoder(model, network.max_points, network.prompts)
    return HalfEncoder(model)
