"""Scenes for training at the pace of the accelerator.

Worker processes paint scenes into a pool that lies in the accelerator's memory; batches are drawn from
what is there, mirrored, recoloured and given new prompts each time, so that painting never holds up
the training.
"""

import multiprocessing
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.errors import PocketSamError
from pocketsam.models import prompted
from pocketsam.models.training.scenes import Photo, generate

CELL = 4
"""Pixels of a canvas along the side of a mask's cell, as in the decoder's output."""


@dataclass(frozen=True)
class Source:
    """What scenes are painted from, and at which size."""

    image_size: int
    masks: int
    textures: Sequence[NDArray[np.uint8]]
    photos: Sequence[Photo] = ()
    seed: int = 0


_source: Source
"""Of this process, where it is a worker."""


def _set_source(source: Source) -> None:
    global _source
    _source = source
    torch.set_num_threads(1)


def _paint(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return paint(_source, index)


def paint(source: Source, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image ``[S, S, 3]`` uint8 and masks ``[M, S/4, S/4]`` uint8, the share of a cell times 255.

    The masks are drawn from the scene's at random, some of them twice where there are few.
    """
    number = source.seed * 100_000 + index
    scene = generate(number, source.image_size, source.textures, source.photos)
    rng = np.random.default_rng((number, 1))
    chosen = scene.masks[np.resize(rng.permutation(len(scene.masks)), source.masks)]
    side = source.image_size // CELL
    share = chosen.reshape(-1, side, CELL, side, CELL).mean((2, 4), dtype=np.float32)
    return scene.image, (share * 255).astype(np.uint8)


class ScenePool:
    """Fills itself in the background; ``draw`` gives batches.

    Args:
        source: of the scenes.
        capacity: scenes to hold; (S²·3 + M·S²/16) bytes each.
        device: where the pool lies.
        workers: processes that paint.
        first: scenes to wait for before the first batch.
    """

    def __init__(
        self, source: Source, capacity: int, device: torch.device, workers: int, first: int
    ) -> None:
        # Forked, and before anything computes on other threads: a later fork may never wake up, and
        # spawned workers would each import torch and copy the photographs.
        self._workers = multiprocessing.get_context("fork").Pool(workers, _set_source, (source,))
        size, side = source.image_size, source.image_size // CELL
        self.images = torch.empty(capacity, size, size, 3, dtype=torch.uint8, device=device)
        self.masks = torch.empty(capacity, source.masks, side, side, dtype=torch.uint8, device=device)
        self.filled, self.device = 0, device
        self._enough = threading.Event()
        self._error: Exception | None = None
        self._first = min(first, capacity)
        threading.Thread(target=self._fill, args=(capacity,), daemon=True).start()

    def _fill(self, capacity: int) -> None:
        try:
            for image, masks in self._workers.imap_unordered(_paint, range(capacity), chunksize=4):
                self.images[self.filled] = torch.from_numpy(image).to(self.device)
                self.masks[self.filled] = torch.from_numpy(masks).to(self.device)
                self.filled += 1
                if self.filled >= self._first:
                    self._enough.set()
        except Exception as error:  # told to whoever draws next
            self._error = error
            self._enough.set()

    def close(self) -> None:
        """Ends the workers."""
        self._workers.terminate()
        self._workers.join()

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Images ``[B, 3, S, S]`` float32 in 0..255 and masks ``[B, M, S/4, S/4]`` float32 in 0..1."""
        if not self._enough.wait(timeout=120):
            raise PocketSamError(f"only {self.filled} scenes were painted in two minutes")
        if self._error is not None:
            raise self._error
        chosen = torch.randint(self.filled, (batch,), device=self.device)
        images = self.images[chosen].permute(0, 3, 1, 2).float()
        masks = self.masks[chosen].float() / 255
        if torch.rand(()) < 0.5:
            images, masks = images.flip(3), masks.flip(3)
        return recolour(images), masks


def recolour(images: Tensor) -> Tensor:
    """Another white balance, contrast, saturation and noise for each image; 0..255 in and out."""
    count = len(images)

    def drawn(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1, device=images.device).uniform_(low, high)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * drawn(0.3, 1.4)
    images = (images - 128) * drawn(0.7, 1.3) + 128 + drawn(-20, 20)
    images = images * drawn(0.85, 1.15, 3)
    images = images + torch.randn_like(images) * drawn(-8, 8).clamp(min=0)
    return images.clamp(0, 255)


def draw_prompts(masks: Tensor, kind: str) -> prompted.Prompts:
    """One prompt for each mask ``[P, h, w]``, on the masks' device.

    ``point`` is a place in the mask and the pad; ``box`` its box, jittered by a tenth of its sides
    (SAM, appendix A); ``points`` two places in the mask, one outside it, and the pad.
    Half of the points lie anywhere in the mask; half away from its edge, as people click.
    """
    inside = (masks > 0.5).float()
    empty = inside.flatten(1).sum(1) == 0
    inside[empty] = (masks[empty] == masks[empty].amax((1, 2), keepdim=True)).float()
    count = len(masks)

    def labels(*values: float) -> Tensor:
        return torch.tensor(values, device=masks.device).repeat(count, 1)

    if kind == "box":
        return prompted.Prompts(_boxes(inside), labels(2, 3))
    deep = inside * (0.02 + F.avg_pool2d(inside[:, None], 15, 1, 7)[:, 0] ** 8)
    anywhere = torch.rand(count, 1, 1, device=masks.device) < 0.5
    weights = torch.where(anywhere, inside, deep)
    pad = torch.zeros(count, 1, 2, device=masks.device)
    if kind == "point":
        return prompted.Prompts(torch.cat([_cells(weights, 1), pad], 1), labels(1, -1))
    full = inside.flatten(1).amin(1) == 1
    outside = torch.where(full[:, None, None], inside, 1 - inside)
    coords = torch.cat([_cells(weights, 2), _cells(outside, 1), pad], 1)
    told = labels(1, 1, 0, -1)
    told[full, 2] = 1  # nothing lies outside: the third point is one more inside
    return prompted.Prompts(coords, told)


def _cells(weights: Tensor, points: int) -> Tensor:
    """``[P, points, 2]`` (x, y) in pixels, anywhere in cells drawn by weight."""
    width = weights.shape[-1]
    chosen = torch.multinomial(weights.flatten(1), points, replacement=True)
    cells = torch.stack([chosen % width, chosen // width], -1)
    return (cells + torch.rand(cells.shape, device=weights.device)) * CELL


def _boxes(inside: Tensor) -> Tensor:
    """``[P, 2, 2]``: corners in pixels, each moved by a tenth of the sides, at most 20 pixels."""
    side = inside.shape[-1]
    ends = []
    for axis in (1, 2):  # over the rows remain the columns, x; then y
        hit = inside.amax(axis)
        ends.append(torch.stack([hit.argmax(1), side - hit.flip(1).argmax(1)], 1))
    corners = torch.stack(ends, 2).float() * CELL
    noise = torch.randn_like(corners) * 0.1 * (corners[:, 1:] - corners[:, :1])
    return (corners + noise.clamp(-20, 20)).clamp(0, side * CELL).sort(1).values
