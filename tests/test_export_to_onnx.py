import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import SMALL

from pocketsam.errors import BundleError
from pocketsam.export.cases import postprocess_masks
from pocketsam.export.options import Options
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.traced import Decoder, Encoder, count_macs, run
from pocketsam.models.sam import seeded
from pocketsam.runtime import contract as c
from pocketsam.runtime.bundle import open_bundle

SIZE = SMALL


@pytest.fixture(scope="module")
def network():
    """The network of the fixture ``bundle``."""
    return seeded(SIZE, seed=11)


@pytest.fixture(scope="module")
def files(bundle):
    """{network: (path, what the manifest says of it)}"""
    manifest = open_bundle(bundle).manifest
    return {name: (bundle / f"{name}.onnx", manifest.network(name)) for name in ("encoder", "decoder")}


def prompt(batch=1, points=2, seed=0, has_mask=0.0, size=(90, 120)):
    rng = np.random.default_rng(seed)
    side = SIZE // 4
    return {
        c.IMAGE_EMBEDDINGS: rng.normal(size=(1, 256, SIZE // 16, SIZE // 16)).astype(np.float32),
        c.POINT_COORDS: rng.uniform(0, SIZE, (batch, points, 2)).astype(np.float32),
        c.POINT_LABELS: rng.integers(-1, 4, (batch, points)).astype(np.float32),
        c.MASK_INPUT: rng.normal(size=(batch, 1, side, side)).astype(np.float32) * 5,
        c.HAS_MASK_INPUT: np.full(batch, has_mask, np.float32),
        c.ORIG_IM_SIZE: np.array(size, np.float32),
    }


def test_the_decoder_has_the_official_names_and_shapes(files):
    path, entry = files["decoder"]
    session = ort.InferenceSession(path)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [  # in this order, as some tools want
        ("image_embeddings", [1, 256, 16, 16]),
        ("point_coords", ["B", "N", 2]),
        ("point_labels", ["B", "N"]),
        ("mask_input", ["M", 1, 64, 64]),
        ("has_mask_input", ["M"]),
        ("orig_im_size", [2]),
    ]
    assert [o.name for o in session.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert {tensor.type for tensor in tensors} == {"tensor(float)"}
    assert [tensor.name for tensor in entry.inputs] == [i.name for i in session.get_inputs()]


def test_the_options_reach_the_files(files, network, tmp_path):
    options = Options(opset=17, disabled_passes=("masks",))
    decoder = to_onnx.traced_networks(network, options)["decoder"]
    to_onnx.convert(decoder, tmp_path / "decoder.onnx", options, [])
    found, usual = onnx.load(tmp_path / "decoder.onnx"), onnx.load(files["decoder"][0])
    assert found.opset_import[0].version == 17
    assert usual.opset_import[0].version > 17
    counts = [sum(n.op_type == "ConvTranspose" for n in model.graph.node) for model in (found, usual)]
    assert counts == [2, 0]


def test_the_encoder_equals_pytorch(files, network):
    feeds = {
        c.PIXEL_VALUES: np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    }
    wanted, _ = run(Encoder(network), feeds)
    found = to_onnx.load(files["encoder"][0].read_bytes(), "encoder")(feeds)
    assert found.keys() == wanted.keys() == {c.IMAGE_EMBEDDINGS}
    assert np.abs(found[c.IMAGE_EMBEDDINGS] - wanted[c.IMAGE_EMBEDDINGS]).max() < 1e-4


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("points", [0, 1, 2, 7])
def test_the_decoder_equals_pytorch_for_every_batch_and_count(files, network, batch, points):
    decoder = to_onnx.load(files["decoder"][0].read_bytes(), "decoder")
    for has_mask in (0.0, 1.0):
        feeds = prompt(batch, points, seed=batch + points, has_mask=has_mask)
        wanted, _ = run(Decoder(network), feeds)
        found = decoder(feeds)
        assert found[c.LOW_RES_MASKS].shape == (batch, 4, SIZE // 4, SIZE // 4)
        assert np.abs(found[c.LOW_RES_MASKS] - wanted[c.LOW_RES_MASKS]).max() < 5e-4
        assert np.abs(found[c.IOU_PREDICTIONS] - wanted[c.IOU_PREDICTIONS]).max() < 1e-4


@pytest.mark.parametrize("has_mask", [0.0, 1.0])
def test_one_mask_input_serves_all_prompts(files, has_mask):
    decoder = to_onnx.load(files["decoder"][0].read_bytes(), "decoder")
    shared = prompt(3, has_mask=has_mask)
    shared |= {key: shared[key][:1] for key in (c.MASK_INPUT, c.HAS_MASK_INPUT)}
    repeated = shared | {key: shared[key].repeat(3, axis=0) for key in (c.MASK_INPUT, c.HAS_MASK_INPUT)}
    found, wanted = decoder(shared), decoder(repeated)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert np.abs(found[name] - array).max() < 1e-4


@pytest.mark.parametrize("size", [(90, 120), (120, 90), (128, 128), (1, 1), (500, 1), (700, 901)])
def test_masks_are_upscaled_as_the_reference_does(files, size):
    found = to_onnx.load(files["decoder"][0].read_bytes(), "decoder")(prompt(2, size=size))
    wanted = postprocess_masks(found[c.LOW_RES_MASKS], size, SIZE)
    assert found[c.MASKS].shape == (2, 4, *size)
    assert np.abs(found[c.MASKS] - wanted).max() < 2e-3


def test_a_size_of_zero_means_that_masks_are_not_wanted(files):
    decoder = to_onnx.load(files["decoder"][0].read_bytes(), "decoder")
    without, with_masks = decoder(prompt(2, size=(0, 0))), decoder(prompt(2))
    assert without[c.MASKS].shape == (2, 4, 1, 1)
    assert np.array_equal(without[c.LOW_RES_MASKS], with_masks[c.LOW_RES_MASKS])


@pytest.mark.parametrize(("sent", "means"), [(-1.0, 0.0), (3.0, 1.0)])
def test_has_mask_input_is_clipped(files, sent, means):
    decoder = to_onnx.load(files["decoder"][0].read_bytes(), "decoder")
    found, wanted = decoder(prompt(has_mask=sent)), decoder(prompt(has_mask=means))
    assert np.array_equal(found[c.LOW_RES_MASKS], wanted[c.LOW_RES_MASKS])


def test_the_mask_input_matters(files):
    decoder = to_onnx.load(files["decoder"][0].read_bytes(), "decoder")
    with_mask, without = decoder(prompt(has_mask=1.0)), decoder(prompt(has_mask=0.0))
    assert np.abs(with_mask[c.LOW_RES_MASKS] - without[c.LOW_RES_MASKS]).max() > 0.1


def test_stages_are_inside_the_file_under_their_names(files, network):
    path, entry = files["encoder"]
    traced = Encoder(network)
    feeds = {name: value.numpy() for name, value in traced.example().items()}
    _, wanted = run(traced, feeds)
    found = to_onnx.load(path.read_bytes(), "encoder", traced.intermediates())(feeds)
    assert entry.intermediates == tuple(wanted)
    for name, intermediate in wanted.items():
        assert np.abs(found[name] - intermediate).max() < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_same_input_gives_the_same_bytes(name, files, network, tmp_path):
    """Converted here, and with the bundle, perhaps by another process; the network stays as it is."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    to_onnx.convert(to_onnx.traced_networks(network, Options())[name], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == files[name][0].read_bytes()
    assert not network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_nothing_in_the_file_tells_of_the_machine(files):
    for path, _ in files.values():
        model = onnx.load(path)
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert b"location" not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_macs_are_those_published():
    """38.8 GMAC at 1024 (contracts.md); they fall with the square of the side, but for the padding."""
    assert count_macs(Encoder(seeded(1024))) == pytest.approx(38.8e9, rel=2e-3)


def test_a_model_that_does_not_load_is_named():
    with pytest.raises(BundleError, match=r"broken\.onnx"):
        to_onnx.load(b"nonsense", "broken.onnx")
