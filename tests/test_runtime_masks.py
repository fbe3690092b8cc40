import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from pocketsam.export.parity import reference_masks
from pocketsam.runtime.masks import Upscaler, from_rle, mask_box, to_rle


def check_upscaling(size, image_size):
    side = image_size // 4
    low = np.random.default_rng(0).normal(0, 5, (1, 1, side, side)).astype(np.float32)
    found = Upscaler(image_size, size).logits(low[0, 0])
    wanted = reference_masks(low, size, image_size)[0, 0]
    assert found.shape == size
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-3
    sure = np.abs(wanted) > 1e-3
    assert np.array_equal((found > 0)[sure], (wanted > 0)[sure])


@pytest.mark.parametrize(
    "size",
    [(1, 1), (10000, 1), (1, 10000), (3, 500), (768, 1024), (1024, 1024), (2000, 3000), (511, 340)],
)
def test_upscaling_equals_torch(size):
    check_upscaling(size, 1024)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([64, 128, 256]))
def test_upscaling_of_any_size(height, width, image_size):
    check_upscaling((height, width), image_size)


def check_rle(mask):
    wanted = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = to_rle(mask)
    assert found == {"size": wanted["size"], "counts": wanted["counts"].decode()}
    assert np.array_equal(from_rle(found), mask)
    assert mask_box(mask) == coco.toBbox(wanted).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (7, 9), (600, 401)])
@pytest.mark.parametrize("density", [0, 0.001, 0.3, 0.5, 0.99, 1])
def test_rle_equals_pycocotools(shape, density):
    check_rle(np.random.default_rng(0).random(shape) < density)


def test_rle_of_long_runs():
    mask = np.zeros((3000, 2000), bool)
    mask[:, 500:1500] = True
    mask[100:103, 700:702] = False
    check_rle(mask)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_rle_of_any_mask(mask):
    check_rle(mask)


def test_rle_takes_numbers_and_refuses_other_shapes():
    assert to_rle(np.eye(3, dtype=np.uint8)) == to_rle(np.eye(3, dtype=bool))
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        to_rle(np.zeros((1, 3, 3)))


@pytest.mark.parametrize("counts", ["", "1", "~~", "9", "PPYo1", "P", "\x7f", "00000Z"])
def test_damaged_rle_is_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        from_rle({"size": [20, 30], "counts": counts})
