"""Segment everything: held against the reference's generator on the same weights."""

import dataclasses
import inspect
import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data

from pocketsam.errors import ImageError, PromptError
from pocketsam.runtime import MaskGenerator, Segmenter
from pocketsam.runtime.everything import generator as generator_module
from pocketsam.runtime.everything.candidates import _grown, is_suppressed
from pocketsam.runtime.everything.components import remove_small_regions
from pocketsam.runtime.everything.grid import (
    ParameterOptions,
    Parameters,
    coarse_to_fine,
    crop_boxes,
    point_grid,
)
from pocketsam.runtime.rle import from_rle, from_run_lengths, run_lengths
from pocketsam.runtime.upscale import Upscaler
from pocketsam.runtime.verification.metrics import mask_ious
from pocketsam.thresholds import Thresholds

LOOSE = {"pred_iou_thresh": 0.15, "stability_score_thresh": 0.5, "points_per_side": 5}
"""So that a few clicks find many masks."""


def plain_nms(
    boxes: torch.Tensor, scores: torch.Tensor, _groups: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """torchvision's ``batched_nms`` of one group, whose compiled part is not in this environment."""
    kept: list[int] = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        x0, y0, x1, y1 = boxes[index]
        for other in kept:
            width = min(x1, boxes[other, 2]) - max(x0, boxes[other, 0])
            height = min(y1, boxes[other, 3]) - max(y0, boxes[other, 1])
            common = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[index], boxes[other])]
            if common / (areas[0] + areas[1] - common) > iou_threshold:
                break
        else:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def regions(mask: np.ndarray, _connectivity: int) -> tuple:
    """What the reference asks of OpenCV, by scipy."""
    labels, count = ndimage.label(mask, np.ones((3, 3), int))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return count + 1, labels, areas[:, None], None


@pytest.fixture(scope="module")
def generator(model, mobile_sam):
    """The reference's generator on those weights, by its parameters."""
    network = mobile_sam.sam_model_registry["vit_t"]()
    network.load_state_dict(model.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobile_sam.automatic_mask_generator.batched_nms", plain_nms)
        patch.setitem(sys.modules, "cv2", types.SimpleNamespace(connectedComponentsWithStats=regions))
        yield lambda **parameters: mobile_sam.SamAutomaticMaskGenerator(network.eval(), **parameters)


@pytest.fixture(scope="module")
def segmenter(trained_bundle):
    """Our own weights at a small canvas."""
    return Segmenter(trained_bundle)


@pytest.fixture(scope="module")
def large(full_bundle):
    """At the reference's."""
    return Segmenter(full_bundle)


def compare(found, wanted, masks=from_rle):
    """Equal records, in the same order; a pixel may differ where a logit is within rounding of 0."""
    assert len(found) == len(wanted)
    exact = 0
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("predicted_iou", "stability_score"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-3)
        assert ours["crop_box"] == theirs["crop_box"]
        assert ours["point_coords"][0] == pytest.approx(theirs["point_coords"][0])
        assert np.abs(np.subtract(ours["bbox"], theirs["bbox"])).max() <= 1
        exact += ours["segmentation"] == theirs["segmentation"]
        first, second = masks(ours["segmentation"]), masks(theirs["segmentation"])
        assert np.count_nonzero(first != second) <= max(2, 1e-4 * first.size)
        assert ours["area"] == np.count_nonzero(first)
    return exact


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}, marks=pytest.mark.slow),
        pytest.param({"min_mask_region_area": 200}, marks=pytest.mark.slow),
        pytest.param(
            {"points_per_batch": 5, "box_nms_thresh": 0.6, "pred_iou_thresh": 0.1},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["grid", "crops", "regions", "thresholds"],
)
def test_the_references_masks(more, generator, large, photo):
    parameters = LOOSE | more | {"output_mode": "coco_rle"}
    wanted = generator(**parameters).generate(photo)
    assert len(wanted) > 3, "nothing to compare"
    exact = compare(MaskGenerator(large, **parameters).generate(photo), wanted)
    assert exact >= 0.9 * len(wanted)


def test_output_modes(segmenter, photo):
    modes = ("binary_mask", "uncompressed_rle", "coco_rle")
    arrays, lengths, codes = (
        MaskGenerator(segmenter, output_mode=m, **LOOSE).generate(photo) for m in modes
    )
    assert len(arrays) > 3
    for array, length, code in zip(arrays, lengths, codes, strict=True):
        mask = array["segmentation"]
        assert (mask.shape, mask.dtype) == (photo.shape[:2], bool)
        runs = length["segmentation"]
        assert np.array_equal(from_run_lengths(runs["counts"], tuple(runs["size"])), mask)
        assert np.array_equal(from_rle(code["segmentation"]), mask)


def test_a_full_pool_changes_nothing(segmenter, photo, monkeypatch):
    wanted = MaskGenerator(segmenter, output_mode="coco_rle", **LOOSE).generate(photo)
    monkeypatch.setattr("pocketsam.runtime.everything.search.POOL_BYTES", 0)
    assert MaskGenerator(segmenter, output_mode="coco_rle", **LOOSE).generate(photo) == wanted


@pytest.mark.slow
def test_adaptive_clicks_less_and_finds_nearly_the_same(segmenter, monkeypatch):
    photo = data.astronaut()
    clicks = []
    original = segmenter.predict_above

    def counting(points, labels, min_score):
        clicks.extend(map(tuple, np.reshape(points, (-1, 2))))
        return original(points, labels, min_score)

    monkeypatch.setattr(segmenter, "predict_above", counting)
    parameters = {"points_per_side": 24, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.7}
    wanted = MaskGenerator(segmenter, **parameters).generate(photo)
    assert len(wanted) > 20
    assert len(clicks) == 24**2
    clicks.clear()
    found = MaskGenerator(segmenter, order="adaptive", **parameters).generate(photo)
    assert len(clicks) == len(set(clicks)) <= 0.9 * 24**2
    ious = [
        max(mask_ious(mask["segmentation"], other["segmentation"]) for other in found)
        for mask in wanted
    ]
    assert np.mean(np.array(ious) >= 0.9) >= 0.9


def test_adaptive_order_clicks_coarse_to_fine_and_beside_masks(segmenter, photo, monkeypatch):
    """On a grid of 8 x 8: the 16 clicks of its coarse lattice first, no click twice, and each neighbour
    of a click whose mask is kept."""
    clicks, original = [], segmenter.predict_above

    def recorded(points, labels, min_score):
        clicks.extend(map(tuple, points[:, 0]))
        return original(points, labels, min_score)

    monkeypatch.setattr(segmenter, "predict_above", recorded)
    parameters = LOOSE | {"points_per_side": 8, "points_per_batch": 4, "output_mode": "coco_rle"}
    found = MaskGenerator(segmenter, order="adaptive", **parameters).generate(photo)
    places = np.array(clicks) / (photo.shape[1], photo.shape[0]) * 8 - 0.5
    cells = [tuple(cell) for cell in places.round().astype(int).tolist()]
    assert np.abs(places - cells).max() < 1e-6
    assert len(set(cells)) == len(cells) <= 64
    assert set(cells[:16]) == {(x, y) for x in range(1, 8, 2) for y in range(1, 8, 2)}
    assert found
    for record in found:
        x, y = (np.array(record["point_coords"][0]) / (photo.shape[1], photo.shape[0]) * 8).astype(int)
        around = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
        assert {cell for cell in around if max(cell) < 8 and min(cell) >= 0} <= set(cells)


def test_a_time_budget_that_ends_midway(segmenter, photo, monkeypatch):
    """After 12 of 25 clicks: their masks, and no further click."""
    now = [0.0]
    monkeypatch.setattr(generator_module.time, "monotonic", lambda: now[0])
    done = []

    def progress(made, _total):
        done.append(made)
        now[0] = made

    options = LOOSE | {"points_per_batch": 4, "time_budget": 10, "output_mode": "coco_rle"}
    found = MaskGenerator(segmenter, **options).generate(photo, progress=progress)
    assert done == [4, 8, 12, 25]
    assert found
    assert len({tuple(record["point_coords"][0]) for record in found}) <= 12


def test_clicks_of_ones_own_in_adaptive_order(segmenter, photo):
    """They are no lattice, so there are no levels and no neighbours."""
    grid = np.random.default_rng(0).random((16, 2))
    parameters = LOOSE | {"points_per_side": None, "point_grids": [grid], "output_mode": "coco_rle"}
    found = MaskGenerator(segmenter, order="adaptive", **parameters).generate(photo)
    assert found
    assert found == MaskGenerator(segmenter, **parameters).generate(photo)


@pytest.mark.parametrize("min_score", [-np.inf, 0.3, 0.6, 2])
@pytest.mark.parametrize("is_split", [True, False])
def test_masks_of_promising_clicks_only(segmenter, photo, min_score, is_split, monkeypatch):
    """The split decoder answers as the whole one does."""
    if is_split:
        assert segmenter._split_decoder()
    else:  # as for a bundle without the tensors to split at
        monkeypatch.setattr(segmenter, "_split_decoder", lambda: None)
    segmenter.set_image(photo)
    points = point_grid(4)[:, None] * photo.shape[1::-1]
    labels = np.ones((16, 1))
    wanted = segmenter.predict_low_res(points, labels)
    scores, kept, low_res = segmenter.predict_above(points, labels, min_score)
    np.testing.assert_allclose(scores, wanted[0], atol=1e-6)
    assert list(kept) == [n for n, row in enumerate(wanted[0]) if row.max() > min_score]
    assert len(kept) == {-np.inf: 16, 2: 0}.get(min_score, len(kept))
    np.testing.assert_allclose(low_res, wanted[1][kept], atol=1e-4)


def test_the_best_score_may_be_negative(segmenter, photo, monkeypatch):
    above = segmenter.predict_above

    def lower(*arguments):
        scores, *rest = above(*arguments)
        return scores - 5, *rest

    monkeypatch.setattr(segmenter, "predict_above", lower)
    keep_all = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "points_per_batch": 1}
    generator = MaskGenerator(segmenter, points_per_side=2, **keep_all)
    records = generator.generate(photo)
    assert -5 < max(one["predicted_iou"] for one in records) <= generator.best_score < 0


def test_a_time_budget(segmenter, photo):
    assert MaskGenerator(segmenter, time_budget=0).generate(photo) == []
    some = MaskGenerator(segmenter, time_budget=1e-9, **LOOSE).generate(photo)
    assert some == []  # it is over before the first click
    whole = MaskGenerator(segmenter, time_budget=3600, output_mode="coco_rle", **LOOSE).generate(photo)
    assert whole == MaskGenerator(segmenter, output_mode="coco_rle", **LOOSE).generate(photo)


def test_thresholds_are_the_bundles_unless_given(segmenter, monkeypatch):
    mine = dataclasses.replace(segmenter.manifest, thresholds=Thresholds(0.4, 0.7))
    monkeypatch.setattr(segmenter, "manifest", mine)
    found = MaskGenerator(segmenter).parameters
    assert (found.pred_iou_thresh, found.stability_score_thresh) == (0.4, 0.7)
    given = MaskGenerator(segmenter, pred_iou_thresh=0.6).parameters
    assert (given.pred_iou_thresh, given.stability_score_thresh) == (0.6, 0.7)


def test_the_best_score_of_a_search(segmenter, photo):
    generator = MaskGenerator(segmenter, **LOOSE | {"pred_iou_thresh": 1.0})
    assert generator.best_score is None
    assert generator.generate(photo) == []
    segmenter.set_image(photo)
    clicks = point_grid(5)[:, None] * photo.shape[1::-1]
    scores, _ = segmenter.predict_low_res(clicks, np.ones((25, 1)))
    assert generator.best_score == pytest.approx(float(scores.max()), abs=1e-6)
    best = MaskGenerator(segmenter, **LOOSE).generate(photo)[0]["predicted_iou"]
    assert best <= generator.best_score


def test_progress(segmenter, photo):
    calls = []
    generator = MaskGenerator(segmenter, points_per_batch=10, **LOOSE)
    generator.generate(photo, progress=lambda *counts: calls.append(counts))
    assert [done for done, _ in calls] == [10, 20, 25]
    assert {total for _, total in calls} == {25}


def test_a_single_pixel(segmenter):
    assert isinstance(MaskGenerator(segmenter, **LOOSE).generate(np.zeros((1, 1, 3), np.uint8)), list)


def test_an_image_smaller_than_its_crops(segmenter):
    with pytest.raises(ImageError, match="1x1 pixels is too small for 2 layers"):
        MaskGenerator(segmenter, crop_n_layers=2).generate(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points_per_side": 0}, "points_per_side must be a whole number from 1"),
        ({"points_per_side": 10_000}, "points_per_side must be a whole number from 1 to 256"),
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"points_per_side": 2.0}, "points_per_side must be a whole number"),
        ({"pred_iou_thresh": 1.5}, r"pred_iou_thresh must lie in 0\.\.1, not 1\.5"),
        ({"stability_score_thresh": -0.1}, "stability_score_thresh must lie"),
        ({"box_nms_thresh": math.nan}, "box_nms_thresh must lie"),
        ({"stability_score_offset": math.inf}, "stability_score_offset"),
        ({"output_mode": "png"}, "output_mode must be binary_mask"),
        ({"order": "random"}, "order must be grid, adaptive"),
        ({"time_budget": -1}, "time_budget must be seconds >= 0"),
        ({"time_budget": math.nan}, "time_budget must be seconds"),
        ({"time_budget": math.inf}, "time_budget must be seconds"),
        ({"points_per_side": None, "point_grids": [np.zeros((3, 3))]}, r"point_grids\[0\] must be"),
        ({"points_per_side": None, "point_grids": [np.full((1, 2), 2.0)]}, "must lie in 0..1"),
        ({"points_per_side": None, "point_grids": []}, "point_grids has 0 grids"),
        ({"crop_n_points_downscale_factor": 64, "crop_n_layers": 1}, "has no points"),
        *(
            ({name: value}, f"{name} must be a number, not")
            for name in ("pred_iou_thresh", "stability_score_offset", "box_nms_thresh", "time_budget")
            for value in ("x", [0.5], True, 1j, 10**400, np.array([0.1, 0.2]), np.array(0.5))
        ),
        *(({"points_per_side": value}, "points_per_side must be") for value in ("x", [2], True, 2**70)),
        *(({"order": value}, "order must be grid") for value in (None, [], np.zeros(2), 3)),
        *(
            ({"points_per_side": None, "point_grids": grids}, message)
            for grids, message in (
                ([[[0.1, 0.2], [0.3]]], r"point_grids\[0\] must be an array of numbers"),
                ([np.array([["a", "b"]])], r"point_grids\[0\] must be an array of numbers"),
                ([np.full((1, 2), 0.5j)], r"point_grids\[0\] must be an array of numbers"),
                ([None], r"point_grids\[0\] must be an array of numbers"),
                ([np.full((2, 2), np.nan)], "must lie in 0..1"),
                (5, "point_grids must be a list of grids"),
                (np.array(0.5), "point_grids must be a list of grids"),
                ("ab", "point_grids has 2 grids"),
                ({0: [[0.5, 0.5]]}, "point_grids must be a list of grids"),
            )
        ),
    ],
)
def test_wrong_parameters(wrong, message):
    with pytest.raises(PromptError, match=message):
        Parameters(**wrong)


def test_numbers_of_numpy_are_numbers():
    assert Parameters(pred_iou_thresh=np.float32(0.5), time_budget=np.int64(3)).pred_iou_thresh == 0.5
    assert type(Parameters(points_per_side=np.int64(2)).points_per_side) is int
    assert Parameters(points_per_side=None, point_grids=np.full((1, 1, 2), 0.5)).grids()[0].shape == (
        1,
        2,
    )


def test_a_misspelt_parameter_lists_the_valid_names(segmenter):
    with pytest.raises(
        PromptError, match=r"no parameter points_per_sides; known are .*points_per_side,"
    ):
        MaskGenerator(segmenter, points_per_sides=8)


def test_parameters_are_the_references_under_its_names_and_with_its_defaults(mobile_sam):
    ours = {field.name: field.default for field in dataclasses.fields(Parameters)}
    assert set(ours) == set(ParameterOptions.__annotations__)
    theirs = inspect.signature(mobile_sam.SamAutomaticMaskGenerator).parameters
    for name, parameter in theirs.items():
        if name != "model":
            assert ours.pop(name) == parameter.default, name
    assert set(ours) == {"order", "time_budget"}


def test_grids_and_crops_are_the_references(mobile_sam):
    from mobile_sam.utils import amg

    for side in (1, 2, 5, 32):
        assert np.array_equal(point_grid(side), amg.build_point_grid(side))
    for size in ((300, 451), (1000, 64), (7, 9)):
        boxes, layers = amg.generate_crop_boxes(size, 2, 512 / 1500)
        assert crop_boxes(size, 2, 512 / 1500) == list(zip(map(tuple, boxes), layers, strict=True))


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 32, 33])
def test_levels_hold_each_click_once(side):
    levels = coarse_to_fine(point_grid(side))
    assert sorted(np.concatenate(levels)) == list(range(side**2))
    assert all(len(level) for level in levels)


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("density", [0, 0.05, 0.4, 0.6, 0.95, 1])
def test_small_regions(mode, density):
    """Against scipy's labels."""
    rng = np.random.default_rng(3)
    structure = np.ones((3, 3), int)
    for size in ((1, 1), (1, 40), (37, 23), (64, 64)):
        mask = rng.random(size) < density
        found, changed = remove_small_regions(mask, 6, mode)
        labels, count = ndimage.label(mask ^ (mode == "holes"), structure)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        small = np.flatnonzero(sizes < 6) + 1
        if mode == "islands" and len(small) == count:
            assert found.sum() == (sizes.max() if count else 0)
        else:
            wanted = mask.copy()
            wanted[np.isin(labels, small)] = mode == "holes"
            assert np.array_equal(found, wanted)
        assert changed == (len(small) > 0)


@pytest.mark.parametrize("density", [0, 0.2, 0.5, 0.9, 1])
def test_run_lengths_of_a_part(density):
    rng = np.random.default_rng(0)
    for place, shape in (((0, 0), (9, 7)), ((2, 3), (4, 5)), ((3, 0), (9, 4)), ((0, 5), (4, 7))):
        part = rng.random(shape) < density
        whole = np.zeros((9, 7), bool)
        whole[place[1] : place[1] + shape[0], place[0] : place[0] + shape[1]] = part
        lengths = run_lengths(part, place, whole.shape)
        assert np.array_equal(lengths, run_lengths(whole))
        assert np.array_equal(from_run_lengths(lengths, whole.shape), whole)


SIZES = [(300, 451), (1, 1), (1, 500), (2000, 30), (64, 64), (1024, 1024)]


@pytest.mark.parametrize("size", SIZES)
def test_bounds_from_cells_hold(size):
    """The number of pixels over a threshold lies within the bounds that the cells give."""
    upscaler = Upscaler(256, size)
    rng = np.random.default_rng(1)
    for smooth in (1, 6):
        low = ndimage.gaussian_filter(rng.standard_normal((64, 64)), smooth).astype(np.float32)
        full = upscaler.logits(low)
        inside = low[: upscaler.used[0], : upscaler.used[1]] > 0
        assert upscaler.count(~_grown(~inside)) <= np.count_nonzero(full > 0)
        assert upscaler.count(_grown(inside)) >= np.count_nonzero(full > 0)


@pytest.mark.parametrize("size", SIZES)
def test_a_region_gives_the_pixels_that_depend_on_it_alone(size):
    upscaler = Upscaler(256, size)
    low = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    rows, columns = (slice(n // 6, max(n - n // 4, 1)) for n in upscaler.used)
    y, x, part = upscaler.region(low[rows, columns], rows.start, columns.start)
    assert part.size or size == (1, 1)
    full = upscaler.logits(low)
    pixels = slice(y, y + part.shape[0]), slice(x, x + part.shape[1])
    np.testing.assert_allclose(part, full[pixels], atol=1e-6)
    elsewhere = low + np.float32(1e4)
    elsewhere[rows, columns] = low[rows, columns]
    unchanged = np.abs(upscaler.logits(elsewhere) - full) < 1e-5
    assert unchanged[pixels].all()
    assert np.count_nonzero(unchanged) == part.size


def test_suppression():
    boxes = [(0, 0, 10, 10), (20, 20, 30, 30)]
    assert is_suppressed((0, 0, 10, 9), boxes, 0.7)
    assert not is_suppressed((0, 0, 10, 7), boxes, 0.7)  # exactly 0.7 stays
    assert is_suppressed((0, 0, 0, 0), [(5, 5, 5, 5), (0, 0, 0, 0)], 0.7)  # the reference keeps both
    assert not is_suppressed((0, 0, 0, 0), [(5, 5, 5, 5)], 0.7)


def test_a_picture_of_one_pixel_has_one_object_at_most(trained_bundle):
    loose = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "points_per_side": 3}
    found = MaskGenerator(trained_bundle, **loose).generate(np.zeros((1, 1, 3), np.uint8))
    assert len(found) <= 1
