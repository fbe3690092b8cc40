"""The decoder as onnxruntime's CPU kernels run it fastest: the same weights, the same results to
float32's rounding, fewer multiplications and fewer passes over memory. For the encoder nothing was
found that pays: ``docs/speed.md`` says what was tried.

Each pass replaces modules of a copy of the network by others with the same parameters, in the same
places, so that parity can still compare the stages inside. ``docs/speed.md`` says what each one gains.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.errors import UsageError
from pocketsam.export.traced import Decoder
from pocketsam.models.layers import LayerNorm2d
from pocketsam.models.mask_decoder import MaskDecoder
from pocketsam.models.sam import Sam
from pocketsam.models.transformer import Attention
from pocketsam.runtime import contract as c


class TokensToImage(nn.Module):
    """Attention from T tokens to S cells, with the products taken in the cheaper order.

    A cell's key is ``W_k x + b_k``. Instead of projecting all cells, each query is carried back through
    ``W_k``, and the mean of the cells, not each of them, goes through ``W_v``: 2·heads·T·C·S
    multiplications instead of 2·C·inner·S, less while T < head_dim. ``b_k`` adds the same to all
    scores of a query, so the softmax drops it; ``b_v`` goes into the output's bias.
    """

    k_weight: Tensor
    v_weight: Tensor

    def __init__(self, old: Attention) -> None:
        super().__init__()
        self.heads, self.q_proj = old.heads, old.q_proj
        scale = old.head_dim**-0.5
        self.register_buffer("k_weight", _by_head(old.k_proj.weight * scale, old.heads))  # [h, d, C]
        v_weight = _by_head(old.v_proj.weight, old.heads).transpose(1, 2)
        self.register_buffer("v_weight", v_weight.contiguous())  # [h, C, d]
        self.out_proj = _with_bias(old.out_proj, old.out_proj(old.v_proj.bias))

    def forward(self, tokens: Tensor, keys: Tensor, image: Tensor) -> Tensor:
        """``[B, T, C]``; keys and image ``[B, S, C]``; to ``[B, T, C]``."""
        asked = _heads(self.q_proj(tokens), self.heads) @ self.k_weight  # [B, h, T, C]
        scores = asked.flatten(1, 2) @ keys.transpose(1, 2)  # [B, h·T, S]
        means = (scores.softmax(dim=-1) @ image).unflatten(1, (self.heads, tokens.shape[1]))
        return self.out_proj((means @ self.v_weight).transpose(1, 2).flatten(2))


class ImageToTokens(nn.Module):
    """Attention from S cells to T tokens, the same way: what multiplies cells is 8·T wide, not 128."""

    q_weight: Tensor
    q_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def __init__(self, old: Attention) -> None:
        super().__init__()
        self.heads, self.k_proj, self.v_proj = old.heads, old.k_proj, old.v_proj
        scale = old.head_dim**-0.5
        self.register_buffer("q_weight", _by_head(old.q_proj.weight * scale, old.heads))  # [h, d, C]
        self.register_buffer("q_bias", _by_head(old.q_proj.bias[:, None] * scale, old.heads))
        out_weight = old.out_proj.weight.T.contiguous()  # [inner, C]
        self.register_buffer("out_weight", _by_head(out_weight, old.heads))  # [h, d, C]
        # a head's weights sum to 1: a bias given by each token arrives whole, a share from each head
        self.register_buffer("out_bias", old.out_proj.bias.clone() / old.heads)

    def forward(
        self, queries: Tensor, keys: Tensor, tokens: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """queries ``[B, S, C]``; keys, tokens ``[B, T, C]``; bias ``[B, 1, 1, T]``; ``[B, S, C]``."""
        k, v = _heads(self.k_proj(keys), self.heads), _heads(self.v_proj(tokens), self.heads)
        offset = (k @ self.q_bias).transpose(2, 3)  # [B, h, 1, T]
        if bias is not None:
            offset = offset + bias
        scores = queries @ (k @ self.q_weight).flatten(1, 2).transpose(1, 2)  # [B, S, h·T]
        scores = scores.unflatten(2, (self.heads, keys.shape[1])) + offset.transpose(1, 2)
        given = (v @ self.out_weight + self.out_bias).flatten(1, 2)  # [B, h·T, C]
        return scores.softmax(dim=-1).flatten(2) @ given


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """``[heads·d, C]`` to ``[heads, d, C]``."""
    return weight.detach().unflatten(0, (heads, -1)).clone()


def _heads(x: Tensor, heads: int) -> Tensor:
    """``[B, T, heads·d]`` to ``[B, heads, T, d]``."""
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2)


def _with_bias(old: nn.Linear, bias: Tensor) -> nn.Linear:
    """A linear layer with the weight of another."""
    new = nn.Linear(old.in_features, old.out_features)
    new.weight, new.bias = old.weight, nn.Parameter(bias.detach().clone())
    return new


class FastMaskDecoder(MaskDecoder):
    """The mask decoder with a last attention of the output tokens alone, and products for convolutions.

    The score's token has an attention of its own, so that the runtime can have scores without what
    masks need.

    In the upscaling, kernel and stride are both 2, so each cell makes its own 4x4 pixels. Each of the
    four rows of them is computed by itself, so that a row's pixels lie in order, channels last, through
    norm, GELU and the product with the hypernetworks' weights; only the rows of the masks are put
    between each other.
    """

    def attend(
        self, image: Tensor, pe: Tensor, tokens: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        transformer: Any = self.transformer
        attended, image = transformer.attend(image, pe, tokens, bias)
        keys = image + pe
        score, answers = (
            transformer.finish(attended[:, wanted], tokens[:, wanted], image, keys)
            for wanted in (slice(1), slice(1, 1 + self.num_masks))
        )
        return score[:, 0], answers, image

    def upscale(self, image: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
        """``[B, h·w, C]`` and ``[B, 4, C/8]`` to ``[B, 4, 4h, 4w]``."""
        first, norm, gelu, second, _ = self.output_upscaling
        assert isinstance(norm, LayerNorm2d)
        rows = []
        for half in _halves(first):
            x = F.linear(image, *half).unflatten(2, (2, -1))  # [B, h·w, 2, C/4]
            x = gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
            for quarter in _halves(second):
                y = gelu(F.linear(x, *quarter)).unflatten(3, (2, -1))  # [B, h·w, 2, 2, C/8]
                masks = y.flatten(1, 3) @ weights.transpose(1, 2)  # [B, h·w·4, 4]
                rows.append(masks.transpose(1, 2).unflatten(2, (height, 4 * width)))
        return torch.stack(rows, dim=3).flatten(2, 3)


def _halves(conv: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """A ConvTranspose2d of kernel and stride 2 as weight ``[2·out, in]`` and bias of its two rows."""
    assert isinstance(conv, nn.ConvTranspose2d)
    assert conv.bias is not None
    weight = conv.weight.permute(2, 3, 1, 0).flatten(1, 2)
    return [(rows, conv.bias.repeat(2)) for rows in weight]


class FastDecoder(Decoder):
    """The decoder for ONNX, of a network that ``optimise`` gave: one mask input may serve all prompts,
    and the runtime may cut it at ``contract.SPLIT_TENSORS``."""

    def example(self, prompts: int = 2, points: int = 3) -> dict[str, Tensor]:
        inputs = super().example(prompts, points)
        return inputs | {key: inputs[key][:1] for key in (c.MASK_INPUT, c.HAS_MASK_INPUT)}

    def intermediates(self) -> list[str]:
        names = super().intermediates()
        is_fast = isinstance(self.model.mask_decoder, FastMaskDecoder)
        return [name for name in names if not (is_fast and name in REPLACED)]


REPLACED = ("mask_decoder.transformer.0", "mask_decoder.output_upscaling")
"""Intermediate outputs that ``FastMaskDecoder`` does not have, or in another order of pixels."""


def _cells(model: Sam) -> None:
    transformer: Any = model.mask_decoder.transformer
    for layer in transformer.layers:
        layer.cross_attn_token_to_image = TokensToImage(layer.cross_attn_token_to_image)
        layer.cross_attn_image_to_token = ImageToTokens(layer.cross_attn_image_to_token)
    transformer.final_attn_token_to_image = TokensToImage(transformer.final_attn_token_to_image)


def _masks(model: Sam) -> None:
    model.mask_decoder.__class__ = FastMaskDecoder


@dataclass(frozen=True)
class Pass:
    """One change of form.

    Attributes:
        name: for ``--disabled-passes``.
        what: what it does, in a line.
        apply: changes a network in place.
    """

    name: str
    what: str
    apply: Callable[[Sam], None]


PASSES = (
    Pass("cells", "attention without projecting the image's cells", _cells),
    Pass("masks", "last attention of the output tokens alone, upscaling as matrix products", _masks),
)
"""In the order in which they are applied."""


def optimise(model: Sam, without: Collection[str] = ()) -> Sam:
    """A copy of a network in eval mode with ``PASSES`` applied; the weights are shared.

    Args:
        model: any of ``ARCHITECTURES``; a pass that finds nothing to change does nothing.
        without: names of passes to leave out.

    Raises:
        UsageError: an unknown pass.
    """
    known = {one.name for one in PASSES}
    if unknown := sorted(set(without) - known):
        raise UsageError(f"unknown pass {unknown[0]!r}; known are {', '.join(sorted(known))}")
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    fast = copy.deepcopy(model, memo)
    with torch.no_grad():
        for one in PASSES:
            if one.name not in without:
                one.apply(fast)
    return fast.eval()
