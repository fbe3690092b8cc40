"""Pictures of masks, and what drawing and encoding them costs where the photograph is large."""

import tracemalloc

import numpy as np
import pytest

from pocketsam.errors import ImageError, MaskError
from pocketsam.runtime import Segmenter
from pocketsam.runtime.commands.results import Results, write_all
from pocketsam.runtime.commands.segment import find_objects
from pocketsam.runtime.overlay import colour_of, draw_overlay


def drawn_plainly(image, masks):
    """Masks mixed into the photograph and outlined, one after the other, in floats."""
    picture = image.copy()
    for number, mask in enumerate(masks):
        colour = np.array(colour_of(number), np.uint8)
        picture[mask] = (0.55 * picture[mask] + 0.45 * colour).astype(np.uint8)
        inside = mask.copy()
        inside[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        picture[mask & ~inside] = colour
    return picture


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (40, 60)])
def test_masks_are_mixed_in_and_outlined(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    before = image.copy()
    masks = [np.ones(size, bool), np.zeros(size, bool), rng.random(size) < 0.6]
    corner = np.zeros(size, bool)
    corner[: size[0] // 2 + 1, size[1] // 3 :] = True
    masks.append(corner)
    assert np.array_equal(np.asarray(draw_overlay(image, masks)), drawn_plainly(image, masks))
    assert np.array_equal(image, before)


def test_many_boxes_on_a_large_picture_take_no_more_memory_than_a_few(bundle, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
    image.flags.writeable = False
    segmenter = Segmenter(bundle)
    segmenter.set_image(image)
    boxes = [(25 * i, 15 * i, 750 + 25 * i, 450 + 15 * i) for i in range(20)]

    def peak(count):
        tracemalloc.start()
        try:
            found = find_objects(segmenter, [], boxes[:count])
            write_all(tmp_path, Results("image", image, found, segmenter.manifest))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(2), peak(20)
    assert few > image.shape[0] * image.shape[1]  # a mask at least: it is measured
    assert many - few < image.shape[0] * image.shape[1]


@pytest.mark.parametrize(
    ("shape", "masks", "error", "message"),
    [
        ((4, 5), [], ImageError, r"\[H, W, 3\]"),
        ((4, 5, 4), [], ImageError, r"\[H, W, 3\]"),
        (
            (4, 5, 3),
            [np.ones((4, 4), bool)],
            MaskError,
            r"bool arrays \[4, 5\].* not bool \[4, 4\]",
        ),
        ((4, 5, 3), np.ones((4, 5), bool), MaskError, r"not bool \[5\]"),
        ((4, 5, 3), [np.ones((4, 5))], MaskError, "not float64"),
    ],
)
def test_what_cannot_be_drawn(shape, masks, error, message):
    with pytest.raises(error, match=message):
        draw_overlay(np.zeros(shape, np.uint8), masks)
