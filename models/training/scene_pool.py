"""Keeps a pool of generated scenes in the accelerator's memory, so that training never waits for them.

Worker processes paint scenes into the pool. A batch is drawn from the scenes painted so far, and is
mirrored, recoloured and given new prompts each time.
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
"""Side of a mask's cell in pixels of the canvas, as in the decoder's output."""

PROMPT_CYCLE = ("point", "box", "point", "points")
"""Prompt types of a training run's batches, in turn; see ``draw_prompts``."""


@dataclass(frozen=True)
class Source:
    """What scenes are painted from.

    Attributes:
        image_size: side of the scenes in pixels, a multiple of ``CELL``.
        masks: number of masks for each scene.
        textures: photographs ``[H, W, 3]`` uint8 to cut fillings from.
        photos: photographs with regions; see ``scenes.generate``.
        seed: another seed gives other scenes.
    """

    image_size: int
    masks: int
    textures: Sequence[NDArray[np.uint8]]
    photos: Sequence[Photo] = ()
    seed: int = 0


_source: Source
"""In a worker process: what it paints from."""


def _set_source(source: Source) -> None:
    """Prepares a worker process."""
    global _source
    _source = source
    torch.set_num_threads(1)


def _paint(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return paint(_source, index)


def paint(source: Source, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns a scene's image ``[S, S, 3]`` uint8 and masks ``[M, S/4, S/4]`` uint8.

    A mask holds the share of each cell that the object covers, times 255. The masks are random ones of
    the scene; where it has fewer than M, some come twice.
    """
    number = source.seed * 100_000 + index
    scene = generate(number, source.image_size, source.textures, source.photos)
    rng = np.random.default_rng((number, 1))
    chosen = scene.masks[np.resize(rng.permutation(len(scene.masks)), source.masks)]
    side = source.image_size // CELL
    share = chosen.reshape(-1, side, CELL, side, CELL).mean((2, 4), dtype=np.float32)
    return scene.image, (share * 255).astype(np.uint8)


class ScenePool:
    """A pool of scenes that is filled in the background; ``draw`` gives batches.

    Args:
        source: what scenes are painted from.
        capacity: number of scenes, (S²·3 + M·S²/16) bytes each.
        device: of the pool's tensors.
        workers: number of processes that paint.
        first: number of scenes to wait for before the first batch.
    """

    def __init__(
        self, source: Source, capacity: int, device: torch.device, workers: int, first: int
    ) -> None:
        # Fork, before anything computes on other threads: a later fork may deadlock, and spawned
        # workers would each import torch and copy the photographs.
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
        """Receives the workers' scenes, in a thread."""
        try:
            for image, masks in self._workers.imap_unordered(_paint, range(capacity), chunksize=4):
                self.images[self.filled] = torch.from_numpy(image).to(self.device)
                self.masks[self.filled] = torch.from_numpy(masks).to(self.device)
                self.filled += 1
                if self.filled >= self._first:
                    self._enough.set()
        except Exception as error:  # raised by the next call of draw
            self._error = error
            self._enough.set()

    def close(self) -> None:
        """Ends the workers."""
        self._workers.terminate()
        self._workers.join()

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Returns random scenes, recoloured and perhaps mirrored.

        Returns:
            Images ``[B, 3, S, S]`` float32 in 0..255, and masks ``[B, M, S/4, S/4]`` float32 in 0..1.

        Raises:
            PocketSamError: the first scenes were not painted in two minutes.
            Exception: the error of a worker that failed.
        """
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
    """Returns images in 0..255 with random white balance, contrast, saturation and noise.

    Args:
        images: ``[B, 3, S, S]`` float32 in 0..255; each gets its own random numbers.
    """
    count = len(images)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1, device=images.device).uniform_(low, high)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(0.3, 1.4)
    images = (images - 128) * uniform(0.7, 1.3) + 128 + uniform(-20, 20)
    images = images * uniform(0.85, 1.15, 3)
    images = images + torch.randn_like(images) * uniform(-8, 8).clamp(min=0)
    return images.clamp(0, 255)


def draw_prompts(masks: Tensor, prompt_type: str) -> prompted.Prompts:
    """Returns a random prompt for each mask, on the masks' device.

    Half of the points lie anywhere in the mask; half lie away from the mask's edge, as people click.

    Args:
        masks: ``[P, h, w]``, the share of each cell that the mask covers, in 0..1.
        prompt_type: ``point``: a point in the mask, and SAM's not-a-point; ``points``: two points in
            the mask, one outside, and a not-a-point; ``box``: the mask's bounding box, jittered by a
            tenth of its sides (arXiv:2304.02643, appendix A).
    """
    inside = (masks > 0.5).float()
    empty = inside.flatten(1).sum(1) == 0
    inside[empty] = (masks[empty] == masks[empty].amax((1, 2), keepdim=True)).float()
    count = len(masks)

    def labels(*values: float) -> Tensor:
        return torch.tensor(values, device=masks.device).repeat(count, 1)

    if prompt_type == "box":
        return prompted.Prompts(_boxes(inside), labels(2, 3))
    deep = inside * (0.02 + F.avg_pool2d(inside[:, None], 15, 1, 7)[:, 0] ** 8)
    anywhere = torch.rand(count, 1, 1, device=masks.device) < 0.5
    weights = torch.where(anywhere, inside, deep)
    pad = torch.zeros(count, 1, 2, device=masks.device)
    if prompt_type == "point":
        return prompted.Prompts(torch.cat([_cells(weights, 1), pad], 1), labels(1, -1))
    full = inside.flatten(1).amin(1) == 1
    outside = torch.where(full[:, None, None], inside, 1 - inside)
    coords = torch.cat([_cells(weights, 2), _cells(outside, 1), pad], 1)
    point_labels = labels(1, 1, 0, -1)
    point_labels[full, 2] = 1  # nothing lies outside: the third point is inside, too
    return prompted.Prompts(coords, point_labels)


def _cells(weights: Tensor, points: int) -> Tensor:
    """Returns ``[P, points, 2]``, (x, y) in pixels, anywhere in random cells drawn by weight."""
    width = weights.shape[-1]
    chosen = torch.multinomial(weights.flatten(1), points, replacement=True)
    cells = torch.stack([chosen % width, chosen // width], -1)
    return (cells + torch.rand(cells.shape, device=weights.device)) * CELL


def _boxes(inside: Tensor) -> Tensor:
    """Returns corners ``[P, 2, 2]`` in pixels, moved by about a tenth of the sides, at most by 20."""
    side = inside.shape[-1]
    ends = []
    for axis in (1, 2):  # the maximum over rows gives columns, x; then y
        hit = inside.amax(axis)
        ends.append(torch.stack([hit.argmax(1), side - hit.flip(1).argmax(1)], 1))
    corners = torch.stack(ends, 2).float() * CELL
    noise = torch.randn_like(corners) * 0.1 * (corners[:, 1:] - corners[:, :1])
    return (corners + noise.clamp(-20, 20)).clamp(0, side * CELL).sort(1).values
