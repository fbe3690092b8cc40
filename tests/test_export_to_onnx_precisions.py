"""ONNX in float16 and in few bits: small, right, and refused where it is not."""

import platform
from importlib.resources import files

import numpy as np
import onnx
import pytest
from conftest import SMALL
from onnx import TensorProto, helper, numpy_helper

from pocketsam.errors import BundleError, ConversionError, ParityError
from pocketsam.export import export
from pocketsam.export.cases import PROMPTS, all_encoder_feeds, compute_cases, measure_encoder
from pocketsam.export.options import Options
from pocketsam.export.to_onnx import int8 as onnx_int8
from pocketsam.export.to_onnx import weights as onnx_weights
from pocketsam.export.to_onnx.large import open_model
from pocketsam.export.traced import Encoder
from pocketsam.models.checkpoint import DEFAULT, load_model
from pocketsam.runtime.backends import saturation
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.contract import PIXEL_VALUES
from pocketsam.runtime.machine import cpu_flags
from pocketsam.runtime.verification.golden import check_golden

SHARES = {"fp16": 0.52, "int8": 0.3, "int8-weights": 0.3, "int4-weights": 0.26}
"""Of the float32 encoder's bytes."""


@pytest.fixture(scope="module")
def encoder(several_precisions):
    return onnx.load(several_precisions / "encoder.onnx")


@pytest.mark.slow
def test_precisions_of_few_bits(several_precisions, pictures, tmp_path):
    export(DEFAULT, tmp_path / "b", precision="int8-weights", also=["int4-weights"], image_size=SMALL,
           images=pictures, accept="lossy")  # fmt: skip
    whole = open_bundle(several_precisions).manifest.encoder.bytes
    for folder in (tmp_path / "b", tmp_path / "b/int4-weights"):
        manifest = open_bundle(folder).manifest
        assert manifest.parity["passed"]
        assert manifest.encoder.bytes < SHARES[manifest.precision] * whole
        assert all(result.ok for result in check_golden(folder))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions(precision, several_precisions):
    manifest = open_bundle(several_precisions / precision).manifest
    assert manifest.parity["passed"]
    whole = open_bundle(several_precisions).manifest.encoder.bytes
    assert manifest.encoder.bytes < SHARES[precision] * whole
    assert all(result.ok for result in check_golden(several_precisions / precision))
    if precision == "int8":
        assert manifest.encoder.details["int8"]["miou"] >= 0.5
    if precision == "fp16":
        assert manifest.encoder.details["float16"]["largest"] < 65504 / 8


def test_bias_tables_are_exact(encoder):
    """The file holds few values per head, and the graph makes the whole table of them."""
    tables = [t for t in encoder.graph.initializer if t.name.endswith("_table")]
    assert len(tables) == 10
    assert {tuple(t.dims)[1] for t in tables} == {49, 196}
    gathers = [n for n in encoder.graph.node if n.op_type == "Gather" and n.input[0].endswith("_table")]
    assert len(gathers) == 10
    assert max(np.prod(t.dims) for t in tables) < 1000


def test_linear_layers_are_found_by_name(encoder):
    layers = onnx_int8.linear_layers(encoder)
    assert len(layers) == 40
    assert layers[0].name == "layers.1.blocks.0.attn.qkv"
    assert (layers[0].inputs, layers[0].outputs) == (128, 384)
    assert len({layer.name for layer in layers}) == 40


def test_weights_keep_to_seven_bits(encoder):
    """8 bits of input times 8 of weight, twice, overflow 16 bits on CPUs without VNNI."""
    model = onnx_int8.quantize(encoder, onnx_int8.linear_layers(encoder))
    codes = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_int8")]
    assert len(codes) == 40
    assert max(int(np.abs(c.astype(int)).max()) for c in codes) == onnx_int8.LARGEST
    assert 2 * 255 * onnx_int8.LARGEST < 2**15


def test_the_file_that_tells_whether_products_saturate():
    shape = numpy_helper.from_array(np.array([64, 64]), "shape")
    ones = helper.make_tensor("value", TensorProto.INT8, [1], [127])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["weight"], value=ones),
        helper.make_node("MatMulInteger", ["x", "weight"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["M", 64])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, ["M", 64])
    graph = helper.make_graph(nodes, "products", [x], [y], [shape])
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9, producer_name="pocketsam")
    written = files("pocketsam.runtime.backends").joinpath(saturation.PRODUCTS_NAME).read_bytes()
    assert written == model.SerializeToString(deterministic=True)


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="features of other systems' CPUs are unknown",
)
def test_products_saturate_without_vnni():
    """Those without it do (seen with QEMU's Haswell and Skylake); those with it, and ARM's, do not."""
    exact = {"avx512_vnni", "avx_vnni", "amx_int8", "asimd"}
    assert saturation.saturates() == (not exact & set(cpu_flags()))


def test_weights_of_eight_bits(tmp_path, pictures, monkeypatch):
    """They are written and run where sums are exact; elsewhere both are refused."""
    how = {"precision": "int8", "image_size": SMALL, "calibration": pictures, "verify": False}
    how |= {"weight_bits": 8, "min_miou": 0.5, "min_speedup": 0.0}
    if not saturation.saturates():
        export(DEFAULT, tmp_path / "b", **how)
        bundle = open_bundle(tmp_path / "b")
        assert bundle.manifest.encoder.weight_bits == 8
        codes = [
            numpy_helper.to_array(t)
            for t in onnx.load(tmp_path / "b/encoder.onnx").graph.initializer
            if t.name.endswith("_int8")
        ]
        assert max(int(np.abs(c.astype(int)).max()) for c in codes) == 127
        open_network(bundle, "encoder")
        monkeypatch.setattr(saturation, "saturates", lambda: True)
        monkeypatch.setattr(onnx_int8, "saturates", lambda: True)
        with pytest.raises(BundleError, match=r"encoder: its weights use 8 bits.*--weight-bits 7"):
            open_network(bundle, "encoder")
        open_network(bundle, "decoder")
    with pytest.raises(ConversionError, match="--weight-bits 8: this CPU saturates"):
        export(DEFAULT, tmp_path / "refused", **how)
    assert not (tmp_path / "refused").exists()


def mean_iou(model, cases):
    return lambda encode: measure_encoder(model, cases, encode).mean


def test_the_search_leaves_the_costly_layers_in_float(encoder, photo, monkeypatch):
    """One layer is made costly (weights rounded to nothing): it alone must stay in float32."""
    layers = onnx_int8.linear_layers(encoder)[:6]
    monkeypatch.setattr(onnx_int8, "linear_layers", lambda _: layers)
    monkeypatch.setattr(onnx_int8, "layer_gain", lambda layer: 1e-3)
    true_quantize = onnx_int8.quantize

    def quantize(model, chosen, *largest):
        new = true_quantize(model, chosen, *largest)
        for tensor in new.graph.initializer:
            if tensor.name == f"{layers[2].output}_scale":
                nothing = np.zeros(tensor.dims[0], np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(nothing, tensor.name))
        return new

    monkeypatch.setattr(onnx_int8, "quantize", quantize)
    model = load_model(DEFAULT, SMALL).model
    cases = compute_cases(model, [("cat", photo)], detailed=0)
    lines = []
    _, report = onnx_int8.search(encoder, mean_iou(model, cases), 0.95, lines.append)
    assert report["kept_in_float32"] == [layers[2].name]
    assert report["miou"] >= 0.95
    assert len(report["sweep"]) == 6
    worst = max(report["sweep"], key=lambda row: row["miou_lost"])
    assert worst["layer"] == layers[2].name
    assert any("costs" in line for line in lines)


def test_more_than_can_be_reached(encoder, photo, monkeypatch):
    layers = onnx_int8.linear_layers(encoder)[:2]
    monkeypatch.setattr(onnx_int8, "linear_layers", lambda _: layers)
    model = load_model(DEFAULT, SMALL).model
    cases = compute_cases(model, [("cat", photo)], detailed=0)
    with pytest.raises(
        ParityError, match=r"no mixture reaches .* 1\.01; the best found has (0\.9|1\.0)"
    ):
        onnx_int8.search(encoder, mean_iou(model, cases), 1.01)


def test_a_file_that_would_be_too_slow(encoder, photo):
    model = load_model(DEFAULT, SMALL).model
    cases = compute_cases(model, [("cat", photo)], prompts=PROMPTS[:1], detailed=0)
    options = Options("int8", min_miou=0.0, min_speedup=50.0)
    wanted = r"times as fast as float32 on this machine, and at least 50 "
    with pytest.raises(ConversionError, match=wanted):
        onnx_int8.quantize_encoder(encoder, Encoder(model), cases, options, print)


def test_values_that_float16_cannot_hold_stay_in_float32(encoder, photo):
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    (bias,) = [t for t in model.graph.initializer if t.name.endswith("patch_embed.seq.2.c.weight_bias")]
    loud = onnx.numpy_helper.to_array(bias) + np.float32(1e5)
    bias.CopyFrom(onnx.numpy_helper.from_array(loud, bias.name))
    feeds = {PIXEL_VALUES: all_encoder_feeds(photo, SMALL)[PIXEL_VALUES]}
    half, about = onnx_weights.to_float16(model, [feeds])
    assert about["largest"] > 65504
    assert about["kept_in_float32"]
    (found,) = open_model(half, "half")(feeds).values()
    (wanted,) = open_model(model, "model")(feeds).values()
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).mean() < 0.05 * wanted.std()


def test_nothing_to_measure_on(encoder):
    with pytest.raises(ConversionError, match="float16 needs photographs"):
        onnx_weights.to_float16(encoder, [])
    with pytest.raises(ConversionError, match="int8 needs photographs"):
        onnx_int8.quantize_encoder(encoder, None, [], Options("int8"), print)
