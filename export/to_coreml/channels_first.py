"""The network in the layout of Apple's Neural Engine: channels on axis 1, never more than four axes.

The engine wants its tensors as ``[B, C, H, W]`` or, for a sequence, ``[B, C, 1, T]``, linear layers as
1×1 convolutions, and few transposes (Apple, "Deploying Transformers on the Apple Neural Engine", 2022).
``channels_first`` gives a network that computes the same from the same parameters, with the same names
for its submodules; its forward passes are those below.
"""

import copy
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketsam.models.layers import LayerNorm2d
from pocketsam.models.mask_decoder import PADDING_SCORE, MaskDecoder
from pocketsam.models.prompt_encoder import PromptEncoder, is_label
from pocketsam.models.sam import Sam
from pocketsam.models.tiny_vit import AttentionStage, TinyViT, TinyViTBlock, WindowAttention
from pocketsam.models.transformer import Attention

MAX_SIDE = 16384
"""The longest axis that the engine takes."""


class Pointwise(nn.Linear):
    """A linear layer as a 1×1 convolution: ``[B, in, H, W]`` to ``[B, out, H, W]``."""

    channel_axis = 1

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


def norm_channels(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over axis 1 of ``[B, C, H, W]``.

    In these very steps, because coremltools makes one ``layer_norm`` of them (the fifth pattern of its
    ``fuse_layernorm_or_instancenorm``), and float16 never meets the squares. That pattern adds the bias
    before it multiplies by the weight, so the bias is divided first; a weight of 0 becomes 1e-19.
    """
    weight = torch.where(weight == 0, torch.finfo(weight.dtype).tiny ** 0.5, weight)
    shift, weight = (v.view(1, -1, 1, 1) for v in (bias / weight, weight))
    centred = x - x.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    return (centred * torch.rsqrt(variance + eps) + shift) * weight


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` of a sequence ``[B, C, 1, T]``."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_channels(x, self.weight, self.bias, self.eps)


class ChannelNorm2d(LayerNorm2d):
    """``LayerNorm2d`` without its two transposes."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_channels(x, self.weight, self.bias, self.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention with the tokens last: ``[B, heads, head_dim, T]`` each, and the result.

    Both transposes become flags of ``matmul``. ``bias`` is added to the scores, ``[B, heads, Tq, Tk]``.
    """
    scores = (q * q.shape[2] ** -0.5).transpose(-2, -1) @ k
    if bias is not None:
        scores = scores + bias
    return v @ scores.softmax(dim=-1).transpose(-2, -1)


class WindowAttentionFirst(WindowAttention):
    """``[windows, C, 1, ws·ws]`` in and out."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).view(len(x), self.heads, 3 * self.head_dim, -1)
        q, k, v = qkv.split(self.head_dim, dim=2)
        bias = self.attention_biases[:, self.attention_bias_idxs]
        return self.proj(attend(q, k, v, bias).reshape(x.shape))


class TinyViTBlockFirst(TinyViTBlock):
    """``[B, C, H, W]`` in and out."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self._in_windows(x))
        return x + self.mlp(x)

    def _in_windows(self, x: Tensor) -> Tensor:
        """``common.in_windows`` of the attention; padding takes part in it here as well.

        Two transposes bring the windows to the front, the grid's rows first: one would have five axes.
        """
        (batch, channels, height, width), size = x.shape, self.window
        x = F.pad(x, (0, -width % size, 0, -height % size))
        rows, columns = x.shape[2] // size, x.shape[3] // size
        x = x.reshape(batch, channels, rows, -1).transpose(1, 2)
        x = x.reshape(batch * rows, channels * size, columns, size).transpose(1, 2)
        x = self.attn(x.reshape(batch * rows * columns, channels, 1, size * size))
        x = x.reshape(batch * rows, columns, channels * size, size).transpose(1, 2)
        x = x.reshape(batch, rows, channels, -1).transpose(1, 2)
        return x.reshape(batch, channels, rows * size, columns * size)[:, :, :height, :width]


class AttentionStageFirst(AttentionStage):
    """Without the transposes at its ends."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class AttentionFirst(Attention):
    """The decoder's: ``[B, C, 1, T]`` in and out."""

    def _split(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, self.head_dim, -1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        tokens = q.shape[3]
        q, k, v = (self._split(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        attended = attend(q, k, v, bias)  # of as many prompts as q or k and v have
        return self.out_proj(attended.reshape(len(attended), -1, 1, tokens))


class PromptEncoderFirst(PromptEncoder):
    """Points come out as ``[B, C, 1, N]``; masks and the position encoding are maps as they were."""

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        points = (coords.transpose(1, 2).unsqueeze(2) + 0.5) / self.image_size  # [B, 2, 1, N]
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        angles = F.conv2d((2 * points - 1) * (2 * torch.pi), matrix.T[:, :, None, None])
        # Which of all labels it is, -1 first, and a product choose the embedding.
        known = torch.arange(-1, 4, dtype=labels.dtype).view(1, -1, 1, 1)
        chosen = is_label(labels[:, None, None], known)  # [B, 5, 1, N]
        tables = [self.not_a_point_embed, *self.point_embeddings]
        table = torch.cat([embedding.get_parameter("weight") for embedding in tables]).T
        waves = torch.cat([angles.sin(), angles.cos()], dim=1) * (1 - chosen[:, :1])
        return waves + F.conv2d(chosen, table[:, :, None, None])


class MaskDecoderFirst(MaskDecoder):
    """``sparse`` is ``[B, C, 1, N]``; the image is ``[B, C, 1, h·w]`` from one end to the other."""

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        height, width = image_embeddings.shape[-2:]
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).T[None, :, None]
        tokens = torch.cat([outputs.expand(len(sparse), -1, -1, -1), sparse], dim=3)
        bias = None
        if padding_mask is not None:
            bias = F.pad(padding_mask * PADDING_SCORE, (outputs.shape[3], 0))[:, None, None]
        image, pe = (x.flatten(2).unsqueeze(2) for x in (image_embeddings + dense, image_pe))
        tokens, image = self.transformer(image, pe, tokens, bias)

        upscaled = self.output_upscaling(image.reshape(len(image), -1, height, width))
        token = tokens.split(1, dim=3)
        pairs = enumerate(self.output_hypernetworks_mlps, start=1)
        weights = torch.cat([mlp(token[i]) for i, mlp in pairs], dim=3)  # [B, C/8, 1, 4]
        scores = self.iou_prediction_head(token[0])
        return self._combine(weights, upscaled), scores.flatten(1)

    @staticmethod
    def _combine(weights: Tensor, upscaled: Tensor) -> Tensor:
        """``[B, C/8, 1, 4]`` times ``[B, C/8, 4h, 4w]``: ``[B, 4, 4h, 4w]``, in strips of ``MAX_SIDE``.

        The whole would be an axis of 65,536 at 1024 pixels.
        """
        batch, channels, height, width = upscaled.shape
        matrix = weights.reshape(batch, 1, channels, -1).transpose(-2, -1)
        strips = torch.split(upscaled, min(height, MAX_SIDE // width), dim=2)
        masks = [matrix @ strip.reshape(batch, 1, channels, -1) for strip in strips]
        return torch.cat([m.reshape(batch, weights.shape[3], -1, width) for m in masks], dim=2)


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Pointwise,
    nn.LayerNorm: ChannelNorm,
    LayerNorm2d: ChannelNorm2d,
    WindowAttention: WindowAttentionFirst,
    TinyViTBlock: TinyViTBlockFirst,
    AttentionStage: AttentionStageFirst,
    Attention: AttentionFirst,
    PromptEncoder: PromptEncoderFirst,
    MaskDecoder: MaskDecoderFirst,
}
"""A module to the same module with channels first; whatever is not here works with either."""


def channels_first(model: Sam) -> Sam:
    """Returns the same network with channels first, for tracing; it shares all parameters.

    Inputs, outputs and the paths of submodules stay as they are. Between submodules tensors are laid
    out as ``FORMS`` say; ``to_reference_layout`` turns them back. Encoders other than TinyViT stay
    as they are: they are teachers, too large for a phone.
    """
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    rooms = [twin.prompt_encoder, twin.mask_decoder]
    if isinstance(twin.image_encoder, TinyViT):
        rooms.append(twin.image_encoder)
    for module in [module for room in rooms for module in room.modules()]:
        module.__class__ = FORMS.get(type(module), type(module))
    return twin


BLOCKS = re.compile(r"image_encoder\.layers\.[1-3]\.blocks\.\d")
SEQUENCES = re.compile(r"mask_decoder\.transformer\..*")


def to_reference_layout(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Returns an intermediate output in the layout that it has in ``models``.

    TinyViT's blocks: ``[B, C, H, W]`` to ``[B, H, W, C]``. The transformer's: ``[B, C, 1, T]`` to
    ``[B, T, C]``. Others are the same in both.
    """
    if BLOCKS.fullmatch(name):
        return np.moveaxis(array, 1, -1)
    if SEQUENCES.fullmatch(name):
        return array[:, :, 0].swapaxes(1, 2)
    return array
