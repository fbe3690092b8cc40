"""Polygons along pixel edges are the mask, whoever fills them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pocketsam.runtime.everything.polygons import mask_polygons


def filled(polygons, shape):
    """A pixel is inside if a ray from its middle to the right crosses an odd number of edges."""
    mask = np.zeros(shape, bool)
    rows, columns = np.indices(shape) + 0.5
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        inside = np.zeros(shape, bool)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            assert x0 == x1 or y0 == y1
            inside ^= (x0 == x1) & (columns < x0) & (rows > min(y0, y1)) & (rows < max(y0, y1))
        assert not (mask & inside).any(), "two polygons overlap"
        mask |= inside
    return mask


def test_simple_shapes():
    assert mask_polygons(np.zeros((3, 4), bool)) == []
    assert mask_polygons(np.zeros((0, 0), bool)) == []
    assert mask_polygons(np.ones((2, 3), bool)) == [[0, 0, 3, 0, 3, 2, 0, 2]]
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    assert len(mask_polygons(ring)) == 2
    assert sorted(map(len, mask_polygons(np.eye(2, dtype=bool)))) == [8, 8]


@settings(deadline=None, max_examples=200)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_filled_again_they_are_the_mask(mask):
    polygons = mask_polygons(mask)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        turns = np.diff(np.concatenate([points, points[:2]]), axis=0)
        assert (np.sign(turns[1:]) != np.sign(turns[:-1])).any(axis=1).all(), (
            "a corner on a straight edge"
        )


def test_pycocotools_fills_them_as_well():
    pycoco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :120]
    mask = (x - 50) ** 2 + (y - 40) ** 2 < 900
    mask &= (x - 55) ** 2 + (y - 35) ** 2 > 100
    mask |= rng.random(mask.shape) < 0.02
    rle = pycoco.merge(pycoco.frPyObjects(mask_polygons(mask), *mask.shape))
    assert np.array_equal(pycoco.decode(rle).astype(bool), mask)
