"""SAM's image encoder (Kirillov et al. 2023, arXiv:2304.02643), the teacher of MobileSAM.

It is a plain ViT with attention in windows, after ViTDet (Li et al. 2022, arXiv:2203.16527).
Tensors are ``[B, H, W, C]`` between blocks. The official weights belong to a grid of 64x64 patches
(1024 pixels); at other sizes the position embeddings are interpolated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.models.layers import in_windows, neck

PATCH = 16
"""Side of a patch, in pixels."""
GRID = 64
"""Side of the grid of patches at 1024 pixels."""


class PatchEmbed(nn.Module):
    """One strided convolution: ``[B, 3, S, S]`` in, ``[B, S/16, S/16, C]`` out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Self-attention over a grid, with relative positions per axis (MViTv2, arXiv:2112.01526)."""

    def __init__(self, channels: int, heads: int, grid: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = channels // heads
        self.qkv = nn.Linear(channels, channels * 3)
        self.proj = nn.Linear(channels, channels)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, self.head_dim))

    @staticmethod
    def _relative(table: Tensor, size: int) -> Tensor:
        """Returns ``[size, size, head_dim]``, the table's entry for each pair of positions."""
        if len(table) != 2 * size - 1:
            resized = F.interpolate(table.T.unsqueeze(0), size=2 * size - 1, mode="linear")
            table = resized[0].T
        positions = torch.arange(size, device=table.device)
        return table[positions[:, None] - positions[None, :] + size - 1]

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, H, W, C]``, the shape of ``x``."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, H·W, head_dim]
        grid = q.view(batch, self.heads, height, width, self.head_dim)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, self._relative(self.rel_pos_h, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, self._relative(self.rel_pos_w, width))
        bias = rows.unsqueeze(-1) + columns.unsqueeze(-2)  # [B, heads, H, W, H, W]
        scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1) + bias.flatten(4).flatten(2, 3)
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2)
        return self.proj(out.reshape(batch, height, width, channels))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, channels * expansion)
        self.lin2 = nn.Linear(channels * expansion, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Attention and MLP, ``[B, H, W, C]`` in and out.

    Args:
        channels: of the tensors.
        heads: of the attention.
        window: side of the windows in patches; 0 means attention over the whole image.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, window or GRID)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + (in_windows(normed, self.window, self.attn) if self.window else self.attn(normed))
        return x + self.mlp(self.norm2(x))


class ImageEncoderViT(nn.Module):
    """SAM's encoder.

    Args:
        channels: of the transformer.
        depth: number of blocks.
        heads: of the attention in each block.
        global_blocks: numbers of the blocks that attend over the whole image.
        embed_dim: channels of the image embedding.
        window: side of the windows of all other blocks, in patches.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        global_blocks: tuple[int, ...],
        embed_dim: int,
        window: int = 14,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels)
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID, GRID, channels))
        self.blocks = nn.ModuleList(
            Block(channels, heads, 0 if i in global_blocks else window) for i in range(depth)
        )
        self.neck = neck(channels, embed_dim)

    def resize_grid(self, grid: int) -> None:
        """Gives the position tables of another canvas, ``grid × grid`` patches, filled with zeros.

        For checkpoints that were trained at another canvas than 1024 pixels.
        """
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, self.pos_embed.shape[-1]))
        for block in self.blocks:
            if isinstance(block, Block) and not block.window:
                for name in ("rel_pos_h", "rel_pos_w"):
                    table = torch.zeros(2 * grid - 1, block.attn.head_dim)
                    setattr(block.attn, name, nn.Parameter(table))

    def _positions(self, side: int) -> Tensor:
        """Returns the position embeddings ``[1, side, side, C]``."""
        if side == self.pos_embed.shape[1]:
            return self.pos_embed
        table = self.pos_embed.permute(0, 3, 1, 2)
        return F.interpolate(table, (side, side), mode="bicubic", antialias=True).permute(0, 2, 3, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the embedding ``[B, embed_dim, S/16, S/16]`` of ``pixel_values [B, 3, S, S]``."""
        x = self.patch_embed(pixel_values)
        x = x + self._positions(x.shape[1])
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))
