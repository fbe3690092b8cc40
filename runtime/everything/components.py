"""Connected regions of a mask, in numpy."""

import numpy as np
from numpy.typing import NDArray

from pocketsam.runtime.rle import runs


def remove_small_regions(
    mask: NDArray[np.bool_], area: int, mode: str
) -> tuple[NDArray[np.bool_], bool]:
    """Removes holes, or islands, of fewer than ``area`` pixels.

    Regions are connected over edges and corners. The largest island is always kept
    (segment-anything's ``remove_small_regions``, which calls OpenCV).

    Args:
        mask: ``[H, W]``.
        area: in pixels.
        mode: "holes" or "islands".

    Returns:
        The new mask, and whether it differs.
    """
    holes = mode == "holes"
    found = runs(~mask if holes else mask)
    rows, first, after = found
    if not len(rows):
        return mask, False
    regions = _regions(*found, mask.shape[1])
    sizes = np.bincount(regions, after - first)
    small = sizes < area
    if not small.any():
        return mask, False
    if not holes and small.all():
        small[sizes.argmax()] = False
    result = mask.copy()
    for number in np.flatnonzero(small[regions]):
        result[rows[number], first[number] : after[number]] = holes
    return result, True


def _regions(
    rows: NDArray[np.intp], first: NDArray[np.intp], after: NDArray[np.intp], width: int
) -> NDArray[np.intp]:
    """Returns the region's number of each run (see ``rle.runs``), counted from 0 in reading order."""
    stride = width + 2
    above = (rows - 1) * stride
    # the runs of the row above that overlap this one, or touch it at a corner
    start = np.searchsorted(rows * stride + after, above + first, "left")
    stop = np.searchsorted(rows * stride + first, above + after, "right")
    counts = np.maximum(stop - start, 0)
    below = np.repeat(np.arange(len(rows)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    upper = np.repeat(start, counts) + offsets
    label = np.arange(len(rows))
    while True:  # each round takes the smallest label of linked runs, then follows labels to the end
        old = label.copy()
        smallest = np.minimum(label[upper], label[below])
        np.minimum.at(label, label[upper], smallest)
        np.minimum.at(label, label[below], smallest)
        while True:
            further = label[label]
            if np.array_equal(further, label):
                break
            label = further
        if np.array_equal(old, label):
            numbers: NDArray[np.intp] = np.unique(label, return_inverse=True)[1]
            return numbers
