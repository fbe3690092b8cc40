"""SAM's mask decoder (Kirillov et al. 2023, arXiv:2304.02643, appendix A and fig. 14)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketsam.models.layers import MLP, LayerNorm2d
from pocketsam.models.transformer import TwoWayTransformer

PADDING_SCORE = -1e3
"""Added to the attention scores of padding tokens: float16 can hold it, and the softmax gives the token
a weight of 0 in float32 and in float16.
"""


class MaskDecoder(nn.Module):
    """Turns an image embedding and prompts into masks.

    Mask 0 answers several prompts together; masks 1 to 3 are the candidates for one ambiguous prompt.

    Args:
        channels: of all embeddings.
        transformer: the two-way transformer.
        num_masks: masks per prompt.
    """

    def __init__(self, channels: int, transformer: TwoWayTransformer, num_masks: int) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.transformer = transformer
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(num_masks, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, 2, 2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // 8, 3) for _ in range(num_masks)
        )
        self.iou_prediction_head = MLP(channels, channels, num_masks, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns (low_res_masks ``[B, 4, 4h, 4w]`` logits, iou_predictions ``[B, 4]``).

        Args:
            image_embeddings: ``[1, C, h, w]``.
            image_pe: ``[1, C, h, w]``.
            sparse: ``[B, N, C]``, N from 0 up.
            dense: ``[B, C, h, w]``, or ``[1, C, h, w]`` shared by all prompts.
            padding_mask: ``[B, N]``, 1 for a sparse token that no token may attend to, else 0.
        """
        batch = sparse.shape[0]
        height, width = image_embeddings.shape[-2:]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)

        image = (image_embeddings + dense).flatten(2).transpose(1, 2)  # [B or 1, h·w, C]
        pe = image_pe.flatten(2).transpose(1, 2)
        bias = None
        if padding_mask is not None:
            bias = F.pad(padding_mask * PADDING_SCORE, (len(output_tokens), 0))[:, None, None]
        score, answers, image = self.attend(image, pe, tokens, bias)

        weights = torch.stack(
            [mlp(answers[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # [B, 4, C/8]
        masks = self.upscale(image, weights, height, width)
        return masks, self.iou_prediction_head(score)

    def attend(
        self, image: Tensor, pe: Tensor, tokens: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the score's token ``[B, C]``, the masks' ``[B, 4, C]`` and the image ``[B, h·w, C]``.

        The arguments are the transformer's.
        """
        tokens, image = self.transformer(image, pe, tokens, bias)
        return tokens[:, 0], tokens[:, 1 : 1 + self.num_masks], image

    def upscale(self, image: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
        """Returns the mask logits ``[B, 4, 4h, 4w]``.

        Args:
            image: ``[B, h·w, C]``, from the transformer.
            weights: ``[B, 4, C/8]``, from the hypernetworks: each mask is a weighted sum of channels.
            height: h.
            width: w.
        """
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, (height, width)))
        return (weights @ upscaled.flatten(2)).unflatten(2, (4 * height, 4 * width))
