"""The runtime against the reference's SamPredictor: same weights, same photographs, same prompts."""

import gc
import inspect
import json
import resource
import shutil
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from pocketsam.errors import (
    BundleError,
    ImageError,
    PocketSamError,
    PromptError,
    ProviderError,
    UsageError,
)
from pocketsam.runtime import MaskGenerator, Segmenter
from pocketsam.runtime.backends.split_decoder import open_split_decoder
from pocketsam.runtime.bundle import Bundle, open_bundle
from pocketsam.runtime.contract import SPLIT_TENSORS
from pocketsam.runtime.manifest import MANIFEST_NAME


@pytest.fixture(scope="module")
def segmenter(full_bundle):
    return Segmenter(full_bundle)


@pytest.fixture(scope="module")
def small(bundle, photo):
    segmenter = Segmenter(bundle)
    segmenter.set_image(photo)
    return segmenter


@pytest.fixture(scope="module")
def predictor_class(mobile_sam):
    from mobile_sam import SamPredictor

    return SamPredictor


PHOTOS = {
    "square": lambda: data.astronaut(),
    "landscape": lambda: data.rocket(),
    "portrait": lambda: np.ascontiguousarray(data.coffee().transpose(1, 0, 2)),
    "large": lambda: np.tile(data.coffee(), (4, 4, 1))[:1500, :2300],
}
PROMPTS = {
    "point": {"point_coords": [[210, 150]], "point_labels": [1]},
    "points": {"point_coords": [[210, 150], [30.5, 200.25]], "point_labels": [1, 0]},
    "edge": {"point_coords": [[0, 0]], "point_labels": [1]},
    "box": {"box": [40, 50, 300, 320]},
    "box and point": {"box": [40, 50, 300, 320], "point_coords": [[200, 180]], "point_labels": [0]},
}


@pytest.fixture(scope="module", params=PHOTOS)
def both(request, segmenter, predictor_class, reference):
    """Segmenter and SamPredictor with the same photograph set."""
    image = PHOTOS[request.param]()
    predictor = predictor_class(reference)
    predictor.set_image(image)
    segmenter.set_image(image)
    return segmenter, predictor


def agree(found, wanted):
    """Official shapes and dtypes; within 2e-3 on logits of scale 5, and IoU 0.999 of masks."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
    assert np.abs(found[2] - wanted[2]).max() <= 2e-3
    assert np.abs(found[1] - wanted[1]).max() <= 1e-4
    if found[0].dtype == bool:
        assert (found[0] & wanted[0]).sum() >= 0.999 * (found[0] | wanted[0]).sum()
        assert 0.0005 < wanted[0].mean() < 0.999
    else:
        assert np.abs(found[0] - wanted[0]).max() <= 2e-3
    assert found[1].argmax() == wanted[1].argmax()


@pytest.mark.parametrize("name", ["set_image", "predict", "get_image_embedding", "reset_image"])
def test_methods_take_what_sam_predictors_take(predictor_class, name):
    def parameters(cls):
        found = inspect.signature(getattr(cls, name)).parameters.values()
        return [(one.name, one.default) for one in found]

    assert parameters(Segmenter) == parameters(predictor_class)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_equals_sam_predictor(both, prompt):
    segmenter, predictor = both
    arrays = {key: np.array(value) for key, value in prompt.items()}
    for multimask in (True, False):
        wanted = predictor.predict(**arrays, multimask_output=multimask)
        agree(segmenter.predict(**prompt, multimask_output=multimask), wanted)


def test_equals_sam_predictor_with_a_mask_input_and_logits(both):
    segmenter, predictor = both
    prompt = {"point_coords": np.array([[100, 120]]), "point_labels": np.array([1])}
    _, _, low = predictor.predict(**prompt)
    for extra in (prompt, {}):
        wanted = predictor.predict(**extra, mask_input=low[1:2], return_logits=True)
        agree(segmenter.predict(**extra, mask_input=low[1:2], return_logits=True), wanted)


def test_equals_sam_predictor_without_any_prompt(both):
    segmenter, predictor = both
    agree(segmenter.predict(), predictor.predict())


def test_embedding_equals_the_reference(both):
    segmenter, predictor = both
    wanted = predictor.get_image_embedding().numpy()
    found = segmenter.get_image_embedding()
    assert found.shape == wanted.shape == (1, 256, 64, 64)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-4


def test_bgr_equals_sam_predictor(segmenter, predictor_class, reference):
    image = data.chelsea()
    predictor = predictor_class(reference)
    predictor.set_image(image, image_format="BGR")
    segmenter.set_image(image, image_format="BGR")
    wanted = predictor.get_image_embedding().numpy()
    assert np.abs(segmenter.get_image_embedding() - wanted).max() <= 1e-4


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["points", "boxes", "both", "masks"])
def test_a_batch_equals_its_prompts_one_by_one(small, kind, multimask):
    rng = np.random.default_rng(0)
    height, width = small.original_size
    count = 19  # more than one call of the decoder
    points = rng.uniform(0, 1, (count, 2, 2)) * (width, height)
    labels = rng.integers(0, 2, (count, 2))
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (width, height)
    boxes = corners.reshape(count, 4)
    masks = rng.normal(0, 5, (count, 1, 64, 64))
    batch = {}
    if kind in ("points", "both", "masks"):
        batch |= {"point_coords": points, "point_labels": labels}
    if kind in ("boxes", "both"):
        batch["boxes"] = boxes
    if kind == "masks":
        batch["mask_inputs"] = masks
    found = small.predict_batch(**batch, multimask_output=multimask)
    assert found[0].shape == (count, 3 if multimask else 1, height, width)
    names = {"boxes": "box", "mask_inputs": "mask_input"}
    for i in (0, 1, 15, 16, 18):
        one = {names.get(key, key): value[i] for key, value in batch.items()}
        alone = small.predict(**one, multimask_output=multimask)
        assert np.abs(found[2][i] - alone[2]).max() < 1e-4
        assert np.abs(found[1][i] - alone[1]).max() < 1e-5
        assert (found[0][i] != alone[0]).mean() < 1e-4


def test_a_path_a_pil_image_and_an_array_are_the_same(small, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    small.set_image(photo)
    wanted = small.get_image_embedding()
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(photo)):
        small.set_image(source)
        assert np.array_equal(small.get_image_embedding(), wanted)


def test_masks_of_a_rotated_photograph_are_as_it_is_seen(small, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    small.set_image(tmp_path / "turned.png")
    masks, _, _ = small.predict([[10, 10]], [1])
    assert masks.shape == (3, photo.shape[1], photo.shape[0])
    small.set_image(photo)


@pytest.mark.parametrize("size", [(1, 1), (10000, 1), (1, 10000), (2, 700), (4000, 6000)])
def test_extreme_images_give_masks_of_their_size(small, photo, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    small.set_image(image)
    masks, scores, low = small.predict([[size[1] / 2, size[0] / 2]], [1], multimask_output=False)
    assert masks.shape == (1, *size)
    assert np.isfinite(scores).all()
    assert np.isfinite(low).all()
    small.set_image(photo)


coordinate = st.floats(-0.2, 1.2) | st.sampled_from([0.0, 1.0, float("nan"), float("inf")])
point = st.tuples(coordinate, coordinate, st.sampled_from([-2, -1, 0, 1, 2, 3]))


@pytest.fixture(scope="module")
def fuzzed(bundle):
    return Segmenter(bundle)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.none() | st.lists(point, max_size=4),
    st.none() | st.tuples(coordinate, coordinate, coordinate, coordinate),
    st.booleans(),
    st.booleans(),
)
def test_any_image_and_prompt_give_masks_or_one_error(fuzzed, height, width, points, box, mask, multi):
    fuzzed.set_image(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    prompt = {"mask_input": np.full((1, 64, 64), 3.0) if mask else None, "multimask_output": multi}
    if points is not None:
        prompt["point_coords"] = np.array([p[:2] for p in points]).reshape(-1, 2) * (width, height)
        prompt["point_labels"] = np.array([p[2] for p in points])
    if box is not None:
        prompt["box"] = np.array(box) * (width, height, width, height)
    try:
        masks, scores, low = fuzzed.predict(**prompt)
    except PromptError:
        return
    count = 3 if multi else 1
    assert masks.shape == (count, height, width)
    assert masks.dtype == bool
    assert scores.shape == (count,)
    assert low.shape == (count, 64, 64)
    assert np.isfinite(scores).all()
    assert np.isfinite(low).all()


def test_predict_before_set_image(bundle):
    segmenter = Segmenter(bundle)
    assert not segmenter.is_image_set
    for call in (segmenter.predict, segmenter.predict_batch, segmenter.get_image_embedding):
        with pytest.raises(PromptError, match="set_image"):
            call()
    with pytest.raises(PromptError, match="set_image"):
        _ = segmenter.original_size


def test_reset_image_forgets(bundle, photo):
    segmenter = Segmenter(bundle)
    segmenter.set_image(photo)
    assert segmenter.is_image_set
    segmenter.reset_image()
    assert not segmenter.is_image_set
    with pytest.raises(PromptError, match="set_image"):
        segmenter.predict([[1, 1]], [1])


def test_reset_image_frees_the_pixels(bundle, tmp_path):
    """Of an array's copy that is kept for its hash, and of what a file held."""
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "black.png")
    small = Segmenter(bundle)
    small.set_image(pixels)
    small.reset_image()
    tracemalloc.start()
    try:
        for image in (pixels, tmp_path / "black.png"):
            small.set_image(image)
            small.predict([[1, 1]], [1])
            small.embedding()
            assert tracemalloc.get_traced_memory()[0] > pixels.nbytes
            small.reset_image()
            assert tracemalloc.get_traced_memory()[0] < 10**6
    finally:
        tracemalloc.stop()


def test_an_image_that_cannot_be_scaled_to_is_not_half_set(bundle, photo, monkeypatch):
    """With a CUDA graph, the encoder writes where the embedding of the image set before lies."""
    small = Segmenter(bundle)
    small.set_image(photo)
    encoded = []
    monkeypatch.setattr(small, "_encoder", lambda feeds: encoded.append(feeds))
    monkeypatch.setattr("pocketsam.runtime.segmenter.Upscaler", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small.set_image(photo[:50])
    assert not encoded
    assert small.original_size == photo.shape[:2]


def test_a_bad_image_leaves_the_old_one(small, photo):
    small.set_image(photo)
    wanted = small.get_image_embedding()
    for bad in (photo.astype(np.float32), photo[..., 0], photo[:0], "nowhere.png", None):
        with pytest.raises(ImageError):
            small.set_image(bad)
    with pytest.raises(ImageError, match="RGBA"):
        small.set_image(photo, image_format="RGBA")
    assert np.array_equal(small.get_image_embedding(), wanted)


def test_the_embedding_handed_out_is_a_copy(small):
    small.get_image_embedding()[:] = 0
    assert small.get_image_embedding().std() > 0.5


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"point_coords": [[5, 5]]}, "together"),
        ({"point_labels": [1]}, "together"),
        ({"point_coords": [[5, 5]], "point_labels": [4]}, "4"),
        ({"point_coords": [[5, 5]], "point_labels": [0.5]}, "0.5"),
        ({"point_coords": [[5, 5]], "point_labels": [1, 1]}, "point_labels"),
        ({"point_coords": [5, 5], "point_labels": [1]}, "point_coords"),
        ({"point_coords": [[5, 5, 5]], "point_labels": [1]}, "point_coords"),
        ({"point_coords": [[float("nan"), 5]], "point_labels": [1]}, "NaN"),
        ({"point_coords": [[-1, 5]], "point_labels": [1]}, r"\(-1, 5\)"),
        ({"point_coords": [[5, 301]], "point_labels": [1]}, r"\(5, 301\)"),
        ({"point_coords": "here", "point_labels": [1]}, "point_coords"),
        ({"box": [1, 2, 3]}, "box"),
        ({"box": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "box"),
        ({"box": [9, 2, 3, 4]}, "x0 <= x1"),
        ({"box": [452, 2, 460, 4]}, r"box \(452, 2, 460, 4\) lies outside"),
        ({"box": [1, 2, float("inf"), 4]}, "infinity"),
        ({"mask_input": np.zeros((64, 64))}, "mask_input"),
        ({"mask_input": np.zeros((1, 256, 256))}, "64"),
        ({"mask_input": np.full((1, 64, 64), np.nan)}, "NaN"),
    ],
)
def test_bad_prompts_are_named(small, prompt, says):
    with pytest.raises(PromptError, match=says):
        small.predict(**prompt)


def test_an_empty_batch_is_refused(small):
    with pytest.raises(PromptError, match="at least one prompt"):
        small.predict_batch(np.zeros((0, 1, 2)), np.zeros((0, 1)))
    with pytest.raises(PromptError, match="at least one prompt"):
        small.predict_batch(mask_inputs=np.zeros((0, 1, 64, 64)))


def test_an_absent_provider_names_those_present(bundle):
    with pytest.raises(ProviderError, match=r"cuda.*cpu"):
        Segmenter(bundle, providers="cuda")
    with pytest.raises(ProviderError, match="unknown provider 'gpu'"):
        Segmenter(bundle, providers=["gpu", "cpu"])


def test_threads_do_not_change_the_masks(bundle, photo):
    masks = []
    for threads in (1, 2):
        segmenter = Segmenter(bundle, threads=threads)
        segmenter.set_image(photo)
        masks.append(segmenter.predict([[100, 100]], [1])[0])
    assert (masks[0] != masks[1]).mean() < 1e-4
    with pytest.raises(UsageError, match="threads"):
        Segmenter(bundle, threads=0)


def test_a_directory_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=str(tmp_path)):
        Segmenter(tmp_path)
    with pytest.raises(PocketSamError, match="nowhere"):
        Segmenter(tmp_path / "nowhere")


def test_a_bundle_that_holds_another_graph(bundle, photo, tmp_path):
    """Hashes can be right and the file still be no encoder."""
    copy = shutil.copytree(bundle, tmp_path / "copy")
    shutil.copy(copy / "decoder.onnx", copy / "encoder.onnx")
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    manifest["encoder"] |= {key: manifest["decoder"][key] for key in ("sha256", "bytes")}
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"encoder: onnxruntime failed: .*image_embeddings") as caught:
        Segmenter(copy).set_image(photo)
    assert "\n" not in str(caught.value)
    manifest["encoder"]["file"] = "decoder.onnx"
    manifest["target"] = "coreml"
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"decoder\.points is missing"):
        Segmenter(copy)
    manifest["decoder"]["points"] = 16
    inputs = {tensor["name"]: tensor for tensor in manifest["decoder"]["inputs"]}
    inputs["point_coords"]["shape"] = [1, 16, 2]
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="point_labels has no number of prompts"):
        Segmenter(copy)
    inputs["point_labels"]["shape"] = [1, 16]
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"decoder\.onnx: missing, or not a directory"):
        Segmenter(copy)
    manifest["target"] = "openvino"
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="a bundle for openvino"):
        Segmenter(copy)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.slow
def test_a_video_does_not_make_memory_grow(bundle, photo):
    """Frame after frame, a click and everything in each: what the first ones took is enough."""

    def pages():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1])

    segmenter = Segmenter(bundle)
    generator = MaskGenerator(segmenter, points_per_side=2, pred_iou_thresh=0)
    taken = []
    for number in range(20):
        segmenter.set_image(np.roll(photo, number, axis=1))
        segmenter.predict([[40, 30]], [1])
        if not number % 4:
            generator.generate(photo)
        taken.append(pages())
    grown = (taken[-1] - max(taken[:9])) * resource.getpagesize()
    assert grown < 2 * 2**20, f"{grown} bytes in 11 frames of {photo.nbytes} bytes"


def test_a_bug_in_the_split_decoder_is_no_missing_protobuf(bundle, monkeypatch):
    """The slow way would hide it."""
    monkeypatch.setitem(sys.modules, "pocketsam.runtime.backends.subgraph", None)
    monkeypatch.delattr("pocketsam.runtime.backends.subgraph", raising=False)
    with pytest.raises(ModuleNotFoundError, match="subgraph"):
        open_split_decoder(open_bundle(bundle))


def test_without_protobuf_the_decoder_stays_whole(bundle, monkeypatch):
    """onnxruntime brings it, and could stop."""
    opened = open_bundle(bundle)
    assert open_split_decoder(opened)
    monkeypatch.delitem(sys.modules, "pocketsam.runtime.backends.subgraph")
    monkeypatch.delattr("pocketsam.runtime.backends.subgraph")
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    assert open_split_decoder(opened) is None


def test_a_decoder_is_whole_on_a_gpu_and_without_intermediate_outputs(bundle):
    opened = open_bundle(bundle)
    assert open_split_decoder(opened, "cuda") is None
    for names in ((), ("mask_decoder",), SPLIT_TENSORS[1:]):
        decoder = replace(opened.manifest.decoder, intermediates=names)
        other = Bundle(opened.path, replace(opened.manifest, decoder=decoder))
        assert open_split_decoder(other) is None
