"""SAM's prompt encoder (Kirillov et al. 2023, arXiv:2304.02643, section 3 and appendix A).

Every sparse prompt is a labelled point here: a box is two points with the labels 2 and 3, and the pad
that SAM adds where there is no box is a point with the label -1. The reference implementation branches
on the prompt type and computes the same embeddings; an export needs a single graph.
"""

import math

import torch
from torch import Tensor, nn

from pocketsam.models.layers import LayerNorm2d


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features (Tancik et al. 2020, arXiv:2006.10739)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, coords: Tensor) -> Tensor:
        """Returns ``[..., 2·features]`` for ``coords [..., 2]``: (x, y), each in 0..1."""
        angles = 2 * math.pi * ((2 * coords - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def is_label(labels: Tensor, known: float | Tensor) -> Tensor:
    """Returns 1 where whole numbers equal a known one, and 0 elsewhere.

    Without a comparison, which would leave the Neural Engine, and XNNPACK's delegates.
    """
    return torch.relu(1.0 - (labels - known).abs())


class PromptEncoder(nn.Module):
    """Turns points, boxes and mask inputs into embeddings.

    Args:
        embed_dim: channels of all embeddings.
        image_size: side of the square canvas in pixels.
        mask_channels: hidden channels of the mask input's convolutions.
        stride: pixels of the canvas to a cell of the embedding.
    """

    def __init__(self, embed_dim: int, image_size: int, mask_channels: int, stride: int = 16) -> None:
        super().__init__()
        self.image_size, self.stride = image_size, stride
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, 2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, 2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Returns the sparse embeddings ``[B, N, embed_dim]``.

        Args:
            coords: ``[B, N, 2]``, (x, y) in pixels of the canvas.
            labels: ``[B, N]``: 1 foreground, 0 background, 2 and 3 a box's first and second corner, -1
                SAM's not-a-point, whose coordinates do not matter.
        """
        points = self.pe_layer((coords + 0.5) / self.image_size)
        labels = labels.unsqueeze(-1)
        for number, embedding in enumerate(self.point_embeddings):
            points = points + embedding.get_parameter("weight") * is_label(labels, float(number))
        no_point = is_label(labels, -1.0)
        return points * (1.0 - no_point) + self.not_a_point_embed.weight * no_point

    def embed_masks(self, masks: Tensor, has_mask: Tensor) -> Tensor:
        """Returns the dense embeddings ``[B, embed_dim, S/16, S/16]``.

        Args:
            masks: ``[B, 1, S/4, S/4]`` logits.
            has_mask: ``[B]``, 1 to use the mask, 0 to use the embedding of "no mask".
        """
        has_mask = has_mask.view(-1, 1, 1, 1)
        without = self.no_mask_embed.weight.view(1, -1, 1, 1)
        return has_mask * self.mask_downscaling(masks) + (1 - has_mask) * without

    def dense_pe(self) -> Tensor:
        """Returns the position encoding of the image embedding, ``[1, embed_dim, S/16, S/16]``."""
        side = self.image_size // self.stride
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (torch.arange(side, dtype=matrix.dtype, device=matrix.device) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).permute(2, 0, 1).unsqueeze(0)
