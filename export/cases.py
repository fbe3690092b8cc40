"""For programs that compare forms of a network: what an encoder in some other form is worth.

It is judged by the masks that follow from its embedding. The decoder stays in PyTorch, so that the
figures are the encoder's alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam import constants
from pocketsam.export import parity
from pocketsam.export.metrics import mask_figures, tensor_figures
from pocketsam.export.traced import Decoder, Encoder, run
from pocketsam.models.checkpoint import default_image_size, load_model
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""``pixel_values`` to ``image_embeddings``."""


def work_folder(checkpoint: str, image_size: int | None, folder: Path) -> tuple[Sam, Path]:
    """A checkpoint's network, at the size it was trained at unless told otherwise, and a directory in
    ``folder`` that is named after both."""
    size = image_size or default_image_size(checkpoint)
    model = load_model(checkpoint, size).model
    work = folder.resolve() / f"{Path(checkpoint).stem}-{size}"
    work.mkdir(parents=True, exist_ok=True)
    return model, work


@dataclass(frozen=True)
class Photo:
    """A photograph, what PyTorch makes of it, and what it answers to ``parity.PROMPTS``.

    Attributes:
        pixels: ``pixel_values``.
        embedding: ``image_embeddings``.
        cases: for each prompt the decoder's inputs, and masks ``[B, 4, H, W]`` and scores ``[B, 4]``.
    """

    pixels: NDArray[np.float32]
    embedding: NDArray[np.float32]
    size: tuple[int, int]
    cases: list[tuple[parity.Arrays, NDArray[np.bool_], NDArray[np.float32]]]


@dataclass(frozen=True)
class Verdict:
    """Over all photographs and prompts.

    Attributes:
        worst, mean: IoU with the masks of PyTorch.
        snr_db: worst, of the embedding.
    """

    worst: float
    mean: float
    snr_db: float


def answers(model: Sam, photo: NDArray[np.uint8]) -> Photo:
    """What PyTorch says."""
    size = (photo.shape[0], photo.shape[1])
    pixels = parity.encoder_feeds(photo, model.image_size)[c.PIXEL_VALUES]
    embedding = run(Encoder(model), {c.PIXEL_VALUES: pixels})[0][c.IMAGE_EMBEDDINGS]
    mask = np.zeros((1, 1, model.image_size // 4, model.image_size // 4), np.float32)
    cases = []
    for prompt in parity.PROMPTS:
        feeds = parity.decoder_feeds(prompt, embedding, mask, size, model.image_size)
        masks, scores, mask = _decode(model, feeds, size)
        cases.append((feeds, masks, scores))
    return Photo(pixels, embedding, size, cases)


def _decode(model: Sam, feeds: parity.Arrays, size: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Masks and scores as in ``Photo``, and a mask input for the next prompt."""
    found = run(Decoder(model), feeds)[0]
    low = found[c.LOW_RES_MASKS]
    full = parity.reference_masks(low, size, model.image_size)
    return full > constants.MASK_THRESHOLD, found[c.IOU_PREDICTIONS], low[:1, 1:2]


def judge(model: Sam, photos: Sequence[Photo], encoder: Embed) -> Verdict:
    """An encoder's masks beside PyTorch's."""
    ious, snrs = [], []
    for photo in photos:
        embedding = encoder(photo.pixels)
        snrs.append(tensor_figures(photo.embedding, embedding)["snr_db"])
        for feeds, masks, scores in photo.cases:
            found, its, _ = _decode(model, feeds | {c.IMAGE_EMBEDDINGS: embedding}, photo.size)
            ious.append(mask_figures(masks, found, (scores, its))["iou"])
    return Verdict(min(ious), float(np.mean(ious)), min(snrs))
