import json
import os

import numpy as np
import pytest
from hypothesis import example, given, settings
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


def apply_coords(points, size, image_size):
    """``ResizeLongestSide.apply_coords`` of the reference, restated; but no side is ever 0."""
    scale = image_size / max(size)
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    points = np.array(points, np.float64)
    points[..., 0] *= width / size[1]
    points[..., 1] *= height / size[0]
    return points.astype(np.float32)


@pytest.mark.parametrize("size", [(300, 450), (451, 300), (1, 1), (3000, 7), (2, 9999), (1024, 1024)])
@pytest.mark.parametrize("image_size", [256, 1024])
def test_coordinates_are_those_of_the_reference(size, image_size):
    height, width = size
    rng = np.random.default_rng(0)
    points = rng.integers(0, (4 * width + 1, 4 * height + 1), (3, 50, 2)) / 4
    boxes = np.concatenate((points.min(axis=1), points.max(axis=1)), axis=1)
    coords, labels = assemble(points, np.ones((3, 50)), boxes, size, image_size)
    assert coords.shape == (3, 52, 2)
    assert np.array_equal(coords[:, :50], apply_coords(points, size, image_size))
    assert np.array_equal(coords[:, 50:], apply_coords(boxes.reshape(3, 2, 2), size, image_size))
    assert (labels == [1] * 50 + [2, 3]).all()


def test_coordinates_keep_the_precision_of_the_reference():
    points = np.random.default_rng(0).random((1, 1000, 2)) * (450, 300)
    coords, _ = assemble(points, np.ones((1, 1000)), None, SIZE, 1024)
    assert np.array_equal(coords[:, :-1], apply_coords(points, SIZE, 1024))


@pytest.mark.parametrize("boxes", [None, [[1, 2, 3, 4], [5, 6, 7, 8]]])
@pytest.mark.parametrize("count", [None, 0, 1, 5])
def test_shapes_and_order_of_a_batch(count, boxes):
    points = None if count is None else np.arange(count * 4).reshape(2, count, 2)
    kinds = None if count is None else np.arange(count * 2).reshape(2, count) % 2
    coords, labels = assemble(points, kinds, boxes, SIZE, 450, batch=2)
    wanted = [] if points is None else [points]
    if boxes is not None:
        wanted.append(np.reshape(boxes, (2, 2, 2)))
    elif points is not None:
        wanted.append(np.zeros((2, 1, 2)))
    assert coords.dtype == labels.dtype == np.float32
    assert labels.shape == coords.shape[:2]
    assert np.array_equal(coords, np.concatenate([np.zeros((2, 0, 2)), *wanted], axis=1))
    tail = [2, 3] if boxes is not None else [-1] * (count is not None)
    assert labels.tolist() == [[*([] if kinds is None else kinds[i].tolist()), *tail] for i in (0, 1)]


@pytest.mark.parametrize("point", [(0, 0), (450, 0), (0, 300), (450, 300)])
def test_the_edges_belong_to_the_image(point):
    coords, _ = assemble([[point]], [[1]], [[*point, *point]], SIZE, 450)
    assert coords.tolist() == [[list(point)] * 3]


@pytest.mark.parametrize("label", [-1, 0, 1, 2, 3])
def test_every_label_is_passed_on(label):
    assert assemble([[[5, 5]]], [[label]], None, SIZE, 450)[1].tolist() == [[label, -1]]


def test_prompts_are_left_as_they_were():
    points, kinds, box = np.ones((1, 1, 2), np.float32), np.ones((1, 1)), np.ones((1, 4), np.float32)
    assemble(points, kinds, box, SIZE, 1024)
    assert (points == 1).all()
    assert (kinds == 1).all()
    assert (box == 1).all()


@pytest.mark.parametrize("point", [(-1e30, 1e30), (3e38, -3e38)])
def test_a_padding_point_far_away_stays_finite(point):
    coords, labels = assemble([[point, (1, 1)]], [[-1, 1]], None, SIZE, 1024)
    assert np.isfinite(coords).all()
    assert labels.tolist() == [[-1, 1, -1]]


@pytest.mark.parametrize(
    "arguments",
    [
        ([[[1e300, 1]]], [[1]], None),
        ([[[10**400, 1]]], [[1]], None),
        ([[[1, 1]]], [[1e300]], None),
        (None, None, [[1, 1, 10**400, 2]]),
        (None, None, np.array([[1, 1, 2 + 2j, 2]])),
    ],
    ids=["points", "integers", "labels", "boxes", "complex"],
)
def test_numbers_that_float32_does_not_hold(arguments):
    with pytest.raises(PromptError):
        assemble(*arguments, SIZE, 1024)


@pytest.mark.parametrize(
    "arguments",
    [(3, 1, None), ([[[1, 1]]], 1, None), (None, None, 5)],
    ids=["points", "labels", "boxes"],
)
def test_single_numbers_are_no_prompt(arguments):
    with pytest.raises(PromptError):
        assemble(*arguments, SIZE, 1024)


def test_a_single_number_is_no_mask_input():
    with pytest.raises(PromptError, match="mask_input"):
        check_mask_input(1.0, None, 64)


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
        (
            None,
            None,
            [[5, 301, 9, 400]],
            None,
            r"box \(5, 301, 9, 400\) lies outside the image of 450x300",
        ),
        (None, None, [[1, 1, 2, 2], [-9, 5, -1, 9]], None, r"box \(-9, 5, -1, 9\) lies outside"),
        (None, None, [[451, 5, 500, 9]], None, "outside"),
        (None, None, [[5, -3, 9, -1]], None, "outside"),
        (None, None, [[[5, 5, 9, 9], [5, 5, 9, 9]]], None, "box must have the shape"),
        (None, None, [[[5, 5, 9, 9]], [5, 5]], None, "box is not an array of numbers"),
        (None, None, [5, 5, 9, 9], None, "box"),
        ([[[1, 1]]], [[1]], [[1, 1, 2, 2]] * 2, None, "box must hold 1 prompts"),
        ([[[1, 1]]], [[1]], None, 2, "point_coords must hold 2 prompts"),
        (None, None, [[1, 1, 2, 2]], 3, "box must hold 3 prompts"),
        (None, None, [[5, 5, float("nan"), 9]], None, "box contains NaN"),
        (None, None, [[5, 5, 9]], None, r"box must have the shape \[4\] for each prompt, not \[3\]"),
        (None, None, [["a", 5, 9, 9]], None, "box is not an array of numbers"),
        (None, None, [[1, 1, 2, 2], [5, 5, 4, 9]], None, "x0 <= x1"),
        ([[[1, 1], [460, 1]]], [[-1, 1]], None, None, r"point \(460, 1\)"),
        ([[[1, float("nan")]]], [[-1]], None, None, "point_coords contains NaN"),
        ([[[1, 1]]], [[1.5]], None, None, r"point_labels contains 1\.5; known are"),
        ([[[1, 1]]], [[4]], None, None, "contains 4"),
        ([[[1, 1]]], [[-2]], None, None, "contains -2"),
        ([[[1, 1]]], [["x"]], None, None, "point_labels is not an array"),
        ([[[1, 1]]] * 2, [[1]], None, None, "point_labels must hold 2 prompts, like the others, not 1"),
        ([[[1, 1]]], [1], None, None, "point_labels must have the shape"),
        ([[[1, 1]] * 3], [[1] * 2], None, None, r"point_labels must have the shape \[3\].*not \[2\]"),
        ([[[[1, 1]]]], [[1]], None, None, "point_coords must have the shape"),
        ([], [], None, None, "point_coords must have the shape"),
        ([[[None, 1]]], [[1]], None, None, "point_coords"),
        ({"x": 1}, [[1]], None, None, "point_coords is not an array"),
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
@given(hnp.arrays(np.float64, (2, 4), elements=st.floats(-5, 500, width=32)))
def test_any_boxes_are_either_used_or_refused(boxes):
    corners = boxes.reshape(2, 2, 2)
    inside = ((corners[:, 0] <= (450, 300)) & (corners[:, 1] >= 0)).all()
    good = inside and (corners[:, 0] <= corners[:, 1]).all()
    try:
        coords, _ = assemble(None, None, boxes, SIZE, 450)
    except PromptError:
        assert not good
    else:
        assert good
        assert np.array_equal(coords, corners.clip(0, (450, 300)).astype(np.float32))


BREAKS = {
    "nan": lambda p, n, b, size: p.__setitem__((0, 0, 0), np.nan),
    "infinite": lambda p, n, b, size: p.__setitem__((-1, -1, 1), np.inf),
    "left": lambda p, n, b, size: p.__setitem__((0, -1, 0), -1),
    "above": lambda p, n, b, size: p.__setitem__((-1, 0, 1), -0.25),
    "right": lambda p, n, b, size: p.__setitem__((-1, 0, 0), size[1] + 1),
    "below": lambda p, n, b, size: p.__setitem__((0, -1, 1), size[0] + 1),
    "label": lambda p, n, b, size: n.__setitem__((0, 0), 4),
    "nan label": lambda p, n, b, size: n.__setitem__((0, 0), np.nan),
    "reversed": lambda p, n, b, size: b.__setitem__((0, 0), b[0, 2] + 0.5),
    "box right": lambda p, n, b, size: b.__setitem__((-1, [0, 2]), size[1] + 1),
    "box above": lambda p, n, b, size: b.__setitem__((-1, [1, 3]), -1),
    "box nan": lambda p, n, b, size: b.__setitem__((0, 1), np.nan),
}


@st.composite
def prompts(draw):
    """Points, labels and boxes that lie in the image, and its (height, width)."""
    size = draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    part = st.floats(0, 1)
    points = draw(hnp.arrays(np.float64, (batch, count, 2), elements=part)) * size[::-1]
    labels = draw(hnp.arrays(np.float64, (batch, count), elements=st.sampled_from([0, 1, 2, 3])))
    corners = draw(hnp.arrays(np.float64, (batch, 2, 2), elements=part)) * size[::-1]
    return points, labels, np.sort(corners, axis=1).reshape(batch, 4), size


@settings(max_examples=150, deadline=None)
@given(prompts(), st.sampled_from([64, 256, 1024]), st.booleans(), st.booleans())
def test_good_prompts_are_used(good, image_size, with_points, with_boxes):
    points, labels, boxes, size = good
    if not with_points:
        points = labels = None
    coords, kinds = assemble(points, labels, boxes if with_boxes else None, size, image_size)
    assert kinds.shape == coords.shape[:2]
    assert np.isfinite(coords).all()
    assert ((coords >= 0) & (coords <= image_size)).all()


@settings(max_examples=150, deadline=None)
@given(prompts(), st.sampled_from(sorted(BREAKS)))
def test_one_wrong_value_is_enough(good, broken):
    points, labels, boxes, size = good
    assemble(points, labels, boxes, size, 256)
    BREAKS[broken](points, labels, boxes, size)
    with pytest.raises(PromptError):
        assemble(points, labels, boxes, size, 256)


@settings(max_examples=60, deadline=None)
@given(prompts(), st.sampled_from(["points", "labels", "boxes", "batch", "no labels", "columns"]))
def test_parts_that_do_not_fit_together(good, broken):
    points, labels, boxes, size = good
    batch = len(points) + 1 if broken == "batch" else None
    points = np.concatenate((points, points[:1])) if broken == "points" else points
    points = np.concatenate((points, points), axis=2) if broken == "columns" else points
    labels = labels[:, 1:] if broken == "labels" else labels
    labels = None if broken == "no labels" else labels
    boxes = np.concatenate((boxes, boxes[:1])) if broken == "boxes" else boxes
    with pytest.raises(PromptError):
        assemble(points, labels, boxes, size, 256, batch)


def test_mask_inputs():
    mask = np.zeros((2, 1, 64, 64))
    assert check_mask_input(mask, None, 64).dtype == np.float32
    for bad in (mask[0], mask[..., :10], np.zeros((2, 3, 64, 64)), mask * np.nan):
        with pytest.raises(PromptError, match="mask_input"):
            check_mask_input(bad, None, 64)
    with pytest.raises(PromptError, match="mask_input must hold 3 prompts, like the others, not 2"):
        check_mask_input(mask, 3, 64)
    with pytest.raises(PromptError, match="mask_input is not an array of numbers"):
        check_mask_input("logits", None, 64)

    class Odd:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("a tensor with a gradient")

    with pytest.raises(PromptError, match="not an array of numbers: a tensor with a gradient"):
        check_mask_input(Odd(), None, 64)


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
        [{"type": "rectangle", "data": [1, 2, 3, 4, 5]}],
        [{"type": "rectangle", "data": [1, 2, 3, "x"]}],
        [{"type": "rectangle"}],
        [{"type": "rectangle", "data": [1, 2, 3, [4]]}],
        [{"data": [1, 2], "label": 1}],
        [{"type": ["point"], "data": [1, 2], "label": 1}],
        [{"type": "point", "data": [1, 2, 3], "label": 1}],
        [{"type": "point", "data": [1, 2], "label": "front"}],
        [{"type": "point", "data": [1, 2], "label": float("nan")}],
        '"point"',
        "null",
        "",
        "\ufeff[]",
    ],
)
def test_a_bad_prompt_file_is_named(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PromptError, match=r"prompts\.json"):
        read_prompt_file(path)


def test_the_bad_prompt_of_a_file_is_numbered(tmp_path):
    path = tmp_path / "prompts.json"
    good = {"type": "point", "data": [1, 2], "label": 1}
    path.write_text(json.dumps([good, good, {"type": "circle", "data": [1, 2, 3]}]))
    with pytest.raises(PromptError, match=r"prompts\.json: prompt 2: unknown type 'circle'"):
        read_prompt_file(path)
    path.write_text(json.dumps([good, {"type": "point", "data": [1, 2]}]))
    with pytest.raises(PromptError, match=r'prompt 1: wants .*"label".* got \{"type": "point"'):
        read_prompt_file(path)


@pytest.mark.parametrize(
    "content",
    [
        '[{"type": "point", "data": [1, 2], "label": Infinity}]',
        '[{"type": "point", "data": [1, 2], "label": 1e999}]',
        '[{"type": "point", "data": [1%s, 2], "label": 1}]' % ("0" * 400),
        "[" * 100_000,
    ],
    ids=["infinity", "1e999", "1 and 400 zeros", "nesting"],
)
def test_a_prompt_file_beyond_pythons_limits(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(PromptError, match=r"prompts\.json"):
        read_prompt_file(path)


@pytest.mark.parametrize(
    "prompt",
    [
        {"type": "point", "data": "12", "label": 1},
        {"type": "point", "data": {"1": 0, "2": 0}, "label": 1},
        {"type": "point", "data": [1, 2], "label": 1.7},
    ],
    ids=["text", "object", "half a label"],
)
def test_a_prompt_file_is_not_guessed_at(tmp_path, prompt):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([prompt]))
    with pytest.raises(PromptError, match=r"prompts\.json: prompt 0"):
        read_prompt_file(path)


numbers = st.integers(-(10**6), 10**6) | st.floats(allow_nan=True, allow_infinity=True)
anything = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.lists(numbers, max_size=5)
entries = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["point", "rectangle", "circle"]) | anything,
        "data": st.lists(numbers, min_size=2, max_size=4) | anything,
        "label": st.sampled_from([0, 1]) | anything,
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(entries | anything, max_size=3) | anything)
@example([{"type": "point", "data": [1, 2], "label": float("inf")}])
def test_any_prompt_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        points, boxes = read_prompt_file(path)
    except PromptError:
        return
    assert len(points) + len(boxes) == len(content)
    assert all(len(point) == 3 for point in points)
    assert all(len(box) == 4 for box in boxes)


def test_a_prompt_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PromptError, match=str(path)):
            read_prompt_file(path)
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(PromptError, match=r"latin\.json"):
        read_prompt_file(tmp_path / "latin.json")


def test_a_box_with_an_axis_more_and_a_box_that_leaves_the_image():
    """As public notebooks pass boxes, and as detectors return them."""
    wanted, _ = assemble(None, None, [[0, 10, 128, 80]], SIZE, 450)
    for boxes in ([[-0.4, 10, 128, 80]], np.array([[[0, 10, 128, 80]]]), [[[-7, 10, 128, 80]]]):
        assert np.array_equal(assemble(None, None, boxes, SIZE, 450)[0], wanted)
    whole, _ = assemble(None, None, [[-50, -1, 9999, 301.5]], SIZE, 450)
    assert whole.tolist() == [[[0, 0], [450, 300]]]


@pytest.mark.parametrize("box", [(0.2, 0.1, 0.8, 0.9), (200, 30, 200, 40)])
def test_a_box_in_fractions_of_the_image_is_said(box):
    with pytest.warns(UserWarning, match="boxes are in pixels"):
        assemble(None, None, [box], SIZE, 450)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_no_prompt_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(PromptError, match=r"pipe\.json: "):
        read_prompt_file(tmp_path / "pipe.json")
