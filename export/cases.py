"""The reference's answers: what PyTorch computes for photographs and prompts, computed once.

Calibration, parity and the accuracy of single networks share the cases of one ``Reference``; golden
vectors have a case of their own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pocketsam import constants
from pocketsam.export.target import Arrays
from pocketsam.export.traced import Decoder, Encoder, TracedNetwork, run, run_outputs
from pocketsam.images import load_image
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.image import preprocess, preprocess_raw
from pocketsam.runtime.prompts import assemble
from pocketsam.runtime.verification.metrics import mask_ious, tensor_figures
from pocketsam.traits import SAM_PIXELS, Normalisation

Photo = NDArray[np.uint8]
"""``[H, W, 3]`` RGB."""
Encode = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""``pixel_values`` to ``image_embeddings``."""

DETAILED = 4
"""Photographs whose intermediate outputs are kept; they take about 100 times the outputs' memory."""


@dataclass(frozen=True)
class Prompt:
    """B prompts in fractions of the image's width and height."""

    name: str
    points: list[list[tuple[float, float, int]]] | None = None  # [B][N] (x, y, label)
    boxes: list[tuple[float, float, float, float]] | None = None  # [B]
    with_mask: bool = False
    has_mask: float = 0.0


PROMPTS = (
    Prompt("point", [[(0.5, 0.5, 1)]]),
    Prompt("corner points", [[(0, 0, 1), (1, 1, 1)]]),
    Prompt("foreground and background", [[(0.4, 0.3, 1), (0.8, 0.9, 0)]]),
    Prompt("nine points", [[(x / 4, y / 4, (x + y) % 2) for x in (1, 2, 3) for y in (1, 2, 3)]]),
    Prompt("box", boxes=[(0.2, 0.1, 0.7, 0.9)]),
    Prompt("whole image as box", boxes=[(0, 0, 1, 1)]),
    Prompt("box and points", [[(0.5, 0.4, 1), (0.6, 0.6, 0)]], [(0.3, 0.2, 0.8, 0.8)]),
    Prompt("point and mask", [[(0.5, 0.5, 1)]], with_mask=True, has_mask=1.0),
    Prompt("mask alone", with_mask=True, has_mask=1.0),
    Prompt("no prompt"),
    Prompt("has_mask_input -1", [[(0.5, 0.5, 1)]], with_mask=True, has_mask=-1.0),
    Prompt("batch of points", [[(0.2, 0.3, 1)], [(0.5, 0.6, 1)], [(0.9, 0.8, 0)]]),
    Prompt("batch of boxes", boxes=[(0.1, 0.1, 0.4, 0.5), (0.5, 0.2, 0.9, 0.9)]),
)


@dataclass(frozen=True, eq=False)
class DecoderCase:
    """A prompt on a photograph, and what PyTorch's decoder answers.

    Attributes:
        name: the photograph and the prompt.
        size: (height, width) of the photograph.
        image_size: side of the canvas.
        feeds: the decoder's inputs, the reference's embedding among them.
        outputs: ``iou_predictions`` [B, 4] and ``low_res_masks`` [B, 4, S/4, S/4].
        intermediates: the decoder's intermediate outputs; empty where they are not kept.
    """

    name: str
    size: tuple[int, int]
    image_size: int
    feeds: Arrays
    outputs: Arrays
    intermediates: Arrays

    @property
    def mask_logits(self) -> NDArray[np.float32]:
        """``[B, 4, H, W]`` at the photograph's size; large, so made anew each time."""
        return postprocess_masks(self.outputs[c.LOW_RES_MASKS], self.size, self.image_size)


@dataclass(frozen=True, eq=False)
class Case:
    """A photograph, what PyTorch's encoder makes of it, and the prompts on it.

    Attributes:
        name: of the photograph.
        source: ``[H, W, 3]`` uint8, or the file, which is read when it is needed.
        size: (height, width) of the photograph.
        image_size: side of the canvas.
        outputs: ``image_embeddings`` [1, 256, S/16, S/16].
        intermediates: the encoder's intermediate outputs; empty where they are not kept.
        prompts: a case for each prompt.
        normalisation: of the encoder's input.
    """

    name: str
    source: Photo | Path
    size: tuple[int, int]
    image_size: int
    outputs: Arrays
    intermediates: Arrays
    prompts: tuple[DecoderCase, ...]
    normalisation: Normalisation = SAM_PIXELS

    @property
    def photo(self) -> Photo:
        """``[H, W, 3]`` uint8."""
        return read_photo(self.source)

    @cached_property
    def feeds(self) -> Arrays:
        """The inputs of any encoder of ours: the normalised tensor, and the picture as it is."""
        return all_encoder_feeds(self.photo, self.image_size, self.normalisation)


def compute_cases(
    model: Sam,
    photos: Iterable[tuple[str, Photo | Path]],
    *,
    prompts: Sequence[Prompt] = PROMPTS,
    detailed: int = DETAILED,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Case]:
    """Runs PyTorch on photographs and prompts; returns a case for each photograph.

    A prompt that takes a mask input gets the second mask of the prompt before it, as when a user
    refines a mask.

    Args:
        model: the reference, in eval mode.
        photos: names and images, or their files; of these, one is held at a time.
        prompts: asked of each photograph.
        detailed: how many of the photographs keep intermediate outputs.
        progress: called with the name of each photograph.
    """
    cases, side, pixels = [], model.image_size, model.traits.normalisation
    for number, (name, source) in enumerate(photos):
        progress(name)
        photo, keep = read_photo(source), number < detailed
        size = (photo.shape[0], photo.shape[1])
        feeds = all_encoder_feeds(photo, side, pixels)
        outputs, intermediates = run(Encoder(model), feeds)
        asked = tuple(_run_prompts(model, name, size, outputs[c.IMAGE_EMBEDDINGS], prompts, keep))
        kept = intermediates if keep else {}
        cases.append(Case(name, source, size, side, outputs, kept, asked, pixels))
    return cases


def read_photo(source: Photo | Path) -> Photo:
    """Returns a photograph, from its file unless it is one already."""
    return load_image(source) if isinstance(source, Path) else source


def _run_prompts(
    model: Sam,
    name: str,
    size: tuple[int, int],
    embedding: NDArray[np.float32],
    prompts: Sequence[Prompt],
    keep: bool,
) -> Iterable[DecoderCase]:
    side = model.mask_side
    mask = np.zeros((1, 1, side, side), np.float32)
    for prompt in prompts:
        feeds = decoder_feeds(prompt, embedding, mask, size, model.image_size)
        outputs, intermediates = run(Decoder(model), feeds)
        mask = outputs[c.LOW_RES_MASKS][:1, 1:2]
        kept = intermediates if keep else {}
        yield DecoderCase(f"{name}, {prompt.name}", size, model.image_size, feeds, outputs, kept)


def all_encoder_feeds(
    photo: Photo, image_size: int, normalisation: Normalisation = SAM_PIXELS
) -> Arrays:
    """Returns the inputs of any encoder of ours: the normalised tensor, and the picture as it is."""
    values = preprocess(photo, image_size, normalisation)
    return {c.PIXEL_VALUES: values} | preprocess_raw(photo, image_size)


def decoder_feeds(
    prompt: Prompt,
    embedding: NDArray[np.float32],
    mask: NDArray[np.float32],
    size: tuple[int, int],
    image_size: int,
) -> Arrays:
    """Returns the decoder's inputs for a prompt on an image.

    Args:
        prompt: what to ask.
        embedding: ``[1, 256, S/16, S/16]``.
        mask: ``[1, 1, S/4, S/4]`` logits, used if the prompt wants a mask input.
        size: (height, width) of the image.
        image_size: S.
    """
    height, width = size
    points = labels = boxes = None
    if prompt.points is not None:
        array = np.array(prompt.points, np.float32)
        points, labels = array[..., :2] * (width, height), array[..., 2]
    if prompt.boxes is not None:
        boxes = np.array(prompt.boxes, np.float32) * (width, height, width, height)
    coords, labels = assemble(points, labels, boxes, size, image_size)
    batch = len(coords)
    mask_input = mask if prompt.with_mask else np.zeros_like(mask)
    return {
        c.IMAGE_EMBEDDINGS: embedding,
        c.POINT_COORDS: coords,
        c.POINT_LABELS: labels,
        c.MASK_INPUT: np.repeat(mask_input, batch, axis=0),
        c.HAS_MASK_INPUT: np.full(batch, prompt.has_mask, np.float32),
        c.ORIG_IM_SIZE: np.array(size, np.float32),
    }


@torch.inference_mode()
def postprocess_masks(
    low_res: NDArray[np.float32], original_size: tuple[int, int], image_size: int
) -> NDArray[np.float32]:
    """Interpolates masks in torch as ``Sam.postprocess_masks`` of the reference does.

    Args:
        low_res: ``[B, C, S/4, S/4]`` logits.
        original_size: (height, width).
        image_size: S.

    Returns:
        ``[B, C, H, W]`` logits.
    """
    height, width = constants.resized_shape(*original_size, image_size)
    canvas = F.interpolate(torch.from_numpy(low_res), (image_size, image_size), mode="bilinear")
    masks = F.interpolate(canvas[..., :height, :width], original_size, mode="bilinear")
    return masks.numpy()


def samples_of(network: TracedNetwork, cases: Sequence[Case]) -> list[Arrays]:
    """Returns calibration inputs of a network: of each photograph, or the first of each prompt."""
    if isinstance(network, Encoder):
        return [case.feeds for case in cases]
    samples = []
    for prompt in (prompt for case in cases for prompt in case.prompts):
        first = {name: array[:1] for name, array in prompt.feeds.items()}
        samples.append(first | {c.ORIG_IM_SIZE: prompt.feeds[c.ORIG_IM_SIZE]})
    return samples


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of an encoder, over all photographs and prompts.

    Attributes:
        worst, mean: IoU of single masks with the reference's.
        snr_db: the lowest signal-to-noise ratio of an embedding.
    """

    worst: float
    mean: float
    snr_db: float


def measure_encoder(model: Sam, cases: Sequence[Case], encode: Encode) -> Accuracy:
    """Returns the mask IoU and SNR of another form of the encoder, compared with PyTorch.

    The decoder is PyTorch's, so that the figures are the encoder's alone.
    """
    ious, snrs = [], []
    for case in cases:
        embedding = encode(case.feeds[c.PIXEL_VALUES])
        snrs.append(tensor_figures(case.outputs[c.IMAGE_EMBEDDINGS], embedding)["snr_db"])
        for prompt in case.prompts:
            found = run_outputs(Decoder(model), prompt.feeds | {c.IMAGE_EMBEDDINGS: embedding})
            logits = postprocess_masks(found[c.LOW_RES_MASKS], prompt.size, prompt.image_size)
            wanted = prompt.mask_logits > constants.MASK_THRESHOLD
            ious += mask_ious(wanted, logits > constants.MASK_THRESHOLD).ravel().tolist()
    return Accuracy(min(ious), float(np.mean(ious)), min(snrs))
