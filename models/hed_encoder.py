"""The image encoder of the teacher that this project trains: HED's features under a transformer.

The features are the maps of HED (Xie and Tu 2015, arXiv:1504.06375), a VGG16 trained on ImageNet and
then on edges; they stay frozen. ``training/hed_weights.py`` reads HED's weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.constants import PIXEL_MEAN, PIXEL_STD
from pocketsam.models.layers import LayerNorm2d, neck

VGG_MEAN_BGR = (104.007, 116.669, 122.679)
"""Subtracted from BGR pixels in 0..255, as the VGG16 was trained."""
VGG_WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions of each block."""


class Vgg16(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556), in five blocks."""

    mean: Tensor
    std: Tensor
    vgg_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for width, _ in VGG_WIDTHS)]
        self.blocks = nn.ModuleList()
        for i, (width, depth) in enumerate(VGG_WIDTHS):
            convs = [
                nn.Conv2d(widths[i] if j == 0 else width, width, 3, padding=1) for j in range(depth)
            ]
            self.blocks.append(nn.ModuleList(convs))
        for name, values in (("mean", PIXEL_MEAN), ("std", PIXEL_STD), ("vgg_mean", VGG_MEAN_BGR)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Returns the last maps of blocks 3, 4 and 5: strides 4, 8 and 16."""
        return self.maps(pixel_values)[2:]

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Returns the last map of each block, ``[B, C, S/stride, S/stride]``: strides 1 to 16."""
        x = (pixel_values * self.std + self.mean).flip(1) - self.vgg_mean
        maps = []
        for i, block in enumerate(self.blocks):
            if i:
                x = F.max_pool2d(x, 2)
            for conv in block:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
            maps.append(x)
        return maps


class TeacherBlock(nn.Module):
    """A depthwise 3×3 convolution that encodes positions, attention over the whole image, an MLP."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm2 = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, C, H, W]``, the shape of ``x``."""
        x = x + self.local(x)
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class TeacherEncoder(nn.Module):
    """The teacher's image encoder, with the same inputs and outputs as SAM's.

    Args:
        embed_dim: channels of the image embedding, and of the transformer.
        depth: number of blocks.
        heads: of the attention in each block.
    """

    def __init__(self, embed_dim: int = 256, depth: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.vgg = Vgg16().requires_grad_(False)
        self.laterals = nn.ModuleList(
            nn.Sequential(LayerNorm2d(width), nn.Conv2d(width, embed_dim, stride, stride))
            for width, stride in ((256, 4), (512, 2), (512, 1))
        )
        self.blocks = nn.ModuleList(TeacherBlock(embed_dim, heads) for _ in range(depth))
        self.neck = neck(embed_dim, embed_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the embedding ``[B, embed_dim, S/16, S/16]`` of ``pixel_values [B, 3, S, S]``."""
        with torch.no_grad():
            maps = self.vgg(pixel_values)
        sides = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        x = sides[0] + sides[1] + sides[2]
        for block in self.blocks:
            x = block(x)
        return self.neck(x)
