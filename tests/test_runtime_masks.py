import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from pocketsam.errors import MaskError
from pocketsam.export.cases import postprocess_masks as reference_masks
from pocketsam.runtime.rle import from_rle, mask_box, run_lengths, to_rle
from pocketsam.runtime.upscale import Upscaler


def postprocess_masks(low, size, image_size):
    """``Sam.postprocess_masks`` of the reference, restated; but no side is ever 0."""
    scale = image_size / max(size)
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    canvas = F.interpolate(
        torch.from_numpy(low), (image_size, image_size), mode="bilinear", align_corners=False
    )
    canvas = canvas[..., :height, :width]
    return F.interpolate(canvas, size, mode="bilinear", align_corners=False).numpy()


def check_upscaling(size, image_size):
    side = image_size // 4
    low = np.random.default_rng(0).normal(0, 5, (1, 1, side, side)).astype(np.float32)
    upscaler = Upscaler(image_size, size)
    found = upscaler.logits(low[0, 0])
    wanted = postprocess_masks(low, size, image_size)[0, 0]
    assert np.array_equal(wanted, reference_masks(low, size, image_size)[0, 0])
    assert found.shape == size
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 2e-4  # both interpolate in float32
    sure = np.abs(wanted) > 1e-3
    assert np.array_equal((found > 0)[sure], (wanted > 0)[sure])
    assert np.array_equal(upscaler.mask(low[0, 0])[sure], (wanted > 0)[sure])


@pytest.mark.parametrize(
    "size",
    [(1, 1), (10000, 1), (1, 10000), (3, 500), (768, 1024), (1024, 1024), (2000, 3000), (511, 340)],
)
def test_upscaling_equals_torch(size):
    check_upscaling(size, 1024)


def test_upscaling_leaves_a_constant_alone():
    found = Upscaler(256, (301, 77)).logits(np.full((64, 64), 3, np.float32))
    assert np.abs(found - 3).max() < 1e-5


def test_upscaling_ignores_the_padding():
    """Of a wide image, low-resolution rows below the last that touches the image do not count."""
    low = np.random.default_rng(0).normal(0, 5, (64, 64)).astype(np.float32)
    padded = low.copy()
    padded[33:] = 1e6
    upscaler = Upscaler(256, (100, 200))
    assert np.array_equal(upscaler.logits(low), upscaler.logits(padded))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([64, 128, 256]))
def test_upscaling_of_any_size(height, width, image_size):
    check_upscaling((height, width), image_size)


def check_rle(mask):
    wanted = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = to_rle(mask)
    assert found == {"size": wanted["size"], "counts": wanted["counts"].decode()}
    assert type(found["counts"]) is str
    back = from_rle(found)
    assert back.dtype == bool
    assert np.array_equal(back, mask)
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


@pytest.mark.parametrize("run", [15, 16, 31, 32, 511, 512, 2**14, 2**15, 2**15 + 1, 2**20, 2**21 - 1])
def test_rle_of_runs_at_the_edges_of_a_group(run):
    for gap in (1, run, 3 * run):
        mask = np.zeros((1, 3 * run + 2 * gap + 7), bool)
        mask[0, gap : gap + run] = True
        mask[0, 2 * gap + run : 2 * gap + 3 * run] = True
        check_rle(mask)
        check_rle(~mask.T)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_rle_of_no_pixels(shape):
    mask = np.zeros(shape, bool)
    assert from_rle(to_rle(mask)).shape == shape
    assert mask_box(mask) == [0, 0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_what_pycocotools_encodes_is_read(mask):
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(from_rle(encoded | {"counts": encoded["counts"].decode()}), mask)
    assert np.array_equal(from_rle(encoded), mask)
    assert np.array_equal(from_rle({"size": mask.shape, "counts": run_lengths(mask).tolist()}), mask)


def test_rle_does_not_depend_on_the_memory_layout():
    mask = np.random.default_rng(0).random((30, 41)) < 0.3
    before = mask.copy()
    wanted = to_rle(mask)
    assert to_rle(np.asfortranarray(mask)) == to_rle(mask[::-1].copy()[::-1]) == wanted
    assert np.array_equal(mask, before)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.text(max_size=12) | st.text("0123`PQRon", max_size=6))
def test_any_counts_are_a_mask_or_a_value_error(height, width, counts):
    try:
        mask = from_rle({"size": [height, width], "counts": counts})
    except ValueError:
        return
    assert mask.shape == (height, width)
    assert np.array_equal(from_rle(to_rle(mask)), mask)


def test_every_cut_and_flip_of_counts_is_a_mask_or_a_value_error():
    mask = np.random.default_rng(0).random((40, 50)) < 0.1
    good = to_rle(mask)
    for end in range(len(good["counts"])):
        with pytest.raises(
            ValueError, match=r"counts (do not describe a mask of 40x50|end in the middle)"
        ):
            from_rle(good | {"counts": good["counts"][:end]})
    for place, code in enumerate(good["counts"]):
        flipped = good["counts"][:place] + chr(ord(code) ^ 1) + good["counts"][place + 1 :]
        with pytest.raises(ValueError, match="counts"):
            from_rle(good | {"counts": flipped})


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [3, 5], "counts": "\xe9"},  # not what "?" would be
        {"size": [3, 5], "counts": "\ud800"},
        {"size": [2**40, 2**40], "counts": [2**80]},
    ],
)
def test_counts_of_other_characters_or_sizes_are_refused(rle):
    with pytest.raises(MaskError, match="counts"):
        from_rle(rle)


def test_counts_that_fill_another_size_are_refused():
    with pytest.raises(ValueError, match="30x21"):
        from_rle(to_rle(np.ones((30, 20), bool)) | {"size": [30, 21]})


def test_a_small_mask_has_a_box_around_it():
    mask = np.zeros((20, 30), bool)
    mask[3, 4] = mask[7, 25] = True
    assert mask_box(mask) == [4, 3, 22, 5]
    assert all(type(side) is int for side in mask_box(mask))


def test_rle_takes_numbers_and_refuses_other_shapes():
    assert to_rle(np.eye(3, dtype=np.uint8)) == to_rle(np.eye(3, dtype=bool))
    for shape in ((3,), (), (1, 3, 3)):
        with pytest.raises(ValueError, match=r"\[H, W\]"):
            to_rle(np.zeros(shape))


@pytest.mark.parametrize(
    "rle", [{}, [], None, {"size": 3, "counts": ""}, {"size": [1, 1], "counts": 2}]
)
def test_what_is_no_rle_is_refused(rle):
    with pytest.raises(MaskError, match="a mask in run-length encoding is"):
        from_rle(rle)


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "1",
        "~~",
        "9",
        "PPYo1",
        "P",
        "\x7f",
        "00000Z",
        "\xe9",
        b"\xff",
        [],
        [600, 1],
        [-1, 601],
        [0.5],
    ],
)
def test_damaged_rle_is_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        from_rle({"size": [20, 30], "counts": counts})


def test_logits_are_no_mask():
    with pytest.raises(MaskError, match="encode `logits > 0`"):
        to_rle(np.array([[-1.0, 2.0]]))
    assert to_rle(np.array([[0, 1]])) == to_rle(np.array([[False, True]]))
