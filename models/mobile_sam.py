"""MobileSAM, put together. The only place with sizes.

Reference: https://github.com/ChaoningZhang/MobileSAM, ``build_sam_vit_t``.
"""

import torch
from torch import Tensor, nn

from pocketsam.models.mask_decoder import MaskDecoder
from pocketsam.models.prompt_encoder import PromptEncoder
from pocketsam.models.tiny_vit import TinyViT
from pocketsam.models.transformer import TwoWayTransformer

EMBED_DIM = 256


class MobileSam(nn.Module):
    """MobileSAM for a square canvas of ``image_size`` pixels.

    Args:
        image_size: 1024 is what the official checkpoint was trained at. Any multiple of 64 runs: the
            weights do not depend on it, cost falls with its square.

    Raises:
        ValueError: ``image_size`` is not a positive multiple of 64.
    """

    def __init__(self, image_size: int = 1024) -> None:
        if image_size <= 0 or image_size % 64:
            raise ValueError(f"image_size must be a positive multiple of 64, not {image_size}")
        super().__init__()
        self.image_size = image_size
        self.image_encoder = TinyViT(
            channels=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            heads=(2, 4, 5, 10),
            windows=(7, 7, 14, 7),
            embed_dim=EMBED_DIM,
            num_classes=1000,
        )
        self.prompt_encoder = PromptEncoder(EMBED_DIM, image_size, mask_channels=16)
        transformer = TwoWayTransformer(depth=2, channels=EMBED_DIM, heads=8, mlp_dim=2048)
        self.mask_decoder = MaskDecoder(EMBED_DIM, transformer, num_masks=4)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, S, S]``, normalised and padded, to ``image_embeddings [B, 256, S/16, S/16]``."""
        return self.image_encoder(pixel_values)

    def decode(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns (low_res_masks ``[B, 4, S/4, S/4]`` logits, iou_predictions ``[B, 4]``).

        Args:
            image_embeddings: ``[1, 256, S/16, S/16]``.
            point_coords: ``[B, N, 2]``, (x, y) in pixels of the canvas.
            point_labels: ``[B, N]``: 1, 0, 2 and 3 (box corners), -1 (pad).
            mask_input: ``[B or 1, 1, S/4, S/4]`` logits of an earlier call.
            has_mask_input: ``[B or 1]``, 0 or 1.
        """
        sparse = self.prompt_encoder.embed_points(point_coords, point_labels)
        dense = self.prompt_encoder.embed_masks(mask_input, has_mask_input)
        return self.mask_decoder(image_embeddings, self.prompt_encoder.dense_pe(), sparse, dense)


@torch.no_grad()
def seeded(image_size: int = 1024, seed: int = 0) -> MobileSam:
    """MobileSAM with reproducible *untrained* weights, in eval mode.

    Norms, BatchNorm statistics and attention biases are moved away from their trivial values, so that
    a conversion that drops or misplaces one of them is found out. Activations stay near 1, and the
    mask logits reach a scale of about 5, as those of trained weights do.
    """
    model = MobileSam(image_size).eval()
    rng = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=rng) * std + mean)

    for name, module in model.named_modules():
        for key, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if key == "running_var":
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
            elif key in ("running_mean", "bias"):
                normal(tensor, 0.1)
            elif key == "positional_encoding_gaussian_matrix":
                normal(tensor, 1.0)
            elif key == "attention_biases" or isinstance(module, nn.Embedding):
                normal(tensor, 0.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():  # the weight of a norm
                normal(tensor, 0.1, mean=1.0)
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                adds = name.endswith(("proj", "fc2", "lin2"))  # what a shortcut adds stays small
                heads = "hypernetworks" in name and name.endswith("layers.2")
                gain = 0.5 if adds else 8.0 if heads else 1.0
                normal(tensor, gain * tensor[0].numel() ** -0.5)
    return model
