"""Models that break the contract though their hashes are right, and one bundle in several threads."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_bundle
from conftest import call_pocketsam
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import SIDE, write_tiny

from pocketsam.errors import BundleError, IntegrityError, PromptError
from pocketsam.runtime import Segmenter
from pocketsam.runtime.contract import SPLIT_TENSORS, check_outputs
from pocketsam.runtime.everything.generator import MaskGenerator
from pocketsam.runtime.verification.golden import check_golden

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
LOOSE = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def changed(data, output, *nodes, dtype=TensorProto.FLOAT):
    """A network whose output goes through other nodes first: from ``before`` to its name."""
    model = onnx.ModelProto.FromString(data)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["before" if name == output else name for name in names]
    for kind, inputs, outputs, options in nodes:
        model.graph.node.append(helper.make_node(kind, inputs, outputs, **options))
    for value in model.graph.output:
        if value.name == output:
            value.CopyFrom(helper.make_tensor_value_info(output, dtype, None))
    return model.SerializeToString()


def as_sequence(data, output):
    model = onnx.ModelProto.FromString(changed(data, *through(output, "SequenceConstruct")))
    for value in model.graph.output:
        if value.name == output:
            value.CopyFrom(helper.make_tensor_sequence_value_info(output, TensorProto.FLOAT, None))
    return model.SerializeToString()


def through(output, kind, extra=(), **options):
    return output, (kind, ["before", *extra], [output], options)


ENCODERS = {
    "half": changed(
        tiny_bundle.encoder(),
        *through("image_embeddings", "Cast", to=TensorProto.FLOAT16),
        dtype=TensorProto.FLOAT16,
    ),
    "flat": changed(tiny_bundle.encoder(), *through("image_embeddings", "Flatten")),
    "NaN": changed(tiny_bundle.encoder(), *through("image_embeddings", "Sqrt")),
    "a sequence": as_sequence(tiny_bundle.encoder(), "image_embeddings"),
}
DECODERS = {
    "no axis": changed(tiny_bundle.decoder(), *through("iou_predictions", "ReduceMean", keepdims=0)),
    "three scores": changed(
        tiny_bundle.decoder(),
        "iou_predictions",
        ("Split", ["before"], ["iou_predictions", "rest"], {"axis": 1, "num_outputs": 2}),
    ),
    "doubles": changed(
        tiny_bundle.decoder(),
        *through("iou_predictions", "Cast", to=TensorProto.DOUBLE),
        dtype=TensorProto.DOUBLE,
    ),
    "NaN": changed(
        tiny_bundle.decoder(),
        "iou_predictions",
        ("Sub", ["before", "before"], ["zero"], {}),
        ("Div", ["zero", "zero"], ["iou_predictions"], {}),
    ),
    "transposed": changed(tiny_bundle.decoder(), *through("low_res_masks", "Transpose")),
    "infinite": changed(
        tiny_bundle.decoder(),
        "low_res_masks",
        ("Sub", ["before", "before"], ["zero"], {}),
        ("Div", ["before", "zero"], ["low_res_masks"], {}),
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_that_breaks_the_contract(name, tmp_path):
    segmenter = Segmenter(write_tiny(tmp_path / "b", encoder=ENCODERS[name]))
    with pytest.raises(BundleError, match=r"b: encoder: image_embeddings (is|has values)"):
        segmenter.set_image(PICTURE)
    assert not segmenter.is_image_set


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_breaks_the_contract(name, tmp_path):
    segmenter = Segmenter(write_tiny(tmp_path / "b", decoder=DECODERS[name]))
    segmenter.set_image(PICTURE)
    with pytest.raises(
        BundleError, match=r"b: decoder: (iou_predictions|low_res_masks) (is|has values)"
    ):
        segmenter.predict([[20, 20]], [1])
    with pytest.raises(BundleError, match="decoder: "):
        MaskGenerator(segmenter, **LOOSE).generate(PICTURE)


def test_a_split_decoder_whose_tensors_are_not_of_each_prompt(tmp_path):
    """The whole one broadcasts them."""
    features = SPLIT_TENSORS[1]
    decoder = changed(
        tiny_bundle.decoder(),
        features,
        ("ReduceMax", ["before", "nought"], [features], {"keepdims": 1}),
    )
    model = onnx.ModelProto.FromString(decoder)
    for node in model.graph.node:
        if node.op_type == "Add" and node.output[0] == "low_res_masks":
            node.input[0] = features
    nodes = list(model.graph.node)
    order = [n for n in nodes if n.op_type != "ReduceMax"]
    at = next(i for i, n in enumerate(order) if features in n.input)
    del model.graph.node[:]
    model.graph.node.extend([*order[:at], nodes[-1], *order[at:]])
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "nought"))
    path = write_tiny(tmp_path / "b", decoder=model.SerializeToString())
    segmenter = Segmenter(path)
    segmenter.set_image(PICTURE)
    clicks = [[[20, 20]], [[9, 9]]], [[1], [1]]
    assert segmenter.predict_batch(*clicks)[0].shape == (2, 3, 40, 60)
    with pytest.raises(BundleError, match="has no entry for each prompt"):
        segmenter.predict_above(*clicks, -1.0)


@pytest.mark.parametrize("name", ["NaN", "infinite"])
def test_a_certificate_of_nan_fails(name, tmp_path):
    done = call_pocketsam("verify", write_tiny(tmp_path / "b", decoder=DECODERS[name]))
    assert done.returncode == 3
    assert "\u2713" not in done.stdout
    done = call_pocketsam("verify", write_tiny(tmp_path / "b", encoder=ENCODERS["NaN"]))
    assert done.returncode == 3
    assert done.stdout.count("\u2717") == 16  # whole and in parts


def test_a_golden_prompt_of_millions_of_points(tmp_path):
    """A decoder would want memory for all of them."""
    with np.load(write_tiny(tmp_path / "a") / "golden.npz") as file:
        arrays = dict(file) | {"point_point_coords": np.full((1, 10**6, 2), 5, np.float32)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    with pytest.raises(IntegrityError, match="point_point_coords has 2000000 numbers, more than 4096"):
        check_golden(write_tiny(tmp_path / "b", golden=stream.getvalue()))


def test_a_good_bundle_keeps_the_contract(tmp_path):
    path = write_tiny(tmp_path / "b")
    assert call_pocketsam("verify", path).returncode == 0
    segmenter = Segmenter(path)
    segmenter.set_image(PICTURE)
    masks, scores, low_res = segmenter.predict([[20, 20]], [1])
    assert (masks.shape, scores.shape, low_res.shape) == (
        (3, *PICTURE.shape[:2]),
        (3,),
        (3, SIDE // 4, SIDE // 4),
    )
    assert MaskGenerator(segmenter, **LOOSE).generate(PICTURE)


def test_outputs_that_stay_on_a_device():
    """As ``OrtValue``, whose shape and type are asked for in another way."""
    value = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 256, 4, 4), np.float32))
    check_outputs({"image_embeddings": value}, SIDE // 16, 1, "encoder")
    for wrong in (np.zeros((1, 256, 4, 5), np.float32), np.zeros((1, 256, 4, 4), np.float16)):
        value = ort.OrtValue.ortvalue_from_numpy(wrong)
        with pytest.raises(BundleError, match="encoder: image_embeddings is tensor"):
            check_outputs({"image_embeddings": value}, SIDE // 16, 1, "encoder")


def test_a_copy_shares_the_networks_and_has_its_own_image(tmp_path):
    first = Segmenter(write_tiny(tmp_path / "b"))
    second = copy.copy(first)
    assert second._encoder is first._encoder
    assert second._split_decoder() is first._split_decoder()
    first.set_image(PICTURE)
    with pytest.raises(PromptError, match="no image is set"):
        second.predict([[20, 20]], [1])
    second.set_image(PICTURE[:20, :30])
    assert (first.original_size, second.original_size) == ((40, 60), (20, 30))
    first.reset_image()
    assert second.is_image_set


@pytest.mark.parametrize("what", ["predict", "everything"])
def test_threads_with_a_copy_each(bundle, photo, what):
    """Each thread's masks are those of its own picture."""
    segmenter = Segmenter(bundle, threads=1)
    pictures = [photo[20 * n : 20 * n + 100, 30 * n : 30 * n + 120] for n in range(4)]

    def answer(picture):
        own = copy.copy(segmenter)
        for _ in range(3):
            own.set_image(picture)
            if what == "predict":
                found = own.predict([[50, 40]], [1])[2]
            else:
                found = own.predict_above([[[50, 40]], [[9, 9]]], [[1], [1]], -1.0)[2]
        return found

    wanted = [answer(picture) for picture in pictures]
    assert not np.array_equal(wanted[0], wanted[1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, pictures))
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)
