"""MobileSAM and SAM, put together. The only place with sizes.

Reference: ``build_sam_vit_t`` of https://github.com/ChaoningZhang/MobileSAM; ``build_sam_vit_b``,
``_l``, ``_h`` of https://github.com/facebookresearch/segment-anything. They differ in the encoder only.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pocketsam.models.hed_encoder import TeacherEncoder
from pocketsam.models.image_encoder_vit import ImageEncoderViT
from pocketsam.models.mask_decoder import MaskDecoder
from pocketsam.models.prompt_encoder import PromptEncoder
from pocketsam.models.tiny_vit import TinyViT
from pocketsam.models.transformer import TwoWayTransformer

EMBED_DIM = 256

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mobile_sam": lambda: TinyViT(
        channels=(64, 128, 160, 320),
        depths=(2, 2, 6, 2),
        heads=(2, 4, 5, 10),
        windows=(7, 7, 14, 7),
        embed_dim=EMBED_DIM,
        num_classes=1000,
    ),
    "hed_teacher": lambda: TeacherEncoder(EMBED_DIM),
    "sam_vit_b": lambda: ImageEncoderViT(768, 12, 12, (2, 5, 8, 11), EMBED_DIM),
    "sam_vit_l": lambda: ImageEncoderViT(1024, 24, 16, (5, 11, 17, 23), EMBED_DIM),
    "sam_vit_h": lambda: ImageEncoderViT(1280, 32, 16, (7, 15, 23, 31), EMBED_DIM),
}
"""Image encoders by the name of their checkpoint; ``hed_teacher`` is the one that we train."""


class Sam(nn.Module):
    """Segment Anything for a square canvas of ``image_size`` pixels.

    Args:
        image_encoder: ``[B, 3, S, S]`` to ``[B, 256, S/16, S/16]``.
        image_size: 1024 is what the official checkpoints were trained at. Any multiple of 64 runs: the
            weights do not depend on it, cost falls with its square.

    Raises:
        ValueError: ``image_size`` is not a positive multiple of 64.
    """

    def __init__(self, image_encoder: nn.Module, image_size: int = 1024) -> None:
        if image_size <= 0 or image_size % 64:
            raise ValueError(f"image_size must be a positive multiple of 64, not {image_size}")
        super().__init__()
        self.image_size = image_size
        self.image_encoder = image_encoder
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
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns (low_res_masks ``[B, 4, S/4, S/4]`` logits, iou_predictions ``[B, 4]``).

        Args:
            image_embeddings: ``[1, 256, S/16, S/16]``.
            point_coords: ``[B, N, 2]``, (x, y) in pixels of the canvas.
            point_labels: ``[B, N]``: 1, 0, 2 and 3 (box corners), -1 (pad).
            mask_input: ``[B or 1, 1, S/4, S/4]`` logits of an earlier call.
            has_mask_input: ``[B or 1]``, 0 or 1.
            absent: ``[B, N]``, 1 where a point only fills a place, 0 elsewhere: the result is as if
                the point had not been there.
        """
        sparse = self.prompt_encoder.embed_points(point_coords, point_labels)
        dense = self.prompt_encoder.embed_masks(mask_input, has_mask_input)
        pe = self.prompt_encoder.dense_pe()
        return self.mask_decoder(image_embeddings, pe, sparse, dense, padding_mask)


def build(architecture: str = "mobile_sam", image_size: int = 1024) -> Sam:
    """An untrained network: a key of ``ARCHITECTURES``, for a canvas of ``image_size`` pixels."""
    return Sam(ARCHITECTURES[architecture](), image_size)


def architecture_of(state: Mapping[str, Tensor]) -> str:
    """The architecture whose keys a state dict has; ``mobile_sam`` where nothing speaks for another."""
    if any(key.startswith("image_encoder.vgg.") for key in state):
        return "hed_teacher"
    position = state.get("image_encoder.pos_embed")
    if position is None:
        return "mobile_sam"
    return {1280: "sam_vit_h", 1024: "sam_vit_l"}.get(position.shape[-1], "sam_vit_b")


def seeded(image_size: int = 1024, seed: int = 0, architecture: str = "mobile_sam") -> Sam:
    """A network with reproducible *untrained* weights, in eval mode; see ``fill``."""
    model = build(architecture, image_size)
    fill(model, seed)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Gives a network reproducible untrained weights.

    Norms, BatchNorm statistics and position tables are moved away from their trivial values, so that
    a conversion that drops or misplaces one of them is found out. Activations stay near 1, and the
    mask logits reach a scale of about 5, as those of trained weights do.
    """
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
            elif key in ("running_mean", "bias", "rel_pos_h", "rel_pos_w"):
                normal(tensor, 0.1)
            elif key == "positional_encoding_gaussian_matrix":
                normal(tensor, 1.0)
            elif key in ("attention_biases", "pos_embed") or isinstance(module, nn.Embedding):
                normal(tensor, 0.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():  # the weight of a norm
                normal(tensor, 0.1, mean=1.0)
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                adds = name.endswith(("proj", "fc2", "lin2"))  # what a shortcut adds stays small
                heads = "hypernetworks" in name and name.endswith("layers.2")
                gain = 0.5 if adds else 8.0 if heads else 1.0
                normal(tensor, gain * tensor[0].numel() ** -0.5)
