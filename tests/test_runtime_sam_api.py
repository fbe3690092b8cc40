"""segment-anything's names over a bundle."""

import numpy as np
import pytest
from conftest import import_mobile_sam

import pocketsam
from pocketsam.errors import PromptError, UsageError
from pocketsam.runtime.sam_api.predictor import (
    ResizeLongestSide,
    SamAutomaticMaskGenerator,
    SamPredictor,
)

BOXES = np.array([[50, 40, 300, 250], [0, 0, 99, 99]])


@pytest.fixture(scope="module")
def predictor(bundle, photo):
    made = SamPredictor(bundle)
    made.set_image(photo)
    return made


def test_public_names():
    assert pocketsam.SamPredictor is SamPredictor
    assert pocketsam.SamAutomaticMaskGenerator is SamAutomaticMaskGenerator
    assert issubclass(SamAutomaticMaskGenerator, pocketsam.MaskGenerator)


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (33, 47), (1500, 200)])
def test_coordinates_are_scaled_as_the_reference_does(size):
    import_mobile_sam()
    from mobile_sam.utils.transforms import ResizeLongestSide as Theirs

    ours, theirs, rng = ResizeLongestSide(1024), Theirs(1024), np.random.default_rng(size[0])
    points = rng.uniform(0, 200, (4, 3, 2))
    assert np.allclose(ours.apply_coords(points, size), theirs.apply_coords(points, size))
    assert np.allclose(ours.apply_boxes(BOXES, size), theirs.apply_boxes(BOXES, size))
    image = rng.integers(0, 255, (*size, 3), np.uint8)
    assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))


def test_predict_torch_is_predict_batch_on_the_canvas(predictor):
    size, transform = predictor.original_size, predictor.transform
    points, labels = np.array([[[200, 150]], [[20, 30]]]), np.ones((2, 1))
    for given, wanted in (
        (
            (transform.apply_coords_torch(points, size), labels),
            predictor.predict_batch(points, labels),
        ),
        (
            (None, None, transform.apply_boxes_torch(BOXES, size)),
            predictor.predict_batch(boxes=BOXES),
        ),
    ):
        for found, array in zip(predictor.predict_torch(*given), wanted, strict=True):
            assert np.allclose(found, array, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [1, 2, 3]}, r"boxes must be \[\?, 4\], not \[3\]"),
        ({"boxes": np.zeros((1, 8))}, r"boxes must be \[\?, 4\], not \[1, 8\]"),
        ({"boxes": "text"}, r"boxes must be an array of numbers \[\?, 4\]"),
        (
            {"point_coords": [[[1, 2]], [[3]]]},
            r"point_coords must be an array of numbers \[\?, \?, 2\]",
        ),
        ({"point_coords": [[1, 2]]}, r"point_coords must be \[\?, \?, 2\], not \[1, 2\]"),
    ],
)
def test_prompts_of_the_wrong_shape(predictor, given, message):
    with pytest.raises(PromptError, match=message):
        predictor.predict_torch(**{"point_coords": None, "point_labels": [[1]]} | given)


def test_the_other_names(predictor):
    assert predictor.to("cpu") is predictor
    assert predictor.device == "cpu"
    assert max(predictor.input_size) == predictor.image_size
    assert np.array_equal(predictor.features, predictor.get_image_embedding())
    with pytest.raises(UsageError, match=r'open it there, .*providers=\["cuda", "cpu"\]'):
        predictor.to("cuda:0")
    for generator in (
        SamAutomaticMaskGenerator(predictor, points_per_side=4),
        SamAutomaticMaskGenerator(model=predictor, points_per_side=4),
    ):
        assert generator.parameters.points_per_side == 4
        assert generator.segmenter is predictor
