"""A decoder with its cells as factors computes what the decoder in the file computes."""

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from pocketsam.errors import BundleError
from pocketsam.export.options import Options
from pocketsam.export.to_onnx.convert import convert, traced_networks
from pocketsam.export.to_onnx.opset import lower_opset
from pocketsam.models.sam import seeded
from pocketsam.runtime import Segmenter
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.factored import FACTORS, factor
from pocketsam.runtime.backends.graph_editor import GraphEditor, UnknownGraphError
from pocketsam.runtime.backends.ort import open_session
from pocketsam.runtime.backends.split_decoder import SplitDecoder
from pocketsam.runtime.backends.subgraph import extract, model_class

OUTPUTS = (c.IOU_PREDICTIONS, c.LOW_RES_MASKS)
KNOWN = [("several_precisions", ""), ("several_precisions", "int8"), ("bundle", "")]


def write(model, path, **options) -> bytes:
    options = Options(**options)
    convert(traced_networks(model, options)["decoder"], path, options)
    return path.read_bytes()


def opened(model: bytes) -> ort.InferenceSession:
    """A session as the runtime's, which computes in float32 where weights are stored in few bits."""
    return open_session(model, "decoder", "cpu", 2)


def prompts(decoder: ort.InferenceSession, batch: int, points: int, masks: int) -> dict:
    rng = np.random.default_rng(batch)
    cells = decoder.get_inputs()[0].shape[-1]
    low = decoder.get_outputs()[-1].shape[-1]
    return {
        c.IMAGE_EMBEDDINGS: rng.standard_normal((1, 256, cells, cells), np.float32),
        c.POINT_COORDS: rng.uniform(0, 16 * cells, (batch, points, 2)).astype(np.float32),
        c.POINT_LABELS: rng.integers(-1, 4, (batch, points)).astype(np.float32),
        c.MASK_INPUT: 5 * rng.standard_normal((masks, 1, low, low), np.float32),
        c.HAS_MASK_INPUT: (np.arange(masks) % 2).astype(np.float32),
        c.ORIG_IM_SIZE: np.zeros(2, np.float32),
    }


def answers(session: ort.InferenceSession, feeds: dict) -> list[np.ndarray]:
    names = [tensor.name for tensor in session.get_inputs()]
    return session.run(OUTPUTS, {name: feeds[name] for name in names})


def compare(decoder: bytes, batch: int, points: int, masks: int, tolerance: float = 2e-5) -> None:
    """Holds the factored decoder against the decoder: both in float32, with sums in another order."""
    factored = factor(decoder)
    assert factored
    onnx.checker.check_model(onnx.load_from_string(factored), full_check=True)
    session, before = opened(extract(factored, OUTPUTS)), opened(decoder)
    feeds = prompts(before, batch, points, masks)
    wanted, found = answers(before, feeds), answers(session, feeds)
    for one, other in zip(wanted, found, strict=True):
        assert one.std() > 0
        assert np.abs(one - other).max() < tolerance * max(one.std(), 1)


@pytest.mark.parametrize(("batch", "points", "masks"), [(1, 2, 1), (8, 2, 1), (3, 5, 3), (2, 20, 2)])
@pytest.mark.parametrize(("name", "precision"), KNOWN)
def test_the_same_answers(name, precision, batch, points, masks, request):
    path = request.getfixturevalue(name) / precision / "decoder.onnx"
    compare(path.read_bytes(), batch, points, masks)


def test_another_architecture(tmp_path):
    network = seeded(128, 3, "lite_medsam")  # an embedding of stride 4
    compare(write(network, tmp_path / "d.onnx"), 2, 2, 1)


def test_scores_beyond_what_exp_bears(tmp_path):
    network = seeded(64, seed=3)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "cross_attn_image_to_token.k_proj" in name:
                weight *= 300
    compare(write(network, tmp_path / "d.onnx"), 2, 2, 1, tolerance=1e-3)


def test_forms_that_stay_as_they_are(several_precisions, tmp_path):
    assert factor((several_precisions / "fp16/decoder.onnx").read_bytes()) is None
    assert factor((several_precisions / "encoder.onnx").read_bytes()) is None
    assert factor(write(seeded(64, seed=3), tmp_path / "d.onnx", disabled_passes=("cells",))) is None
    old = lower_opset(onnx.load(several_precisions / "decoder.onnx"), 17)
    assert factor(old.SerializeToString()) is None


def test_the_split_decoder_uses_it(several_precisions):
    for precision, is_factored in (("", True), ("fp16", False)):
        decoder = (several_precisions / precision / "decoder.onnx").read_bytes()
        split = SplitDecoder(decoder, "decoder", "cpu", 1)
        assert set(FACTORS).issubset(split.between) == is_factored


def test_parts_that_answer_otherwise_are_refused(trained_bundle, photo, monkeypatch):
    segmenter = Segmenter(trained_bundle)
    segmenter.set_image(photo)
    click = [[[200, 150]]], [[1]]
    masks = SplitDecoder.masks
    monkeypatch.setattr(SplitDecoder, "masks", lambda self, feeds: 1.01 * masks(self, feeds))
    with pytest.raises(BundleError, match=r"decoder: low_res_masks of a click differs .* in parts"):
        segmenter.predict_above(*click, -1.0)


def test_what_prompts_share_belongs_to_the_image(trained_bundle, photo):
    segmenter = Segmenter(trained_bundle)
    segmenter.set_image(photo)
    other = copy.copy(segmenter)
    other.set_image(photo[::-1].copy())
    for _ in range(2):
        for each in (segmenter, other):
            for points in (1, 3, 20):
                clicks = np.tile([[[200, 150]]], (3, points, 1)), np.ones((3, points))
                wanted = each.predict_low_res(*clicks)
                scores, _, masks = each.predict_above(*clicks, -1.0)
                np.testing.assert_allclose(scores, wanted[0], atol=1e-5)
                np.testing.assert_allclose(masks, wanted[1], atol=1e-3)
    before = segmenter.predict_above(*clicks, -1.0)[0]
    assert not np.shares_memory(segmenter.embedding().values, segmenter.embedding().values)
    segmenter.embedding().values[:] = 0
    assert np.array_equal(segmenter.predict_above(*clicks, -1.0)[0], before)


def test_an_editor_that_does_not_find_what_it_looks_for(several_precisions):
    whole = model_class().FromString((several_precisions / "decoder.onnx").read_bytes())
    editor = GraphEditor(whole.graph)
    for look in (
        lambda: editor.find("no_weight"),
        lambda: editor.back(c.LOW_RES_MASKS, "Softmax"),
        lambda: editor.users(c.POINT_COORDS, "Softmax", 0),
        lambda: editor.shape(c.POINT_COORDS),
    ):
        with pytest.raises(UnknownGraphError):
            look()
