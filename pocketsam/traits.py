"""What sets a network of SAM's family apart from SAM, beside its weights."""

from dataclasses import dataclass, field
from typing import Any

from pocketsam.constants import PIXEL_MEAN, PIXEL_STD

UPSCALING = 4
"""Side of the low-resolution masks, in sides of the embedding: SAM's mask decoder upscales twice."""
MAX_EMBEDDING_SIDE = 256
"""Of a canvas of 4096 pixels in SAM."""
LEAST_RANGE = 1e-8
"""Between a picture's least and greatest value, so that one of a single value becomes zeros."""


@dataclass(frozen=True)
class Normalisation:
    """How pixels in 0..255 become the encoder's values: ``(value - mean) / std``.

    Attributes:
        mean, std: of red, green and blue; the defaults are SAM's.
        stretch: whether the picture's least and greatest value, of all channels together, become 0 and
            1 before that.
    """

    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    stretch: bool = False

    def statistics(self, values: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns what to subtract from red, green and blue of a picture, and what to divide by.

        Args:
            values: of the picture on the canvas, without padding, in 0..255: an array or a tensor.
        """
        if not self.stretch:
            return self.mean, self.std
        low, high = float(values.min()), float(values.max())
        span = max(high - low, LEAST_RANGE)
        return tuple(low + span * mean for mean in self.mean), tuple(span * std for std in self.std)


SAM_PIXELS = Normalisation()
MIN_MAX = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), stretch=True)
"""MedSAM's and LiteMedSAM's: the picture's own values from 0 to 1."""


@dataclass(frozen=True)
class Traits:
    """What sets a network of SAM's family apart from SAM; the defaults are SAM's.

    Attributes:
        stride: pixels of the canvas to a cell of the embedding, along a side.
        normalisation: of the encoder's input.
        multimask: whether masks 1 to 3, the readings of an ambiguous prompt, were trained.
        image_size: side of the canvas, in pixels, that it was trained at.
    """

    stride: int = 16
    normalisation: Normalisation = field(default_factory=Normalisation)
    multimask: bool = True
    image_size: int = 1024

    @property
    def largest_image_size(self) -> int:
        """Side, in pixels, of the largest canvas: its embedding is as large as SAM's can be."""
        return MAX_EMBEDDING_SIDE * self.stride

    def embedding_side(self, image_size: int) -> int:
        """Returns the side of the embedding, in cells, for a canvas, both in pixels."""
        return image_size // self.stride

    def mask_side(self, image_size: int) -> int:
        """Returns the side of the low-resolution masks, in pixels of theirs."""
        return UPSCALING * self.embedding_side(image_size)
