"""Photographs to learn from: their pixels, the masks that people drew, and regions that were found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketsam.files import write_file
from pocketsam.models.hed_encoder import VGG_WIDTHS

FEATURES = VGG_WIDTHS[-1][0]
"""Channels of the features to imitate."""
FEATURE_CELL = 16
"""Side of a feature's cell in pixels of the photograph."""


@dataclass(frozen=True)
class TrainingPhoto:
    """A photograph with everything that a click on it may mean.

    Attributes:
        name: of the file, without its suffix.
        image: ``[H, W, 3]`` uint8 RGB.
        basins: ``[H, W]`` uint16, the number of the smallest region at each pixel, from 0 up.
        merged: ``[L, N]`` uint16, at each level the number of the region that a basin belongs to. The
            levels go from fine to coarse, and a region of one is a union of regions of those before.
        layers: ``[K, H, W]`` uint16, label maps that people drew: 0 is unlabelled, any other value an
            object. K is 0 where nobody drew any.
        features: ``[H/16, W/16, FEATURES]`` float16, those of a larger network; empty where unknown.
    """

    name: str
    image: NDArray[np.uint8]
    basins: NDArray[np.uint16]
    merged: NDArray[np.uint16]
    layers: NDArray[np.uint16]
    features: NDArray[np.float16] = field(
        default_factory=lambda: np.zeros((0, 0, FEATURES), np.float16)
    )

    @property
    def has_masks(self) -> bool:
        """Returns whether people drew masks."""
        return len(self.layers) > 0


def nest(regions: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Returns ``basins`` and ``merged`` of a ``TrainingPhoto`` for nested regions.

    Args:
        regions: labels ``[L, H, W]``, from fine to coarse.
    """
    _, first, basins = np.unique(regions[0], return_index=True, return_inverse=True)
    merged = regions.reshape(len(regions), -1)[:, first]
    return basins.reshape(regions[0].shape).astype(np.uint16), merged


def save_photo(path: Path, photo: TrainingPhoto) -> None:
    """Writes a ``.npz`` that ``load_photo`` reads.

    Raises:
        PocketSamError: the file cannot be written.
    """
    write_file(
        path,
        lambda work: np.savez_compressed(
            work,
            image=photo.image,
            basins=photo.basins,
            merged=photo.merged,
            layers=photo.layers,
            features=photo.features,
        ),
    )


def load_photo(path: Path) -> TrainingPhoto:
    """Returns the photograph that ``save_photo`` wrote."""
    with path.open("rb") as stream, np.load(stream) as file:  # closed, however damaged
        names = ("image", "basins", "merged", "layers", "features")
        return TrainingPhoto(path.stem, *(file[name] for name in names))


def draw_weights(photos: Sequence[TrainingPhoto], labelled_share: float) -> NDArray[np.float64]:
    """Returns how often each photograph is to be drawn; the sum is 1.

    Photographs with masks are drawn equally often. The others are drawn by the square root of their
    number of regions at the middle level, so that scenes come more often than single objects.

    Args:
        photos: at least one.
        labelled_share: share of the draws for photographs with masks, where there are both kinds.
    """
    labelled = np.array([photo.has_masks for photo in photos])
    counts = [len(np.unique(photo.merged[len(photo.merged) // 2])) for photo in photos]
    weights = np.where(labelled, 1.0, np.sqrt(np.array(counts, float)))
    if labelled.any() and not labelled.all():
        weights[labelled] *= labelled_share / weights[labelled].sum()
        weights[~labelled] *= (1 - labelled_share) / weights[~labelled].sum()
    return weights / weights.sum()
