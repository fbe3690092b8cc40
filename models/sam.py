"""MobileSAM and SAM: the whole network, and the sizes of each architecture.

The architectures differ in the image encoder only. Reference: ``build_sam_vit_t`` of
https://github.com/ChaoningZhang/MobileSAM; ``build_sam_vit_b``, ``_l`` and ``_h`` of
https://github.com/facebookresearch/segment-anything; ``CVPR24_LiteMedSAM_infer.py`` of
https://github.com/bowang-lab/MedSAM, branch ``LiteMedSAM``.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pocketsam.errors import CheckpointError
from pocketsam.models.hed_encoder import TeacherEncoder
from pocketsam.models.image_encoder_vit import ImageEncoderViT
from pocketsam.models.mask_decoder import MaskDecoder
from pocketsam.models.prompt_encoder import PromptEncoder
from pocketsam.models.tiny_vit import tiny_vit_5m
from pocketsam.models.transformer import TwoWayTransformer
from pocketsam.traits import MIN_MAX, Traits

EMBED_DIM = 256
"""Channels of the image embedding."""

POSITIONS = "image_encoder.pos_embed"
"""Name of the position table ``[1, S/16, S/16, C]`` of SAM's own encoders."""
STEM = "image_encoder.patch_embed.seq.0.c.weight"
"""Name of TinyViT's first kernel: ``[32, 3, 3, 3]``, in LiteMedSAM ``[32, 3, 1, 1]``."""

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mobile_sam": lambda: tiny_vit_5m(EMBED_DIM),
    "lite_medsam": lambda: tiny_vit_5m(EMBED_DIM, stem=(1, 1)),
    "hed_teacher": lambda: TeacherEncoder(EMBED_DIM),
    "sam_vit_b": lambda: ImageEncoderViT(768, 12, 12, (2, 5, 8, 11), EMBED_DIM),
    "sam_vit_l": lambda: ImageEncoderViT(1024, 24, 16, (5, 11, 17, 23), EMBED_DIM),
    "sam_vit_h": lambda: ImageEncoderViT(1280, 32, 16, (7, 15, 23, 31), EMBED_DIM),
}
"""Makers of image encoders by the name of the architecture; ``hed_teacher`` is this project's own."""
TRAITS = {"lite_medsam": Traits(4, MIN_MAX, multimask=False, image_size=256)}
"""By architecture; the others have SAM's."""

LUGGAGE = re.compile(
    r"layers\.\d+\.blocks\.\d+\.attn\.(ab|attention_bias_idxs)$"  # tables that TinyViT computes
    r"|(^|[._])(loss(es)?|criterion|metrics?)([._]|$)"
    r"|\.(total_ops|total_params)$"  # thop's counters
)
"""Names inside the network that it does without."""

UNUSED = re.compile(r"image_encoder\.(head|norm_head)\.(weight|bias)$|\.num_batches_tracked$")
"""Names of the network that no output depends on, and that a file may lack."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_LINES = 16
"""Lines of an error that list names."""


class Sam(nn.Module):
    """Segment Anything for a square canvas of ``image_size`` pixels.

    Args:
        image_encoder: ``[B, 3, S, S]`` to ``[B, 256, S/16, S/16]``.
        image_size: side of the canvas. The official checkpoints were trained at 1024. Any multiple of
            64 runs with the same weights; the cost grows with its square.
        traits: what sets the network apart from SAM.

    Raises:
        ValueError: ``image_size`` is not a positive multiple of 64.
    """

    def __init__(
        self, image_encoder: nn.Module, image_size: int = 1024, traits: Traits | None = None
    ) -> None:
        if image_size <= 0 or image_size % 64:
            raise ValueError(f"image_size must be a positive multiple of 64, not {image_size}")
        super().__init__()
        self.image_size, self.traits = image_size, traits or Traits()
        self.image_encoder = image_encoder
        stride = self.traits.stride
        self.prompt_encoder = PromptEncoder(EMBED_DIM, image_size, mask_channels=16, stride=stride)
        transformer = TwoWayTransformer(depth=2, channels=EMBED_DIM, heads=8, mlp_dim=2048)
        self.mask_decoder = MaskDecoder(EMBED_DIM, transformer, num_masks=4)

    @property
    def embedding_side(self) -> int:
        """Side of the embedding: S/16 in SAM."""
        return self.traits.embedding_side(self.image_size)

    @property
    def mask_side(self) -> int:
        """Side of the low-resolution masks and of a mask input: S/4 in SAM."""
        return self.traits.mask_side(self.image_size)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Returns the image embeddings ``[B, 256, S/16, S/16]``.

        Args:
            pixel_values: ``[B, 3, S, S]``, normalised and padded; see ``images.to_pixel_values``.
        """
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
            point_labels: ``[B, N]``: 1 foreground, 0 background, 2 and 3 a box's corners, -1 SAM's pad
                point, which takes part in attention.
            mask_input: ``[B or 1, 1, S/4, S/4]`` logits of an earlier call.
            has_mask_input: ``[B or 1]``, 1 to use the mask input, 0 to ignore it.
            padding_mask: ``[B, N]``, 1 for a point that only fills the tensor up to a fixed N, and is
                left out of every attention; 0 for the others. None: every point counts.
        """
        sparse = self.prompt_encoder.embed_points(point_coords, point_labels)
        dense = self.prompt_encoder.embed_masks(mask_input, has_mask_input)
        pe = self.prompt_encoder.dense_pe()
        return self.mask_decoder(image_embeddings, pe, sparse, dense, padding_mask)


def build(architecture: str = "mobile_sam", image_size: int = 1024, grid: int | None = None) -> Sam:
    """Returns a network with PyTorch's initial weights, in training mode.

    Args:
        architecture: a key of ``ARCHITECTURES``.
        image_size: side of the canvas in pixels, a multiple of 64.
        grid: side, in patches, of the canvas that the position tables of SAM's own encoders are for;
            None: 64, which is 1024 pixels.

    Raises:
        KeyError: the architecture is unknown.
        ValueError: ``image_size`` is not a positive multiple of 64.
    """
    model = Sam(ARCHITECTURES[architecture](), image_size, TRAITS.get(architecture))
    if grid is not None and isinstance(model.image_encoder, ImageEncoderViT):
        model.image_encoder.resize_grid(grid)
    return model


def architecture_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """Returns the key of ``ARCHITECTURES`` that tensors of these shapes, by name, belong to."""
    if any(key.startswith("image_encoder.vgg.") for key in shapes):
        return "hed_teacher"
    position = shapes.get(POSITIONS)
    if position is None:
        return "lite_medsam" if tuple(shapes.get(STEM, ())[2:]) == (1, 1) else "mobile_sam"
    if len(position) != 4:
        return "sam_vit_b"
    return {1280: "sam_vit_h", 1024: "sam_vit_l"}.get(position[-1], "sam_vit_b")


def grid_of(shape: Sequence[int] | None) -> int | None:
    """Returns the side, in patches, of the canvas that position tables are for: S of ``[1, S, S, C]``.

    None for other shapes, and for more than a canvas of 4096 pixels has.
    """
    if shape is None or len(shape) != 4 or shape[1] != shape[2] or not 1 <= shape[1] <= 256:
        return None
    return shape[1]


def fit(
    message: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], extra: Sequence[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """Returns the state to load, and a line about what the file lacks and what was left out.

    Args:
        message: how the error starts.
        found: a file's tensors by official name.
        wanted: the network's, which may be on the device ``meta``: only their shapes are read.
        extra: other names of the file, listed where it does not fit.

    Returns:
        Tensors in float32 (counters as they are) by the names of ``wanted``, less those in ``UNUSED``
        that the file lacks; and the line, "" where there is nothing to say.

    Raises:
        CheckpointError: names are missing or unexpected, shapes or dtypes differ, values are NaN,
            infinite or beyond float32; in at most 20 lines.
    """
    state: dict[str, Tensor] = {}
    left_out = [key for key in found if key not in wanted and LUGGAGE.search(key)]
    lacking = [
        key
        for key, want in wanted.items()
        if UNUSED.search(key) and (key not in found or found[key].shape != want.shape)
    ]
    problems = [f"missing: {key}" for key in wanted if key not in found and key not in lacking]
    problems += [f"unexpected: {key}" for key in found if key not in wanted and key not in left_out]
    for key in wanted.keys() & found.keys() - set(lacking):
        problem = _problem_of(found[key], wanted[key])
        if problem:
            problems.append(problem.format(key=key))
        else:
            state[key] = found[key].detach().to(wanted[key].dtype)
    if problems:
        problems += [f"unexpected: {key}" for key in extra]
        raise CheckpointError(_list_problems(message, problems))
    said = [f"{len(left_out)} tables and buffers ignored"] if left_out else []
    parts = sorted({key.split(".")[1] if "head" in key else "num_batches_tracked" for key in lacking})
    said += [f"without {' and '.join(parts)}, which nothing needs"] if parts else []
    return state, "; ".join(said)


def _problem_of(found: Tensor, want: Tensor) -> str | None:
    """Returns what is wrong with a tensor, ``{key}`` for its name; no data are read before they fit."""
    if found.is_nested or found.layout != torch.strided or found.is_quantized:
        kind = "quantized" if found.is_quantized else "sparse or nested"
        return f"{{key}} is {kind}; save its dense float values"
    if found.shape != want.shape:
        return f"shape of {{key}}: {list(found.shape)}, not {list(want.shape)}"
    if found.is_meta:
        return "{key} has no data (device meta)"
    dtypes = FLOATS if want.is_floating_point() else (*FLOATS, torch.int64, torch.int32)
    if found.dtype not in dtypes:
        return f"dtype of {{key}}: {found.dtype}, not a floating-point type that float32 can hold"
    if found.untyped_storage().nbytes() < found.numel() * found.element_size():
        return "{key} repeats fewer values than it has (expanded); save it contiguous"
    if not found.isfinite().all():
        return "NaN or infinity in {key}"
    if not found.to(want.dtype).isfinite().all():
        return "value beyond float32's range in {key}"
    return None


def _list_problems(message: str, problems: list[str]) -> str:
    """Returns an error of a line for each problem, up to ``MOST_LINES``; whole parts take one."""
    lines = sorted(problems)
    if len(lines) > MOST_LINES:
        for kind in ("missing", "unexpected"):
            for root in ("image_encoder", "prompt_encoder", "mask_decoder"):
                start = f"{kind}: {root}."
                of_part = [line for line in lines if line.startswith(start)]
                if len(of_part) > 3:
                    lines = [line for line in lines if line not in of_part]
                    names = ", ".join(line.removeprefix(f"{kind}: {root}.") for line in of_part[:2])
                    lines.append(f"{kind}: {len(of_part)} names in {root}, such as {names}")
        lines.sort()
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more"]
    listed = "\n  ".join(f"{line:.200}" for line in lines)
    return f"{message} ({len(problems)} keys):\n  {listed}"


def seeded(image_size: int = 1024, seed: int = 0, architecture: str = "mobile_sam") -> Sam:
    """Returns a network with reproducible *untrained* weights, in eval mode; see ``fill``.

    Args:
        image_size: side of the canvas in pixels, a multiple of 64.
        seed: of the random weights.
        architecture: a key of ``ARCHITECTURES``.
    """
    model = build(architecture, image_size)
    fill(model, seed)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Replaces the weights of a network by reproducible random ones.

    Norms, BatchNorm statistics and position tables get values other than their trivial ones: a
    conversion that drops or misplaces one of them then changes the output. Activations stay near 1, and
    mask logits reach about 5, as with trained weights.
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
                adds = name.endswith(("proj", "fc2", "lin2"))  # small beside the shortcut
                heads = "hypernetworks" in name and name.endswith("layers.2")
                gain = 0.5 if adds else 8.0 if heads else 1.0
                normal(tensor, gain * tensor[0].numel() ** -0.5)
