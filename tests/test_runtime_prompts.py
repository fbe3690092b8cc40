import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pocketsam.errors import PromptError
from pocketsam.runtime.prompts import assemble, check_mask_input, read_prompt_file

SIZE = (300, 450)


def test_points_get_a_pad_and_the_scale_of_the_reference():
    coords, labels = assemble([[[9, 30], [450, 300]]], [[1, 0]], None, SIZE, 1024)
    assert coords.dtype == labels.dtype == np.float32
    scale = np.array([1024 / 450, 683 / 300])
    wanted = np.array([[np.array([9, 30]) * scale, np.array([450, 300]) * scale, [0, 0]]])
    assert np.array_equal(coords, wanted.astype(np.float32))
    assert labels.tolist() == [[1, 0, -1]]


def test_a_box_comes_after_the_points_and_takes_the_place_of_the_pad():
    coords, labels = assemble([[[9, 30]]], [[1]], [[0, 0, 450, 300]], SIZE, 450)
    assert coords.tolist() == [[[9, 30], [0, 0], [450, 300]]]
    assert labels.tolist() == [[1, 2, 3]]
    coords, labels = assemble(None, None, [[1, 2, 3, 4], [5, 6, 7, 8]], SIZE, 450)
    assert coords.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert labels.tolist() == [[2, 3], [2, 3]]


def test_no_prompt_is_a_prompt_of_no_points():
    coords, labels = assemble(None, None, None, SIZE, 1024)
    assert coords.shape == (1, 0, 2)
    assert labels.shape == (1, 0)
    assert assemble(None, None, None, SIZE, 1024, batch=5)[0].shape == (5, 0, 2)


def test_a_padding_point_may_lie_anywhere():
    coords, _ = assemble([[[-50, 9000], [1, 1]]], [[-1, 1]], None, SIZE, 1024)
    assert np.isfinite(coords).all()


@pytest.mark.parametrize(
    ("points", "labels", "boxes", "batch", "says"),
    [
        ([[[1, 1]]], None, None, None, "together"),
        (None, [[1]], None, None, "together"),
        ([[[1, 1]]], [[5]], None, None, "5"),
        ([[[1, 1]]], [[float("nan")]], None, None, "point_labels.*NaN"),
        ([[[1, 1]]], [[1, 1]], None, None, "point_labels"),
        ([[[1, 1]], [[1]]], [[1], [1]], None, None, "point_coords is not an array"),
        ([[1, 1]], [[1]], None, None, "point_coords"),
        ([[[1, 1, 1]]], [[1]], None, None, r"point_coords must have the shape \[any, 2\]"),
        ([[["a", "b"]]], [[1]], None, None, "numbers"),
        ([[[1, float("inf")]]], [[1]], None, None, "infinity"),
        ([[[-0.5, 1]]], [[1]], None, None, r"\(-0.5, 1\) lies outside the image of 450x300"),
        ([[[1, 300.5]]], [[1]], None, None, "outside"),
        ([[[1, -1]]], [[0]], None, None, "outside"),
        ([[[451, 1]]], [[2]], None, None, "outside"),
        (None, None, [[5, 5, 4, 9]], None, "x0 <= x1"),
        (None, None, [[5, 5, 9, 4]], None, "y0 <= y1"),
        (None, None, [[5, 5, 9, 301]], None, "box corner"),
        (None, None, [5, 5, 9, 9], None, "box"),
        ([[[1, 1]]], [[1]], [[1, 1, 2, 2]] * 2, None, "box must hold 1 prompts"),
        ([[[1, 1]]], [[1]], None, 2, "point_coords must hold 2 prompts"),
        (None, None, [[1, 1, 2, 2]], 3, "box must hold 3 prompts"),
    ],
)
def test_what_cannot_be_used_is_named(points, labels, boxes, batch, says):
    with pytest.raises(PromptError, match=says):
        assemble(points, labels, boxes, SIZE, 1024, batch)


coordinates = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(0, 4), st.just(2)),
    elements=st.floats(-10, 500, width=32) | st.just(np.float32("nan")),
)


@settings(max_examples=200, deadline=None)
@given(coordinates, st.data())
def test_any_points_are_either_used_or_refused(points, data):
    elements = st.sampled_from([-2, -1, 0, 1, 2, 3])
    labels = data.draw(hnp.arrays(np.float32, points.shape[:2], elements=elements))
    height, width = SIZE
    inside = ((points >= 0) & (points <= (width, height))).all(axis=-1)
    good = np.isfinite(points).all() and (labels != -2).all() and (inside | (labels == -1)).all()
    try:
        coords, kinds = assemble(points, labels, None, SIZE, 256)
    except PromptError:
        assert not good
    else:
        assert good
        assert coords.shape == (len(points), points.shape[1] + 1, 2)
        used = coords[kinds != -1]
        assert ((used >= 0) & (used <= 256)).all()


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, (2, 4), elements=st.floats(-5, 500)))
def test_any_boxes_are_either_used_or_refused(boxes):
    corners = boxes.astype(np.float32).reshape(2, 2, 2)
    inside = ((corners >= 0) & (corners <= (450, 300))).all()
    good = inside and (corners[:, 0] <= corners[:, 1]).all()
    try:
        assemble(None, None, boxes, SIZE, 256)
    except PromptError:
        assert not good
    else:
        assert good


def test_mask_inputs():
    mask = np.zeros((2, 1, 64, 64))
    assert check_mask_input(mask, None, 64).dtype == np.float32
    for bad in (mask[0], mask[..., :10], np.zeros((2, 3, 64, 64)), mask * np.nan):
        with pytest.raises(PromptError, match="mask_input"):
            check_mask_input(bad, None, 64)


def test_a_prompt_file(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(
        '[{"type":"point","data":[1,2.5],"label":0},{"type":"rectangle","data":[1,2,3,4]},'
        '{"type":"point","data":[5,6],"label":1}]'
    )
    assert read_prompt_file(path) == ([(1, 2.5, 0), (5, 6, 1)], [(1, 2, 3, 4)])


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "{}",
        "3",
        [3],
        [None],
        [{}],
        [{"type": "circle", "data": [1, 2]}],
        [{"type": "point", "data": [1, 2]}],
        [{"type": "point", "data": [1], "label": 1}],
        [{"type": "point", "data": ["a", 2], "label": 1}],
        [{"type": "point", "data": 5, "label": 1}],
        [{"type": "point", "data": [1, 2], "label": None}],
        [{"type": "rectangle", "data": [1, 2, 3]}],
    ],
)
def test_a_bad_prompt_file_is_named(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PromptError, match=r"prompts\.json"):
        read_prompt_file(path)


def test_a_prompt_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PromptError, match=str(path)):
            read_prompt_file(path)
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(PromptError, match=r"latin\.json"):
        read_prompt_file(tmp_path / "latin.json")
