"""Windows: the part of a photograph that a view shows, and the label maps of that part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam.models.prompted import Mask
from pocketsam.models.training.photographs.photo import FEATURE_CELL, FEATURES, TrainingPhoto

GRID = 2
"""Pixels of the canvas for each element of the label maps."""
SMALLEST = 48
"""Elements of the label maps that a mask must cover to be asked for: twelve cells of the decoder."""
LARGEST = 0.95
"""Share of the view that it may cover."""
_OUTSIDE = 65_535


@dataclass(frozen=True)
class Window:
    """A part of a photograph and its place at the top left of the canvas.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the photograph.
        width: in pixels of the canvas.
        height: in pixels of the canvas.
        mirrored: left and right change places.
    """

    box: tuple[float, float, float, float]
    width: int
    height: int
    mirrored: bool


@dataclass(frozen=True)
class Maps:
    """The label maps of a window.

    Attributes:
        basins: ``[S/2, S/2]``; N outside the photograph.
        merged: ``[L, N + 1]``; the last column belongs to the outside.
        layers: ``[K, S/2, S/2]``; 0 outside.
        area: number of elements inside.
    """

    basins: NDArray[np.int64]
    merged: NDArray[np.uint16]
    layers: NDArray[np.uint16]
    area: int

    def region(self, level: int, y: int, x: int) -> Mask:
        """Returns the region at an element, at a level."""
        row = self.merged[level]
        found: Mask = (row == row[self.basins[y, x]])[self.basins]
        return found

    def drawn(self, y: int, x: int) -> list[Mask]:
        """Returns the masks over an element that people drew."""
        return [layer == layer[y, x] for layer in self.layers if layer[y, x]]

    def all_drawn(self) -> list[Mask]:
        """Returns all masks that people drew, less those that do not fit."""
        return [
            layer == value
            for layer in self.layers
            for value, count in enumerate(np.bincount(layer.ravel()))
            if value and SMALLEST <= count <= LARGEST * self.area
        ]

    def fits(self, mask: Mask) -> bool:
        """Returns whether a mask is neither too small nor too large to be asked for."""
        return bool(SMALLEST <= np.count_nonzero(mask) <= LARGEST * self.area)


def draw_window(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> Window:
    """Returns the whole photograph in six of ten draws, otherwise a crop, nearly square.

    Args:
        shape: of the photograph, starts with (H, W).
        size: side of the canvas in pixels.
        rng: draws.
    """
    height, width = shape[:2]
    mirrored = bool(rng.random() < 0.5)
    if rng.random() < 0.6:
        scale = size / max(height, width) * (1.0 if rng.random() < 0.5 else rng.uniform(0.6, 1.0))
        shown = (max(16, round(width * scale)), max(16, round(height * scale)))
        return Window((0, 0, width, height), *shown, mirrored)
    side = rng.uniform(0.4, 1.0) * min(height, width)
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    across, down = min(width, side * stretch), min(height, side / stretch)
    x0, y0 = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return Window((x0, y0, x0 + across, y0 + down), size, size, mirrored)


def show(photo: TrainingPhoto, window: Window, size: int) -> NDArray[np.uint8]:
    """Returns the canvas ``[S, S, 3]`` with a window of a photograph, zeros right of it and below."""
    picture = Image.fromarray(photo.image).resize(
        (window.width, window.height), Image.Resampling.BILINEAR, box=window.box
    )
    pixels = np.asarray(picture)
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[: window.height, : window.width] = pixels[:, ::-1] if window.mirrored else pixels
    return canvas


def maps_of(photo: TrainingPhoto, window: Window, size: int) -> Maps:
    """Returns the label maps of a window of a photograph."""
    x0, y0, x1, y1 = window.box
    across, down = -(-window.width // GRID), -(-window.height // GRID)
    columns = x0 + (np.arange(across) + 0.5) * GRID * (x1 - x0) / window.width
    rows = y0 + (np.arange(down) + 0.5) * GRID * (y1 - y0) / window.height
    height, width = photo.basins.shape
    inside_rows = rows.astype(int).clip(0, height - 1)[:, None]
    inside_columns = columns.astype(int).clip(0, width - 1)[:: -1 if window.mirrored else 1]
    side, count = size // GRID, photo.merged.shape[1]
    basins = np.full((side, side), count)
    basins[:down, :across] = photo.basins[inside_rows, inside_columns]
    layers = np.zeros((len(photo.layers), side, side), np.uint16)
    layers[:, :down, :across] = photo.layers[:, inside_rows, inside_columns]
    merged = np.pad(photo.merged, ((0, 0), (0, 1)), constant_values=_OUTSIDE)
    return Maps(basins, merged, layers, across * down)


def features_of(
    photo: TrainingPhoto, window: Window, size: int
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Returns the features ``[S/16, S/16, FEATURES]`` of a window, and which cells have any.

    They are interpolated between the cells of the photograph's features; outside they are zero.
    """
    side = size // FEATURE_CELL
    found = np.zeros((side, side, FEATURES), np.float16)
    known = np.zeros((side, side), bool)
    if not photo.features.size:
        return found, known
    x0, y0, x1, y1 = window.box
    down, across = (-(-length // FEATURE_CELL) for length in (window.height, window.width))
    rows, between_rows = _neighbours(down, y0, (y1 - y0) / window.height, photo.features.shape[0])
    columns, between = _neighbours(across, x0, (x1 - x0) / window.width, photo.features.shape[1])
    features = photo.features.astype(np.float32)
    shown = features[rows[0]] * (1 - between_rows) + features[rows[1]] * between_rows
    shown = shown[:, columns[0]] * (1 - between[:, 0]) + shown[:, columns[1]] * between[:, 0]
    found[:down, :across] = shown[:, ::-1] if window.mirrored else shown
    known[:down, :across] = True
    return found, known


def _neighbours(
    count: int, start: float, scale: float, cells: int
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]:
    """Returns, for cells of the canvas, the cells of the photograph before and after, and the place.

    Args:
        count: cells of the canvas.
        start: of the window, in pixels of the photograph.
        scale: pixels of the photograph for each of the canvas.
        cells: of the photograph.

    Returns:
        Numbers ``[count]`` of the cells before and after, and the place between them ``[count, 1, 1]``
        in 0..1.
    """
    places = (start + (np.arange(count) + 0.5) * FEATURE_CELL * scale) / FEATURE_CELL - 0.5
    places = places.clip(0, cells - 1)
    before = places.astype(np.int64)
    after = np.minimum(before + 1, cells - 1)
    return (before, after), (places - before).astype(np.float32)[:, None, None]
