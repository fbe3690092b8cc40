"""The two networks that are traced, and the tensors inside them at which parity is checked.

An intermediate output is the output of a submodule, named by its path in the network. A converter may
keep intermediate outputs as named tensors inside its file, so that ``verify`` can say where a file
first departs from PyTorch.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pocketsam import constants
from pocketsam.export.options import Options
from pocketsam.models.prompt_encoder import is_label
from pocketsam.models.sam import EMBED_DIM, Sam
from pocketsam.runtime import contract as c


class Encoder(nn.Module):
    """``pixel_values`` to ``image_embeddings``."""

    inputs: tuple[str, ...] = (c.PIXEL_VALUES,)
    outputs = (c.IMAGE_EMBEDDINGS,)

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (pixel_values,) = inputs
        return (self.model.encode(pixel_values),)

    def intermediates(self) -> list[str]:
        """Returns the names of the intermediate outputs, in the order in which they are computed."""
        wanted = re.compile(r"patch_embed|laterals\.\d|blocks\.\d+|layers\.\d\.(blocks\.\d|downsample)")
        names = [name for name, _ in self.model.image_encoder.named_modules()]
        return [f"image_encoder.{name}" for name in names if wanted.fullmatch(name)]

    def example(self) -> dict[str, Tensor]:
        """Returns inputs of the right shapes to trace with."""
        side = self.model.image_size
        return {c.PIXEL_VALUES: torch.zeros(1, 3, side, side)}


class Decoder(nn.Module):
    """A prompt and ``image_embeddings`` to ``iou_predictions`` and ``low_res_masks``.

    ``has_mask_input`` is clipped to 0..1, since some tools send -1 for "none".
    """

    inputs: tuple[str, ...] = (
        c.IMAGE_EMBEDDINGS,
        c.POINT_COORDS,
        c.POINT_LABELS,
        c.MASK_INPUT,
        c.HAS_MASK_INPUT,
    )
    outputs = (c.IOU_PREDICTIONS, c.LOW_RES_MASKS)

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        low_res_masks, iou_predictions = self.model.decode(
            image_embeddings,
            point_coords,
            point_labels,
            mask_input,
            has_mask_input.clamp(0, 1),
            self.padding_mask(point_labels),
        )
        return iou_predictions, low_res_masks

    def padding_mask(self, point_labels: Tensor) -> Tensor | None:
        """Returns ``[B, N]`` with 1 where a point is padding; None where no point can be."""
        return None

    def intermediates(self) -> list[str]:
        """Returns the names of the intermediate outputs, in the order in which they are computed."""
        transformer = self.model.mask_decoder.transformer
        names = [f"transformer.layers.{i}.{j}" for i in range(len(transformer.layers)) for j in (0, 1)]
        return [f"mask_decoder.{name}" for name in (*names, "transformer.0", "output_upscaling")]

    def example(self, prompts: int = 2, points: int = 3) -> dict[str, Tensor]:
        """Returns inputs of the right shapes to trace with."""
        cells, side = self.model.embedding_side, self.model.mask_side
        return {
            c.IMAGE_EMBEDDINGS: torch.zeros(1, EMBED_DIM, cells, cells),
            c.POINT_COORDS: torch.zeros(prompts, points, 2),
            c.POINT_LABELS: torch.ones(prompts, points),
            c.MASK_INPUT: torch.zeros(prompts, 1, side, side),
            c.HAS_MASK_INPUT: torch.zeros(prompts),
        }


class PixelEncoder(Encoder):
    """``image`` (0..255) and the picture's ``resized_size`` to ``image_embeddings``.

    Normalises inside, and sets what lies right of and below the picture to zero: SAM pads after
    normalising, with the mean colour as it were, and no 8-bit picture can hold that exactly.
    """

    inputs = (c.IMAGE, c.RESIZED_SIZE)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        image, resized_size = inputs
        statistics = constants.PIXEL_MEAN, constants.PIXEL_STD
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in statistics)
        places = torch.arange(self.model.image_size, dtype=image.dtype)
        height, width = resized_size[0:1], resized_size[1:2]
        rows, columns = ((side - places).clamp(0, 1) for side in (height, width))
        inside = rows.view(1, 1, -1, 1) * columns.view(1, 1, 1, -1)
        return (self.model.encode((image - mean) * (1 / std) * inside),)

    def example(self) -> dict[str, Tensor]:
        side = self.model.image_size
        return {c.IMAGE: torch.zeros(1, 3, side, side), c.RESIZED_SIZE: torch.full((2,), float(side))}


MASK_INPUTS = (c.MASK_INPUT, c.HAS_MASK_INPUT)


class StaticDecoder(Decoder):
    """The decoder for formats with static shapes: ``prompts`` prompts of ``max_points`` points.

    ``mask_input`` has a batch of 1, and serves all prompts of a call.

    A prompt of fewer points is padded with the label ``LABEL_PADDING``. Padding is left out of every
    attention, so it does not change the masks: SAM's not-a-point (label -1)
    would change them.
    """

    def __init__(self, model: Sam, max_points: int, prompts: int = 1) -> None:
        super().__init__(model)
        self.max_points, self.prompts = max_points, prompts

    @property
    def shape(self) -> tuple[int, int]:
        """Prompts of a call, and points of a prompt."""
        return self.prompts, self.max_points

    def padding_mask(self, point_labels: Tensor) -> Tensor | None:
        return is_label(point_labels, float(constants.LABEL_PADDING))

    def example(self, prompts: int | None = None, points: int | None = None) -> dict[str, Tensor]:
        masks = {name: x[:1] for name, x in super().example(1, 1).items() if name in MASK_INPUTS}
        return super().example(self.prompts, self.max_points) | masks


TracedNetwork = Encoder | Decoder


def static_decoder(model: Sam, options: Options) -> StaticDecoder:
    """Returns the decoder with the shapes that the options ask for."""
    return StaticDecoder(model, options.max_points, options.prompts_per_call)


REFERENCE_TYPES: dict[str, type[TracedNetwork]] = {"encoder": Encoder, "decoder": Decoder}
"""The networks with the dynamic shapes of PyTorch: the reference of every target."""


class Tapped(nn.Module):
    """A network with its intermediate outputs among its outputs, so that a traced graph names them."""

    def __init__(self, network: TracedNetwork) -> None:
        super().__init__()
        self.part = network  # this name stands in front of every tensor's name in the files

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with tapped(self.part) as taps:
            results = self.part(*inputs)
        return (*results, *(taps[name] for name in self.part.intermediates()))


@contextmanager
def tapped(network: TracedNetwork) -> Iterator[dict[str, Tensor]]:
    """Gives a dict in which each forward pass, while it is open, leaves the intermediate outputs.

    A submodule with several outputs has an entry for each, its number at the end of the name.
    """
    taps: dict[str, Tensor] = {}
    wanted = set(network.intermediates())

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs = (
                {f"{name}.{i}": x for i, x in enumerate(output)}
                if isinstance(output, tuple)
                else {name: output}
            )
            taps.update({key: value for key, value in outputs.items() if key in wanted})

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in network.model.named_modules() if n]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def count_macs(network: TracedNetwork) -> int:
    """Counts multiply-accumulates of convolutions and matrix products, for one prompt of two points.

    Counted by torch on tensors without data, so it costs no computation.
    """
    meta = copy.copy(network)
    meta.model = copy.deepcopy(network.model).to("meta")
    sizes = {"prompts": 1, "points": 2} if isinstance(network, Decoder) else {}
    example = network.example(**sizes)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        meta(*(example[name].to("meta") for name in network.inputs))
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def run_outputs(network: TracedNetwork, feeds: dict[str, Any]) -> dict[str, Any]:
    """Runs a network in PyTorch on numpy arrays; returns its outputs as numpy arrays by name."""
    results = network(*(torch.from_numpy(feeds[name]) for name in network.inputs))
    return {name: x.numpy() for name, x in zip(network.outputs, results, strict=True)}


def run(network: TracedNetwork, feeds: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs a network in PyTorch on numpy arrays.

    Returns:
        Outputs and intermediate outputs, numpy arrays by name.
    """
    with tapped(network) as taps:
        outputs = run_outputs(network, feeds)
    return outputs, {name: taps[name].numpy() for name in network.intermediates()}
