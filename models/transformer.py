"""The two-way transformer of SAM's mask decoder (Kirillov et al. 2023, arXiv:2304.02643, fig. 14).

Shapes: tokens ``[B, T, C]``, image ``[B, H·W, C]``. The image may have a batch of 1 while there are B
prompts: everything broadcasts, and what all prompts share is computed once.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with ``channels // downsample`` channels inside."""

    def __init__(self, channels: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = channels // downsample
        self.heads = heads
        self.head_dim = inner // heads
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)

    def _split(self, x: Tensor) -> Tensor:
        """Returns ``[B, heads, T, head_dim]`` for ``x [B, T, inner]``."""
        return x.view(x.shape[0], -1, self.heads, self.head_dim).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns ``[B, queries, C]``; ``bias [B, 1, 1, keys]`` is added to the attention scores."""
        q, k, v = (
            self._split(self.q_proj(q)),
            self._split(self.k_proj(k)),
            self._split(self.v_proj(v)),
        )
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        if bias is not None:
            scores = scores + bias
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return self.out_proj(out)


class MLPBlock(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, hidden)
        self.lin2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image; an MLP; the image attends to the tokens."""

    def __init__(self, channels: int, heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, heads, downsample=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, heads, downsample=2)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        token_pe: Tensor,
        image_pe: Tensor,
        token_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.first:  # the tokens are still their own position encoding: no shortcut, no addition
            tokens = self.self_attn(tokens, tokens, tokens, token_bias)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, token_bias)
        tokens = self.norm1(tokens)

        k = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(k, tokens + token_pe, tokens, token_bias)
        return tokens, self.norm4(image + attended)


class TwoWayTransformer(nn.Module):
    """``depth`` two-way blocks, then one more attention from the tokens to the image."""

    def __init__(self, depth: int, channels: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels, heads, mlp_dim, first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(channels, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, token_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns (tokens ``[B, T, C]``, image ``[B, H·W, C]``).

        Args:
            image: ``[B or 1, H·W, C]``, the image embedding plus the dense embedding.
            image_pe: ``[1, H·W, C]``.
            tokens: ``[B, T, C]``, output tokens and sparse embeddings.
            token_bias: ``[B, 1, 1, T]``, added to every attention score of a token: very negative for a
                token that is padding.
        """
        attended, image = self.attend(image, image_pe, tokens, token_bias)
        return self.finish(attended, tokens, image, image + image_pe), image

    def attend(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, token_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens and image after the blocks; see ``forward``."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, token_bias)
        return tokens, image

    def finish(self, tokens: Tensor, token_pe: Tensor, image: Tensor, keys: Tensor) -> Tensor:
        """Returns tokens ``[B, T, C]`` after the last attention, each of which depends on itself alone.

        Args:
            tokens: ``[B, T, C]``, from the blocks.
            token_pe: ``[B, T, C]``, what the tokens were before the blocks.
            image: ``[B, H·W, C]``, from the blocks.
            keys: the image plus its position encoding.
        """
        attended = self.final_attn_token_to_image(tokens + token_pe, keys, image)
        return self.norm_final_attn(tokens + attended)
