"""The network with channels first: it computes what the network does, and its graph has the shape."""

import numpy as np
import pytest
import torch

from pocketsam.export.options import Options
from pocketsam.export.to_coreml import TARGET
from pocketsam.export.to_coreml import convert as to_coreml
from pocketsam.export.to_coreml.channels_first import (
    attend,
    channels_first,
    norm_channels,
    to_reference_layout,
)
from pocketsam.export.to_coreml.interpreter import load_package
from pocketsam.export.to_coreml.neural_engine import fallbacks
from pocketsam.export.traced import Decoder, Encoder, PixelEncoder, StaticDecoder, run
from pocketsam.models.sam import build, seeded
from pocketsam.models.tiny_vit import TinyViTBlock
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import call_by_call
from pocketsam.runtime.image import preprocess, preprocess_raw


def decoder_feeds(size, count, batch=2):
    rng, cells = np.random.default_rng(count), size // 16
    return {
        c.IMAGE_EMBEDDINGS: rng.standard_normal((1, 256, cells, cells), np.float32),
        c.POINT_COORDS: rng.uniform(0, size, (batch, count, 2)).astype(np.float32),
        c.POINT_LABELS: rng.integers(-1, 4, (batch, count)).astype(np.float32),
        c.MASK_INPUT: rng.standard_normal((batch, 1, size // 4, size // 4), np.float32),
        c.HAS_MASK_INPUT: np.arange(batch, dtype=np.float32) % 2,
    }


def same(wanted, found, tolerance):
    """Two (outputs, stages): the first of the plain network, the second with channels first."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert list(ours) == list(theirs)
        for name, array in theirs.items():
            other = to_reference_layout(name, ours[name])
            assert other.shape == array.shape, name
            assert np.abs(other - array).max() <= tolerance * array.std(), name


@pytest.mark.parametrize("size", [64, 128, 192, 256, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_encoder_and_its_stages(size, photo):
    """At 64 each grid is smaller than a window; 192 has windows of every kind: whole, cut, single."""
    model = seeded(size, seed=3)
    feeds = {c.PIXEL_VALUES: preprocess(photo, size)}
    wanted = run(Encoder(model), feeds)
    same(wanted, run(Encoder(channels_first(model)), feeds), 5e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16])
def test_the_decoder_with_places_that_are_not_used(count):
    """16 places, ``count`` points: what the plain decoder computes of exactly ``count`` points."""
    model, feeds = seeded(64, seed=3), decoder_feeds(64, count)
    wanted, _ = run(Decoder(model), feeds)
    static = StaticDecoder(channels_first(model), 16)
    found = call_by_call(lambda one: run(static, one)[0], 1, 16)(feeds)
    for name, array in wanted.items():
        assert np.abs(found[name] - array).max() <= 1e-5 * array.std()


@pytest.mark.parametrize("size", [64, 128, 1024])
def test_the_decoder_and_its_stages(size):
    """At 1024 the masks are computed in four strips."""
    model, feeds = seeded(size, seed=4), decoder_feeds(size, 5, batch=1)
    same(run(Decoder(model), feeds), run(Decoder(channels_first(model)), feeds), 5e-5)


def test_the_encoder_that_takes_a_picture(photo):
    model, feeds = seeded(64, seed=3), preprocess_raw(photo, 64)
    same(run(PixelEncoder(model), feeds), run(PixelEncoder(channels_first(model)), feeds), 5e-5)


def test_every_parameter_is_shared_and_the_network_untouched():
    model = seeded(64)
    before = [type(module) for module in model.modules()]
    twin = channels_first(model)
    assert [type(module) for module in model.modules()] == before
    for ours, theirs in ((twin.parameters, model.parameters), (twin.buffers, model.buffers)):
        assert all(a is b for a, b in zip(ours(), theirs(), strict=True))
    assert [n for n, _ in model.named_modules()] == [n for n, _ in twin.named_modules()]
    assert not twin.training


def test_padding_of_windows_takes_part():
    """The network pads before the attention's norm and does not mask; so does this form."""
    torch.manual_seed(0)
    model = seeded(64, seed=3)
    block = next(m for m in model.modules() if isinstance(m, TinyViTBlock))
    path = next(name for name, m in model.named_modules() if m is block)
    first = channels_first(model).get_submodule(path)
    x = torch.randn(2, 9, 16, block.attn.qkv.in_features)  # neither side a multiple of 7
    with torch.inference_mode():
        wanted, found = block(x), first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert torch.allclose(found, wanted, atol=1e-5)
        block.attn.norm.bias += 1  # what padding is to the attention: the biases are shared
        assert not torch.allclose(first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), wanted, atol=0.1)
        assert torch.allclose(first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), block(x), atol=1e-5)


@pytest.mark.parametrize("gain", [1.0, 1e-3, 1e-12, 0.0])
def test_a_norm_whose_weights_are_small_or_zero(gain):
    """The bias is divided by the weight and multiplied again: nothing may be lost by that."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(1, 6, 2, 5) * 4 + 1, torch.randn(6) * gain, torch.randn(6)
    weight[2] = 0
    found = norm_channels(x, weight, bias, 1e-5).permute(0, 2, 3, 1)
    wanted = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), weight, bias, 1e-5)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_attention_is_torchs_own():
    torch.manual_seed(2)
    q, k, v, bias = (torch.randn(2, 3, *s) for s in ((4, 5), (4, 7), (4, 7), (5, 7)))
    turned = [x.transpose(-2, -1) for x in (q, k, v)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*turned, bias).transpose(-2, -1)
    assert torch.allclose(attend(q, k, v, bias), wanted, atol=1e-6)


def test_a_teachers_encoder_stays_as_it_is():
    model = build("sam_vit_b", 64)
    twin = channels_first(model)
    kinds = [[type(m) for m in one.image_encoder.modules()] for one in (model, twin)]
    assert kinds[0] == kinds[1]
    assert type(twin.mask_decoder) is not type(model.mask_decoder)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Both forms of both halves as ML programs in float32: ``(form, half)`` to the program."""
    pytest.importorskip("coremltools")
    folder, model, found = tmp_path_factory.mktemp("programs"), seeded(64, seed=3), {}
    for form, network in (("plain", model), ("first", channels_first(model))):
        for half, traced in (("encoder", Encoder(network)), ("decoder", StaticDecoder(network, 4))):
            path = folder / f"{form}-{half}.mlpackage"
            to_coreml.convert(traced, path, TARGET.resolve(Options("fp32")), [], {})
            found[form, half] = load_package(path)[0]
    return found


@pytest.mark.slow
def test_the_shape_of_the_graph(programs):
    for half, transposes in (("encoder", 40), ("decoder", 1)):
        plain, first = programs["plain", half], programs["first", half]
        assert max(len(shape) for shape in first.shapes.values()) <= 4
        counts, before = first.count_operations(), plain.count_operations()
        assert counts["transpose"] == transposes < before["transpose"] / 1.7
        assert "linear" not in counts
        assert counts["layer_norm"] == before["layer_norm"]  # all were fused, none is left in pieces
        assert not {"reduce_mean", "rsqrt", "square"} & set(counts)
        assert sum(counts.values()) < sum(before.values())


@pytest.mark.slow
def test_norms_are_over_channels_and_attention_has_no_transposes(programs):
    for half in ("encoder", "decoder"):
        makers = {v.name: op for op in programs["first", half].operations for v in op.outputs}
        for op in programs["first", half].operations:
            if op.op_type == "layer_norm":
                assert list(op.axes.val) == [1]
            if op.op_type == "softmax":
                scores = makers[op.x.name]
                scores = makers[scores.x.name] if scores.op_type == "add" else scores
                assert scores.op_type == "matmul"
                assert scores.transpose_x.val
                assert {makers[v.name].op_type for v in (scores.x, scores.y)} <= {
                    "mul", "reshape", "split",
                }  # fmt: skip
                (after,) = op.outputs[0].child_ops
                assert after.op_type == "matmul"
                assert after.transpose_y.val


@pytest.mark.slow
def test_what_would_leave_the_neural_engine(programs):
    assert fallbacks(programs["first", "encoder"], "fp32")[0]["operation"] == "all"
    for half in ("encoder", "decoder"):
        why = {entry["why"] for entry in fallbacks(programs["first", half], "fp16")}
        # these programs are in float32, as operations are that float16 would overflow in
        assert any("float32" in reason for reason in why)
        assert not any("rank" in reason or "side" in reason for reason in why)
