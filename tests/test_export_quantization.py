"""Few bits: which layers have them, the grids of their values, and that files hold exactly those."""

import dataclasses
import math

import numpy as np
import onnx
import pytest
import torch
from conftest import SMALL, change_encoder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pocketsam.errors import ConversionError
from pocketsam.export import export
from pocketsam.export.cases import compute_cases
from pocketsam.export.options import Options
from pocketsam.export.quantization import plan as plans
from pocketsam.export.quantization.__main__ import LayerTable, main
from pocketsam.export.quantization.decisions import FEW_BITS, STATIC
from pocketsam.export.quantization.grids import Palette, Steps, round_nearest
from pocketsam.export.quantization.plan import (
    LayerCost,
    Simulator,
    choose,
    plan,
    static_encoder,
    to_db,
)
from pocketsam.export.quantization.prefix import Prefix
from pocketsam.export.quantization.rounding import (
    few_bit_layers,
    round_matrix,
    rounded_encoder,
    rounded_network,
    static_layers,
)
from pocketsam.export.quantization.simulation import (
    Rounding,
    Span,
    layers_of,
    quantized,
    round_activation,
)
from pocketsam.export.reference import Reference
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_onnx.int8 import LARGEST, linear_layers
from pocketsam.export.to_onnx.static import quantize_static
from pocketsam.export.traced import Encoder, count_macs
from pocketsam.models.checkpoint import DEFAULT
from pocketsam.models.sam import build, seeded
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.verification.golden import check_golden

SIZE = 64
W8A8 = Rounding(Steps(127))


@pytest.fixture(scope="module")
def model():
    return seeded(SIZE, 5)


@pytest.fixture(scope="module")
def cases(model, photo):
    return compute_cases(model, [("cat", photo), ("mirrored", photo[:, ::-1].copy())], detailed=0)


def dequantized(graph):
    """Constants by the name of the tensor that a DequantizeLinear makes of them, computed here."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            codes, scale = (constants[name].astype(np.float64) for name in node.input[:2])
            options = {a.name: a.i for a in node.attribute}
            if "block_size" in options:
                scale = scale.repeat(options["block_size"], axis=options["axis"])
            else:
                scale = np.expand_dims(scale, [i for i in range(codes.ndim) if i != options["axis"]])
            found[node.output[0]] = codes * scale
    return found


@pytest.mark.parametrize("grid", [Steps(7, 32), Steps(7, 16), Steps(63), Steps(127)], ids=repr)
@pytest.mark.parametrize("how", ["nearest", "feedback"])
def test_steps_can_be_found_again(grid, how):
    """A converter that knows only the values, and takes the widest for the last step, loses nothing."""
    torch.manual_seed(1)
    weight, inputs = torch.randn(24, 80), torch.randn(500, 80) @ torch.randn(80, 80)
    moments = inputs.T @ inputs
    rounded = round_nearest(weight, grid) if how == "nearest" else round_matrix(weight, moments, grid)
    size = grid.block or weight.shape[1]
    for block in rounded.split(size, dim=1):
        scale = block.abs().amax(1, keepdim=True) / grid.largest
        codes = block / scale
        assert (codes - codes.round()).abs().max() < 1e-4
        assert codes.abs().max() < grid.largest + 1e-4
    assert not torch.equal(rounded, weight)


@pytest.mark.parametrize("bits", [4, 6])
def test_a_palette_has_so_many_float16_values(bits):
    torch.manual_seed(2)
    weight = torch.randn(40, 64)
    rounded = round_nearest(weight, Palette(bits))
    assert len(rounded.unique()) == 2**bits
    assert torch.equal(rounded, rounded.half().float())
    uniform = round_nearest(weight.view(1, -1), Steps(2 ** (bits - 1) - 1)).view(weight.shape)
    assert (rounded - weight).square().mean() < (uniform - weight).square().mean()


@pytest.mark.parametrize("grid", [Steps(7, 32), Palette(4)], ids=repr)
def test_error_feedback_pays_where_inputs_are_alike(grid):
    torch.manual_seed(3)
    inputs = torch.randn(2000, 16) @ torch.randn(16, 64) + 0.3 * torch.randn(2000, 64)
    weight = torch.randn(32, 64)

    def loss(rounded):
        return float((inputs @ (rounded - weight).T).square().mean())

    with_feedback = loss(round_matrix(weight, inputs.T @ inputs, grid))
    assert with_feedback < 0.4 * loss(round_nearest(weight, grid))


def test_inputs_that_are_always_zero_are_no_trouble():
    inputs = torch.randn(100, 32)
    inputs[:, 3:9] = 0
    rounded = round_matrix(torch.randn(8, 32), inputs.T @ inputs, Steps(7, 32))
    assert bool(rounded.isfinite().all())


def test_activations_are_on_an_asymmetric_grid_that_holds_zero():
    span = Span(-0.17, 6.2)
    x = torch.tensor([-0.17, 0.0, 0.011, 3.0, 6.2, 99.0, -5.0])
    rounded = round_activation(x, span)
    assert rounded[1] == 0
    step = (6.2 + 0.17) / 255
    assert (rounded[:5] - x[:5]).abs().max() <= step / 2 + 1e-6
    assert rounded[5] == rounded[4]
    assert rounded[6] == rounded[0]
    assert Span(1.0, 2.0).grid()[1] == 0  # zero is on the grid although no value was


def test_a_pass_from_the_middle_is_the_whole_pass(model, cases):
    simulator, encoder = Simulator(model, cases), model.image_encoder
    prefix, ran = Prefix(encoder, simulator.pixels[0]), []
    parts = {name: module for name, module in encoder.named_modules() if not list(module.children())}
    handles = [
        part.register_forward_pre_hook(lambda *_, n=n: ran.append(n)) for n, part in parts.items()
    ]
    names = list(simulator.layers)
    for name in (names[0], names[5], names[-1]):
        whole = simulator.encode([name], W8A8, simulator.pixels[0])
        full, ran[:] = len(ran), []
        with prefix.starting_at(name):
            assert torch.equal(simulator.encode([name], W8A8, simulator.pixels[0]), whole)
        assert name in ran
        assert not [part for part in ran if part.startswith("patch_embed")]
        assert len(ran) < full
        ran.clear()
    simulator.encode([], W8A8, simulator.pixels[0])
    assert len(ran) == full  # the encoder is itself again
    for handle in handles:
        handle.remove()


def test_layers_stay_as_they_were(model, cases):
    simulator = Simulator(model, cases)
    before = {name: module.weight.clone() for name, module in simulator.layers.items()}
    assert simulator.noise([], W8A8) < 1e-10
    some = list(simulator.layers)[:3]
    noise = simulator.noise(some, W8A8)
    assert 1e-8 < noise < 1e-2
    with pytest.raises(ZeroDivisionError), quantized(simulator.layers, simulator.spans, W8A8):
        raise ZeroDivisionError
    assert simulator.noise([], W8A8) < 1e-10
    for name, module in simulator.layers.items():
        assert torch.equal(module.weight, before[name])
    assert simulator.noise(some, dataclasses.replace(W8A8, outputs=True)) > noise


def test_the_cheapest_layers_per_multiply_add_fit_the_budget():
    costs = [LayerCost("a", 10, 1e-5), LayerCost("b", 100, 2e-5), LayerCost("c", 10, 5e-5)]
    assert choose(costs, 40.0) == ["a", "b", "c"]
    assert choose(costs, -10 * math.log10(4e-5)) == ["a", "b"]
    assert choose(costs, -10 * math.log10(2.5e-5)) == ["b"]
    assert choose(costs, 60.0) == []
    assert to_db(1e-4) == pytest.approx(40)


def test_a_plan_keeps_its_budget(model, cases, monkeypatch):
    macs = count_macs(Encoder(model))
    everything = plan(model, cases, macs, outputs=False)
    assert everything.snr_db >= STATIC.min_snr_db
    tight = dataclasses.replace(STATIC, min_snr_db=everything.snr_db + 3)
    monkeypatch.setattr(plans, "STATIC", tight)
    part = plan(model, cases, macs, outputs=False)
    assert part.snr_db >= tight.min_snr_db
    assert 0 < part.share < everything.share
    assert part.left
    assert {*part.spans, *part.left} == set(layers_of(model.image_encoder, STATIC.kinds))
    monkeypatch.setattr(plans, "STATIC", dataclasses.replace(STATIC, min_snr_db=300.0))
    with pytest.raises(ConversionError, match="no layer bears 8-bit activations at 300 dB"):
        plan(model, cases, macs, outputs=False)
    with pytest.raises(ConversionError, match="photographs"):
        plan(model, [], macs, outputs=False)


def test_multiply_adds_are_those_of_torch(model, cases):
    simulator = Simulator(model, cases, (nn.Linear, nn.Conv2d))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.encode(simulator.pixels[0])
    counts = {str(op): count // 2 for op, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for op, count in counts.items() if "bmm" not in op)  # attention's aside
    assert sum(simulator.count_macs().values()) == products < sum(counts.values())


def test_which_layers_have_few_bits():
    model = build()
    names = few_bit_layers(model)
    assert {
        "image_encoder.layers.1.blocks.0.attn.qkv",
        "image_encoder.layers.3.blocks.1.mlp.fc2",
    } <= set(names)
    assert {
        "mask_decoder.transformer.layers.0.mlp.lin1",
        "mask_decoder.iou_prediction_head.layers.0",
    } <= set(names)
    assert not [n for n in names if "attn" in n and n.startswith("mask_decoder")]
    assert "image_encoder.head" not in names
    assert min(module.weight.numel() for module in names.values()) >= FEW_BITS.smallest
    assert len(static_layers(model)) == 40


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_onnx_file_holds_exactly_the_rounded_weights(part, model, cases, tmp_path, monkeypatch):
    network = to_onnx.traced_networks(model, Options())[part]
    before = [parameter.clone() for parameter in network.model.parameters()]
    kept = []

    def rounded(*arguments):
        kept.append(rounded_network(*arguments))
        return kept[0]

    monkeypatch.setattr("pocketsam.export.to_onnx.rounded.rounded_network", rounded)
    to_onnx.convert(network, tmp_path / "file.onnx", Options("int4-weights"), cases)
    graph = onnx.load(tmp_path / "file.onnx").graph
    stored = [
        v
        for n, v in dequantized(graph).items()
        if any(t.name == f"{n}_int4" for t in graph.initializer)
    ]
    wanted = [m.weight.detach().numpy().T for m in few_bit_layers(kept[0].model).values()]
    wanted = [w for w in wanted if (w.size > 0 and part == "encoder") or w.shape[0] in (256, 2048)]
    found = sum(
        any(s.shape == w.shape and np.allclose(s, w, atol=1e-6) for s in stored) for w in wanted
    )
    assert found == len(stored) >= (30 if part == "encoder" else 4)
    for old, new in zip(before, network.model.parameters(), strict=True):
        assert torch.equal(old, new)  # the network that was given stays as it is


def test_error_feedback_pays_in_8_bits(cases, model):
    """Weights alone, all linear layers: nearer to the float encoder than each rounded by itself."""
    network = Encoder(model)
    simulator = Simulator(model, cases)
    nearest = simulator.noise(list(simulator.layers), Rounding(Steps(127), inputs=False))
    rounded = Simulator(rounded_encoder(network, cases, 0, print).model, cases)
    assert rounded.noise([], W8A8) < 0.8 * nearest


def test_encoders_without_error_feedback_stay_as_they_are(cases):
    network = Encoder(seeded(SIZE, 5, "hed_teacher"))
    assert rounded_encoder(network, cases, 0, print) is network


def steps_of(weight):
    """The number of steps, 63 or 127, that a weight lies on; None for neither."""
    weight = weight.detach()
    for largest in (63, 127):
        codes = weight / (weight.abs().amax(1, keepdim=True) / largest)
        if float((codes - codes.round()).abs().max()) < 1e-3:
            return largest
    return None


@pytest.mark.parametrize("smallest", [0, 33_000, math.inf])
def test_each_weight_is_the_one_that_the_file_holds(smallest, cases, model, monkeypatch):
    """Of 8-bit products 63 steps, of other layers 127, or as it was where the file has floats."""
    some = dataclasses.replace(STATIC, min_snr_db=40.0)
    monkeypatch.setattr(plans, "STATIC", some)
    network, sizes = Encoder(model), {"smallest": smallest, "largest": 63}
    found, planned = static_encoder(network, cases, outputs=True, **sizes)
    assert planned.left
    assert planned.spans
    before = static_layers(model)
    for name, layer in static_layers(found.model).items():
        if name.removeprefix("image_encoder.") in planned.spans:
            assert steps_of(layer.weight) == 63
        elif layer.weight.numel() >= smallest:
            assert steps_of(layer.weight) == 127
        else:
            assert torch.equal(layer.weight, before[name].weight)
            assert steps_of(layer.weight) is None
    chosen, how = list(planned.spans), Rounding(outputs=True)
    again = Simulator(model, cases)
    again._model = found.model
    again.layers = layers_of(found.model.image_encoder, STATIC.kinds)
    assert to_db(again.noise(chosen, how)) == pytest.approx(planned.snr_db, abs=0.2)


def test_layers_that_seem_to_cost_nothing_do_not_keep_the_plan_waiting(cases, model, monkeypatch):
    """A budget that no layer exceeds, and an encoder that misses the floor without any of them."""
    monkeypatch.setattr(Simulator, "noise", lambda *_: 1e-4)
    with pytest.raises(
        ConversionError, match=r"no layer bears .* without any, the embedding has 40\.0 dB"
    ):
        plan(model, cases, 1, outputs=False)


def test_static_layers_in_onnx_and_in_openvino(model, cases, tmp_path):
    """OpenVINO's own account of what it runs: as many products of 8-bit numbers as there are layers."""
    network = to_onnx.traced_networks(model, Options())["encoder"]
    converted = to_onnx.convert(network, tmp_path / "e.onnx", Options("int8-static"), cases)
    file = onnx.load(tmp_path / "e.onnx")
    count = converted.details["int8"]["layers"]
    assert count + len(converted.details["int8"]["kept_in_float"]) == 40
    assert sum(node.op_type == "QuantizeLinear" for node in file.graph.node) == count > 10
    codes = [
        onnx.numpy_helper.to_array(t) for t in file.graph.initializer if t.name.endswith("_weight_int8")
    ]
    assert len(codes) == count
    assert max(int(np.abs(c.astype(int)).max()) for c in codes) == LARGEST
    found = to_onnx.load((tmp_path / "e.onnx").read_bytes(), "encoder")(cases[0].feeds)[
        "image_embeddings"
    ]
    wanted = cases[0].outputs["image_embeddings"]
    snr = 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum())
    assert snr > 30  # convolutions have 8-bit weights too

    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(tmp_path / "e.onnx"), "CPU")
    kinds = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    eight = [k for k in kinds if str(k["layerType"].astype(str)) in ("FullyConnected", "MatMul")
             and str(k["runtimePrecision"].astype(str)) in ("u8", "i8")
             and "8" in str(k["primitiveType"].astype(str))]  # fmt: skip
    assert len(eight) == count


def test_a_graph_that_lacks_a_layer(model, cases):
    network = to_onnx.traced_networks(model, Options())["encoder"]
    graph, _ = to_onnx._trace_float(network)
    planned = plan(model, cases, count_macs(network), outputs=False)
    spans = {"layers.9.mlp": next(iter(planned.spans.values()))}
    with pytest.raises(ConversionError, match=r"no linear layer layers\.9\.mlp"):
        quantize_static(graph, dataclasses.replace(planned, spans=spans))
    assert len(linear_layers(graph)) == 40


@pytest.mark.slow
def test_a_bundle_in_static_8_bits(pictures, tmp_path):
    export(DEFAULT, tmp_path / "b", precision="int8-static", image_size=SMALL, images=pictures,
           calibration=pictures)  # fmt: skip
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.grade == "close"
    assert manifest.encoder.details["int8"]["share_of_macs"] > 0.3
    assert all(result.ok for result in check_golden(tmp_path / "b"))
    change_encoder(tmp_path / "b", tmp_path / "damaged")
    assert not all(result.ok for result in check_golden(tmp_path / "damaged"))


def test_the_table_of_layers(pictures, capsys):
    table = LayerTable(Reference("seeded:5", SIZE, calibration=pictures[:1]))
    kinds = table.kinds()
    assert [len(kinds[f"all {kind}"]) for kind in ("qkv", "proj", "fc1", "fc2")] == [10] * 4
    assert sum(map(len, kinds.values())) == 69
    few, all_ = table.row("one", kinds["all qkv"][:1]), table.row("all", kinds["all qkv"])
    numbers = [[float(cell.strip(" %")) for cell in row.split("|")[2:-1]] for row in (few, all_)]
    assert numbers[0][0] < numbers[1][0]  # multiply-adds
    assert all(one > many for one, many in zip(numbers[0][1:5], numbers[1][1:5], strict=True))  # dB
    assert main(["nothing.pt"]) == 1
    assert "nothing.pt" in capsys.readouterr().err
