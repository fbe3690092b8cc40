import numpy as np
import pytest

from pocketsam.models.training.scenes import MIN_AREA, generate
from pocketsam.models.training.textures import HELD_OUT, TRAINING, load_textures


@pytest.fixture(scope="module")
def textures():
    return load_textures()


def test_textures_are_pictures_and_evaluation_has_its_own(textures):
    assert not set(TRAINING) & set(HELD_OUT)
    for image in [*textures, *load_textures(HELD_OUT)]:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


def test_the_same_seed_gives_the_same_scene(textures):
    one, two, other = (generate(seed, 96, textures) for seed in (3, 3, 4))
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.masks, two.masks)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("size", [64, 256])
def test_scenes_hold_what_they_promise(textures, size):
    counts = []
    for seed in range(12):
        scene = generate(seed, size, textures)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape[1:] == (size, size)
        assert scene.masks.dtype == bool
        assert (scene.masks.sum(axis=(1, 2)) >= MIN_AREA * size * size).all()
        counts.append(len(scene.masks))
    assert min(counts) >= 1
    assert np.mean(counts) > 3


def test_masks_either_nest_or_exclude_each_other_mostly(textures):
    """Objects hide each other; only parts lie inside objects."""
    crossing = total = 0
    for seed in range(20):
        masks = generate(seed, 128, textures).masks
        for i, one in enumerate(masks):
            for other in masks[i + 1 :]:
                common = (one & other).sum()
                total += 1
                crossing += 0 < common < min(one.sum(), other.sum())
    assert crossing < 0.02 * total


def test_masks_show_in_the_image(textures):
    """Along a mask's edge the picture changes more than elsewhere: painting and masks are in step."""
    at_edge, elsewhere = [], []
    for seed in range(10):
        scene = generate(seed, 128, textures)
        change = np.abs(np.diff(scene.image.astype(float), axis=1)).sum(axis=2)
        edge = (scene.masks[:, :, 1:] != scene.masks[:, :, :-1]).any(axis=0)
        if edge.any():
            at_edge.append(change[edge].mean())
            elsewhere.append(change[~edge].mean())
    assert np.mean(at_edge) > 1.5 * np.mean(elsewhere)


def test_scenes_without_photographs():
    assert generate(0, 64, []).image.std() > 5
