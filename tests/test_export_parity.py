"""Parity must notice: each test damages something, and says where it should be found."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import SMALL
from onnx import numpy_helper

from pocketsam.errors import ParityError
from pocketsam.export.cases import PROMPTS, compute_cases
from pocketsam.export.options import Options
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.verification import parity
from pocketsam.export.verification.report import Report
from pocketsam.export.verification.tolerances import FP16, FP32
from pocketsam.models.sam import seeded
from pocketsam.runtime import contract as c
from pocketsam.runtime.verification.metrics import (
    agreements,
    mask_figures,
    score_figures,
    tensor_figures,
)
from pocketsam.runtime.verification.tolerance import QUANTITIES


@pytest.fixture(scope="module")
def network():
    return seeded(SMALL, seed=11)


@pytest.fixture(scope="module")
def files(bundle):
    return {name: (bundle / f"{name}.onnx").read_bytes() for name in ("encoder", "decoder")}


@pytest.fixture(scope="module")
def cases(network, photo):
    return compute_cases(network, [("cat", photo[::3, ::3])])


def verify(network, files, cases):
    intermediates = {
        name: traced.intermediates()
        for name, traced in to_onnx.traced_networks(network, Options()).items()
    }
    artefact = parity.Artefact(
        to_onnx.load(files["encoder"], "encoder"),
        to_onnx.load(files["decoder"], "decoder"),
        to_onnx.load(files["encoder"], "encoder", intermediates["encoder"]),
        to_onnx.load(files["decoder"], "decoder", intermediates["decoder"]),
        frozenset(intermediates["encoder"] + intermediates["decoder"]),
        to_onnx.runtime_name(),
        "fp32",
        FP32,
    )
    return parity.verify(cases, artefact)


def test_a_good_export_passes(network, files, cases):
    report = verify(network, files, cases)
    assert not report.failed
    report.raise_if_failed()
    assert report.cases == len(PROMPTS)
    names = [row.name for row in report.rows]
    assert names[0] == "encoder image_encoder.patch_embed"
    assert "encoder image_embeddings" in names
    assert names[-1] == "end to end masks"
    assert len(names) == 17 + 8 + 4  # the last attention and the upscaling have other forms
    json.dumps(report.to_json(), allow_nan=False)


def initializers_feeding(model, tensor):
    """Names of the weights of the node that computes ``tensor``, walking up to the nearest that has."""
    producers = {output: node for node in model.graph.node for output in node.output}
    weights = {w.name for w in model.graph.initializer if len(w.dims) > 1}
    queue = [tensor]
    while queue:
        node = producers[queue.pop(0)]
        own = [name for name in node.input if name in weights]
        if own:
            return own
        queue += [name for name in node.input if name in producers]
    raise AssertionError(f"no weights above {tensor}")


def damage(data, tensor, change):
    """The file with a weight just above ``tensor`` changed."""
    model = onnx.load_from_string(data)
    name = initializers_feeding(model, tensor)[0]
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), name))
    return model.SerializeToString()


def one_value(array):
    array.flat[0] += 0.5
    return array


def one_percent(array):
    return (array * 1.01).astype(array.dtype)


def reversed_order(array):
    return array[::-1]


@pytest.mark.parametrize(
    ("traced", "intermediate", "change"),
    [
        ("encoder", "image_encoder.patch_embed", one_percent),
        ("encoder", "image_encoder.layers.0.downsample", one_value),
        ("encoder", "image_encoder.layers.2.blocks.3", one_percent),
        ("encoder", c.IMAGE_EMBEDDINGS, one_value),
        ("decoder", "mask_decoder.transformer.layers.0.0", one_value),
        ("decoder", c.LOW_RES_MASKS, one_percent),
        ("decoder", c.IOU_PREDICTIONS, reversed_order),
    ],
)
def test_a_damaged_weight_is_found_at_its_stage(network, files, cases, traced, intermediate, change):
    report = verify(network, files | {traced: damage(files[traced], intermediate, change)}, cases)
    with pytest.raises(ParityError, match=f"first that diverges is {traced} {intermediate}"):
        report.raise_if_failed()
    assert report.to_json()["passed"] is False


def test_a_wrong_epsilon_is_found(network, files, cases):
    model = onnx.load_from_string(files["encoder"])
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    for attribute in norms[0].attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-2
    report = verify(network, files | {"encoder": model.SerializeToString()}, cases)
    assert report.failed[0].name == "encoder image_encoder.layers.1.blocks.0"


def test_other_weights_are_found_at_once(files, photo):
    other = seeded(SMALL, seed=3)
    report = verify(other, files, compute_cases(other, [("cat", photo[::3, ::3])]))
    assert report.failed[0].name == "encoder image_encoder.patch_embed"
    assert report.failed[-1].name == "end to end masks"


def test_nan_is_infinitely_far_away():
    expected = np.ones((2, 3), np.float32)
    for found in (np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.ones((3, 2))):
        figures = tensor_figures(expected, found)
        assert figures["error"] == float("inf")
        assert figures["snr_db"] == -float("inf")


def test_tensor_figures():
    expected = np.array([1.0, -1.0, 3.0, -3.0])
    figures = tensor_figures(expected, expected + np.array([0, 0.1, 0, 0]))
    assert figures["max_abs"] == pytest.approx(0.1)
    assert figures["mean_abs"] == pytest.approx(0.025)
    assert figures["scale"] == pytest.approx(np.sqrt(5))
    assert figures["snr_db"] == pytest.approx(10 * np.log10(20 / 0.01))
    assert tensor_figures(expected, expected)["snr_db"] == 200
    assert tensor_figures(expected, -expected)["cosine"] == pytest.approx(-1)


def test_each_mask_is_compared_with_its_own_counterpart():
    masks = np.zeros((1, 2, 100, 100), bool)
    masks[0, 0, :90] = True
    masks[0, 1, 90:, :20] = True
    other = masks.copy()
    other[0, 1] = False  # lost altogether: pooled, the IoU would be 0.98
    figures = mask_figures(masks, other)
    assert figures["mask_iou"] == 0.0
    assert figures["iou_sum"] == 1.0
    assert (figures["masks"], figures["small"], figures["changed"]) == (2, 0, 200)
    assert figures["boundary"] == 100 + 20 + 10
    assert agreements(masks, other).tolist() == [[1.0, 0.0]]


def test_a_small_mask_is_judged_by_its_pixels_changed():
    masks = np.zeros((1, 1, 100, 100), bool)
    masks[0, 0, 0, :10] = True
    other = masks.copy()
    other[0, 0, 0, :5] = False
    figures = mask_figures(masks, other)
    assert (figures["masks"], figures["small"], figures["mask_iou"]) == (0, 1, 1.0)
    assert figures["small_changed"] == 5 / 50
    assert agreements(masks, other).tolist() == [[1 - 5 / 50]]
    everything = np.ones_like(masks)
    assert mask_figures(masks, everything)["small_changed"] > 100


def test_scores_and_best_masks():
    expected = np.array([[0.9, 0.2, 0.8, 0.3], [0.0, 0.500, 0.505, 0.1]])
    swapped = expected[:, [0, 2, 1, 3]]
    figures = score_figures(expected, swapped)
    assert figures["score"] == pytest.approx(0.6)
    assert (figures["prompts"], figures["kept"]) == (1, 0)  # the second is a tie
    assert score_figures(expected, expected)["kept"] == 1
    wrong = score_figures(expected, np.full_like(expected, np.nan))
    assert wrong["score"] == float("inf")
    assert wrong["kept"] == 0


def test_every_quantity_has_a_limit_of_its_own():
    fine = {
        "error": 0.0,
        "snr_db": 200.0,
        "cosine": 1.0,
        "score": 0.0,
        "mask_iou": 1.0,
        "mask_iou_mean": 1.0,
        "small_changed": 0.0,
        "best_kept": 1.0,
    }
    assert fine.keys() == FP16.limits().keys() == QUANTITIES.keys()
    assert not FP16.violations(fine)
    for quantity, (limit, is_maximum) in FP16.limits().items():
        for value in (limit + 0.01 if is_maximum else limit - 0.01, float("nan")):
            (found,) = FP16.violations(fine | {quantity: value})
            assert (found.quantity, found.limit) == (quantity, limit)
            assert f"must be {'≤' if is_maximum else '≥'} {limit:.6g}" in str(found)


def test_no_case_is_an_error(network, files):
    report = verify(network, files, [])
    assert not report.ok
    assert report.to_json()["passed"] is False
    with pytest.raises(ParityError, match="nothing was compared"):
        report.raise_if_failed()


def test_another_best_mask_fails_unless_it_was_a_tie():
    for tie, ok in ((0.1, False), (1e-5, True)):
        report = Report("fp32", FP32, "onnxruntime")
        report.cases = 1
        expected = np.array([[0.1, 0.5, 0.5 + tie, 0.1]])
        loose = expected + np.array([[0, 0.9 * tie, -0.9 * tie, 0]])
        report.tolerance = replace(FP32, score=1.0)
        report.add_scores("decoder", "iou_predictions", "case", expected, loose)
        assert report.ok is ok


def test_the_grade_is_what_was_found(network, files, cases):
    assert verify(network, files, cases).grade == "equivalent"
    worse = damage(files["decoder"], "mask_decoder.transformer.layers.0.0", one_percent)
    report = verify(network, files | {"decoder": worse}, cases)
    assert report.failed
    assert report.grade == "close"
    report = verify(network, files | {"decoder": damage(worse, c.LOW_RES_MASKS, reversed_order)}, cases)
    assert report.grade == "lossy"
    assert report.worst_mask.iou < 0.75
    assert report.worst_mask.photo is cases[0].photo
