"""Connected regions of a mask, by numpy, where others take OpenCV's ``connectedComponents``."""

import numpy as np
from numpy.typing import NDArray

Runs = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
"""Row, first and last column of horizontal runs, in reading order."""


def remove_small_regions(
    mask: NDArray[np.bool_], area: int, mode: str
) -> tuple[NDArray[np.bool_], bool]:
    """A mask ``[H, W]`` without its holes, or islands, of fewer than ``area`` pixels.

    Regions are connected over edges and corners, and the largest island stays in any case:
    ``remove_small_regions`` of the reference.

    Args:
        mode: "holes" or "islands".

    Returns:
        The mask, and whether it changed.
    """
    holes = mode == "holes"
    runs = _runs(~mask if holes else mask)
    rows, first, last = runs
    if not len(rows):
        return mask, False
    regions = _regions(runs, mask.shape[1])
    sizes = np.bincount(regions, last - first + 1)
    small = sizes < area
    if not small.any():
        return mask, False
    if not holes and small.all():
        small[sizes.argmax()] = False
    result = mask.copy()
    for number in np.flatnonzero(small[regions]):
        result[rows[number], first[number] : last[number] + 1] = holes
    return result, True


def _runs(mask: NDArray[np.bool_]) -> Runs:
    framed = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    framed[:, 1:-1] = mask
    change = np.diff(framed, axis=1)
    rows, first = np.nonzero(change == 1)
    _, after = np.nonzero(change == -1)
    return rows, first, after - 1


def _regions(runs: Runs, width: int) -> NDArray[np.intp]:
    """The number of each run's region, counted from 0 in reading order."""
    rows, first, last = runs
    stride = width + 2
    above = (rows - 1) * stride
    # the runs of the row above that overlap this one, or touch it at a corner
    start = np.searchsorted(rows * stride + last, above + first - 1, "left")
    stop = np.searchsorted(rows * stride + first, above + last + 1, "right")
    counts = np.maximum(stop - start, 0)
    below = np.repeat(np.arange(len(rows)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    upper = np.repeat(start, counts) + offsets
    label = np.arange(len(rows))
    while True:  # each round takes the least label over a link, then follows labels to their ends
        old = label.copy()
        least = np.minimum(label[upper], label[below])
        np.minimum.at(label, label[upper], least)
        np.minimum.at(label, label[below], least)
        while True:
            further = label[label]
            if np.array_equal(further, label):
                break
            label = further
        if np.array_equal(old, label):
            numbers: NDArray[np.intp] = np.unique(label, return_inverse=True)[1]
            return numbers
