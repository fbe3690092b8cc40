"""TinyViT (Wu et al. 2022, arXiv:2207.10666), the image encoder of MobileSAM.

MobileSAM (Zhang et al. 2023, arXiv:2306.14289) keeps the resolution in the last stage, and adds SAM's
neck. Tensors are ``[B, H, W, C]`` between the blocks of stages 1 to 3 and ``[B, C, H, W]`` elsewhere.
No module knows the image size: any multiple of 16 runs. Parameters have the official checkpoint's
names.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.models.layers import in_windows, neck


class ConvBN(nn.Sequential):
    """Convolution without bias, then BatchNorm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", conv)
        self.add_module("bn", nn.BatchNorm2d(outputs))


class PatchEmbed(nn.Module):
    """Two convolutions: ``[B, 3, S, S]`` in, ``[B, C, S/4, S/4]`` out.

    Args:
        channels: C.
        kernel, stride: of both convolutions; LiteMedSAM's are 1 and 1, and give ``[B, C, S, S]``.
    """

    def __init__(self, channels: int, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvBN(3, channels // 2, kernel, stride),
            nn.GELU(),
            ConvBN(channels // 2, channels, kernel, stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted residual block; the activation comes after the shortcut."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv1 = ConvBN(channels, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(self.conv3(hidden) + x)


class PatchMerging(nn.Module):
    """Changes the number of channels, and halves the resolution where ``stride`` is 2.

    ``[B, inputs, H, W]`` in, ``[B, outputs, H/stride, W/stride]`` out.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(inputs, outputs)
        self.conv2 = ConvBN(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvBN(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class Mlp(nn.Module):
    """LayerNorm and two linear layers."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, channels * expansion)
        self.fc2 = nn.Linear(channels * expansion, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class WindowAttention(nn.Module):
    """Self-attention in a window of ``ws × ws`` tokens, with a bias learnt per head and offset.

    The reference keeps the gathered bias in a buffer ``ab``, which is stale after weights are loaded in
    eval mode, or cast. Here nothing is cached: the gather costs next to nothing, and an exporter folds
    it into a constant.
    """

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = channels // heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, channels * 3)
        self.proj = nn.Linear(channels, channels)

        # Offsets are numbered in the order in which they first occur, as in the checkpoint.
        points = list(product(range(window), repeat=2))
        numbers: dict[tuple[int, int], int] = {}
        indices = [
            numbers.setdefault((abs(ya - yb), abs(xa - xb)), len(numbers))
            for ya, xa in points
            for yb, xb in points
        ]
        self.attention_biases = nn.Parameter(torch.zeros(heads, len(numbers)))
        table = torch.tensor(indices).view(len(points), len(points))
        self.register_buffer("attention_bias_idxs", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[windows, ws·ws, C]``, the shape of ``x``."""
        windows, tokens, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3 * self.head_dim)
        q, k, v = qkv.permute(0, 2, 1, 3).split(self.head_dim, dim=3)
        scores = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
        scores = scores + self.attention_biases[:, self.attention_bias_idxs]
        out = scores.softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(windows, tokens, channels))


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise 3×3 convolution, an MLP. ``[B, H, W, C]`` in and out."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, heads, window)
        self.mlp = Mlp(channels)
        self.local_conv = ConvBN(channels, channels, 3, groups=channels)

    def _attend(self, windows: Tensor) -> Tensor:
        """Returns ``[windows, ws, ws, C]``, the shape of ``windows``."""
        return self.attn(windows.flatten(1, 2)).view(windows.shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + in_windows(x, self.window, self._attend)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)


class ConvStage(nn.Module):
    """Stage 0: convolutions only. ``[B, C, H, W]`` in, ``[B, C', H/2, W/2]`` out."""

    def __init__(self, channels: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(channels) for _ in range(depth))
        self.downsample = PatchMerging(channels, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class AttentionStage(nn.Module):
    """Stages 1 to 3. ``[B, C, H, W]`` in and out; with ``outputs`` None there is no patch merging."""

    def __init__(
        self, channels: int, depth: int, heads: int, window: int, outputs: int | None, stride: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TinyViTBlock(channels, heads, window) for _ in range(depth))
        self.downsample = PatchMerging(channels, outputs, stride) if outputs else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """The encoder of MobileSAM, and with other ``stem`` of LiteMedSAM.

    Args:
        channels: of each stage.
        depths: blocks of each stage.
        heads: of the attention in each stage; stage 0 has none.
        windows: side of the attention windows in each stage; stage 0 has none.
        embed_dim: channels of the image embedding.
        num_classes: outputs of the classifier that TinyViT was pretrained with. The checkpoint holds
            the classifier's weights (``head``, ``norm_head``); the encoder never runs it.
        stem: kernel and stride of both convolutions at the start.
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        heads: tuple[int, int, int, int],
        windows: tuple[int, int, int, int],
        embed_dim: int,
        num_classes: int,
        *,
        stem: tuple[int, int] = (3, 2),
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels[0], *stem)
        self.layers = nn.ModuleList([ConvStage(channels[0], depths[0], channels[1])])
        for i, stride in ((1, 2), (2, 1), (3, 0)):
            outputs = channels[i + 1] if i < 3 else None
            stage = AttentionStage(channels[i], depths[i], heads[i], windows[i], outputs, stride)
            self.layers.append(stage)
        self.norm_head = nn.LayerNorm(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        self.neck = neck(channels[-1], embed_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the embedding ``[B, embed_dim, S/16, S/16]`` of ``pixel_values [B, 3, S, S]``.

        Without strides in the stem its side is S/4.
        """
        x = self.patch_embed(pixel_values)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)


def tiny_vit_5m(embed_dim: int, stem: tuple[int, int] = (3, 2)) -> TinyViT:
    """Returns the encoder in the size that MobileSAM and its relatives have; see ``TinyViT``."""
    return TinyViT(
        channels=(64, 128, 160, 320),
        depths=(2, 2, 6, 2),
        heads=(2, 4, 5, 10),
        windows=(7, 7, 14, 7),
        embed_dim=embed_dim,
        num_classes=1000,
        stem=stem,
    )
