"""Core ML: every precision verified through the interpreter, and every damage found by it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_pocketsam, run_pocketsam

from pocketsam.errors import BundleError, ConversionError, IntegrityError, PromptError, UsageError
from pocketsam.export import export, verify
from pocketsam.export.artefact import open_artefact
from pocketsam.export.bundle import describe_file
from pocketsam.export.cases import PROMPTS, compute_cases
from pocketsam.export.options import Options
from pocketsam.export.quantization.rounding import few_bit_layers, rounded_network
from pocketsam.export.reference import find_photos
from pocketsam.export.to_coreml import TARGET
from pocketsam.export.to_coreml import convert as to_coreml
from pocketsam.export.to_coreml.interpreter import load_package
from pocketsam.export.to_coreml.worker import exact_unique
from pocketsam.export.traced import Decoder, Encoder, PixelEncoder, StaticDecoder, run
from pocketsam.export.verification import parity
from pocketsam.models.sam import seeded
from pocketsam.runtime import Segmenter
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import call_by_call, fill_up
from pocketsam.runtime.bundle import hash_tree, open_bundle
from pocketsam.runtime.image import preprocess, preprocess_raw
from pocketsam.runtime.manifest import MANIFEST_NAME
from pocketsam.runtime.verification import golden
from pocketsam.runtime.verification.metrics import tensor_figures

ct = pytest.importorskip("coremltools")

SIZE = 128
SOURCE = "seeded:5"
LOSSY = [precision.name for precision in TARGET.precisions[1:]]


def export_coreml(path, pictures, source=SOURCE, **options):
    more = {"images": pictures, "force": True, "accept": "lossy"}
    if options.get("precision", "fp32") != "fp32":
        more["calibration"] = pictures
    report = export(source, path, target="coreml", image_size=SIZE, **more, **options)
    return report, json.loads((path / MANIFEST_NAME).read_text())


@pytest.fixture(scope="module")
def coreml(tmp_path_factory, pictures):
    path = tmp_path_factory.mktemp("coreml") / "bundle"
    export_coreml(path, pictures)
    return path


def compare(bundle, cases):
    return parity.verify(cases, open_artefact(open_bundle(bundle)))


@pytest.fixture(scope="module")
def cases(pictures):
    """Two prompts: damage to the encoder needs none, and one to the decoder shows at once."""
    return compute_cases(seeded(SIZE, 5), find_photos(pictures), prompts=PROMPTS[:2])


def test_the_bundle(coreml):
    manifest = json.loads((coreml / MANIFEST_NAME).read_text())
    assert manifest["target"] == "coreml"
    assert manifest["parity"]["passed"]
    assert "interpreter" in manifest["parity"]["runner"]
    assert manifest["decoder"]["points"] == 16
    intermediates = [row["tensor"] for row in manifest["parity"]["rows"] if row["part"] == "encoder"]
    assert intermediates[0] == "image_encoder.patch_embed"
    assert len(manifest["parity"]["rows"]) == 17 + 10 + 4
    assert max(row["error"] for row in manifest["parity"]["rows"] if "error" in row) <= 1e-4
    spec = ct.models.MLModel(str(coreml / "decoder.mlpackage"), skip_model_load=True).get_spec()
    assert [feature.name for feature in spec.description.output] == ["iou_predictions", "low_res_masks"]
    metadata = spec.description.metadata
    assert metadata.userDefined["com.github.pocketsam.checkpoint_sha256"]
    assert metadata.author
    assert "Apache" in metadata.license
    assert all(f.shortDescription for f in (*spec.description.input, *spec.description.output))
    assert sorted(path.name for path in coreml.iterdir()) == [
        "PocketSam.swift", "decoder.mlpackage", "encoder.mlpackage", "golden.npz", "manifest.json",
    ]  # fmt: skip


def test_golden_vectors_run_without_a_mac(coreml):
    """By the interpreter, as ``pocketsam verify`` of the exporter does."""
    results = verify(coreml)
    assert [result.prompt for result in results] == list(golden.PROMPTS)
    assert all(result.ok for result in results)
    done = call_pocketsam("verify", coreml)
    assert done.stdout.splitlines()[-1] == "OK: golden vectors: fp32 (equivalent)"


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    """From run to run: within one process, torch numbers its names on."""
    for name in ("one", "two"):
        args = ("--target", "coreml", "--image-size", 64, "--no-verify", "--output", tmp_path / name)
        assert run_pocketsam("export", SOURCE, *args).returncode == 0
    assert hash_tree(tmp_path / "one") == hash_tree(tmp_path / "two")


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param(name, marks=pytest.mark.slow)  # they are in `make parity`, which CI runs
        for name in LOSSY
    ],
)
def test_precisions(precision, pictures, coreml, tmp_path):
    report, manifest = export_coreml(tmp_path / "bundle", pictures, precision=precision)
    assert not report.failed
    whole = json.loads((coreml / MANIFEST_NAME).read_text())["encoder"]["bytes"]
    share = {"fp16": 0.52, "palette6": 0.24, "palette4": 0.19}.get(precision, 0.31)
    assert manifest["encoder"]["bytes"] < share * whole
    assert manifest["encoder"]["float16"]["largest"] < 65504 / 8
    assert manifest["encoder"]["float16"]["kept_in_float32"] == []
    if precision == "fp16":
        encoder, decoder = (
            {entry["operation"] for entry in manifest[half]["leaving_neural_engine"]}
            for half in ("encoder", "decoder")
        )
        assert encoder == {"cast"}
        assert decoder >= {"cast", "sin", "cos"}
        assert {"sin 0", "cos 0"} < set(manifest["decoder"]["float16"]["kept_in_float32"])


@pytest.mark.slow
def test_positions_of_points_are_in_float32(tmp_path):
    """float16 angles would be off by a hundredth and more."""
    options = TARGET.resolve(Options(precision="fp16"))
    network = to_coreml.traced_networks(seeded(SIZE, 5), options)["decoder"]
    cases = compute_cases(
        network.model, [("grey", np.full((96, 128, 3), 90, np.uint8))], prompts=PROMPTS[:1], detailed=0
    )
    converted = to_coreml.convert(network, tmp_path / "decoder.mlpackage", options, cases, {})
    assert {"sin 0", "cos 0"} < set(converted.details["float16"]["kept_in_float32"])
    program, _ = load_package(tmp_path / "decoder.mlpackage")
    (sine,) = (op.outputs[0].name for op in program.operations if op.op_type == "sin")
    feeds = fill_up(cases[0].prompts[0].feeds, *program.inputs[c.POINT_LABELS])
    found = program(feeds, also=[sine])[sine][0, :, 0]
    matrix = network.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.double().numpy()
    points = (feeds[c.POINT_COORDS][0].astype(np.float64) + 0.5) / SIZE
    assert np.abs(found.T - np.sin(2 * np.pi * (2 * points - 1) @ matrix)).max() < 1e-4


@pytest.mark.slow
def test_planned_layers_alone_have_8_bit_inputs(cases, tmp_path):
    found, converted = convert_encoder(seeded(SIZE, 5), cases, tmp_path, precision="int8")
    count = converted.details["int8"]["layers"]
    assert converted.details["operations"]["quantize"] == count > 0
    assert count + len(converted.details["int8"]["kept_in_float"]) == 40
    wanted = cases[0].outputs[c.IMAGE_EMBEDDINGS]
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > 35


@pytest.mark.slow
def test_palettes_hold_exactly_the_rounded_weights(cases, tmp_path, monkeypatch):
    """A table of 16 values for each weight that has few bits, and none of them moved."""
    kept = []

    def rounded(*arguments):
        kept.append(rounded_network(*arguments))
        return kept[0]

    monkeypatch.setattr("pocketsam.export.to_coreml.rounded.rounded_network", rounded)
    convert_encoder(seeded(SIZE, 5), cases, tmp_path, precision="palette4")
    program, _ = load_package(tmp_path / "encoder.mlpackage")
    stored = [x for x in program._constants.values() if isinstance(x, torch.Tensor) and x.ndim == 4]
    layers = few_bit_layers(kept[0].model)
    wanted = [m.weight.detach() for n, m in layers.items() if n.startswith("image_encoder")]
    assert len(wanted) > 30
    for weight in wanted:
        assert len(weight.unique()) <= 16
        assert any(
            x.shape[:2] == weight.shape and torch.equal(x[..., 0, 0].float(), weight) for x in stored
        )


@pytest.mark.slow
def test_palettes_of_few_values_are_counted_exactly():
    """On CPUs where numpy 2.3 sorts float16 wrongly, too."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(64).astype(np.float16)[rng.integers(0, 64, (50_000, 1))]
    with exact_unique():
        found, places = np.unique(values, axis=0, return_inverse=True)
        assert len(np.unique(values.ravel())) == len(found) == len(set(values.ravel().tolist()))
        assert np.unique(np.array([3, 1, 3])).tolist() == [1, 3]
    assert found.dtype == np.float16
    assert np.array_equal(found[places.ravel()], values)


def test_palettes_in_groups_on_ios18(cases, tmp_path):
    """Where a table holds for 16 channels, not for a whole weight."""
    found, _ = convert_encoder(
        seeded(SIZE, 5), cases, tmp_path, precision="palette6", deployment_target="iOS18"
    )
    wanted = cases[0].outputs[c.IMAGE_EMBEDDINGS]
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > 20
    package = ct.models.MLModel(str(tmp_path / "encoder.mlpackage"), skip_model_load=True)
    assert package.get_spec().specificationVersion == ct.target.iOS18
    groups = [
        op.inputs["lut"].arguments[0].value.type.tensorType.dimensions[0].constant.size
        for function in package.get_spec().mlProgram.functions.values()
        for op in next(iter(function.block_specializations.values())).operations
        if op.type == "constexpr_lut_to_dense"
    ]
    assert max(groups) > 1, groups


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", *LOSSY])
def test_a_picture_as_input(precision, pictures, tmp_path):
    report, manifest = export_coreml(tmp_path / "bundle", pictures, precision=precision, input="image")
    assert not report.failed
    assert [tensor["name"] for tensor in manifest["encoder"]["inputs"]] == ["image", "resized_size"]
    assert "CVPixelBuffer" in (tmp_path / "bundle/PocketSam.swift").read_text()


def convert_encoder(model, cases, tmp_path, **options):
    """The encoder alone in Core ML, run by the interpreter; and what the converter says of it."""
    chosen = TARGET.resolve(Options(**options))
    network, path = to_coreml.traced_networks(model, chosen)["encoder"], tmp_path / "encoder.mlpackage"
    converted = to_coreml.convert(network, path, chosen, cases, {})
    return to_coreml.load(path, "encoder")(cases[0].feeds)[c.IMAGE_EMBEDDINGS], converted


@pytest.mark.slow
def test_an_encoder_that_takes_a_picture(cases, tmp_path):
    found, converted = convert_encoder(seeded(SIZE, 5), cases, tmp_path, input="image")
    assert [tensor.name for tensor in converted.inputs] == ["image", "resized_size"]
    wanted = cases[0].outputs[c.IMAGE_EMBEDDINGS]
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()
    spec = ct.models.MLModel(str(tmp_path / "encoder.mlpackage"), skip_model_load=True).get_spec()
    assert spec.description.input[0].type.WhichOneof("Type") == "imageType"


def test_the_encoder_that_normalises_pads_as_sam_does(photo):
    model = seeded(64, seed=3)
    wanted, _ = run(Encoder(model), {c.PIXEL_VALUES: preprocess(photo, 64)})
    feeds = preprocess_raw(photo, 64)
    feeds[c.IMAGE][:, :, int(feeds[c.RESIZED_SIZE][0]) :] = 77  # what lies off the picture is ignored
    found, _ = run(PixelEncoder(model), feeds)
    assert np.allclose(found[c.IMAGE_EMBEDDINGS], wanted[c.IMAGE_EMBEDDINGS], atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16])
def test_absent_points_change_nothing(count):
    """A decoder with 16 places computes what PyTorch computes of ``count`` points: exactly N."""
    model, rng = seeded(64, seed=3), np.random.default_rng(count)
    feeds = {
        c.IMAGE_EMBEDDINGS: rng.standard_normal((1, 256, 4, 4), np.float32),
        c.POINT_COORDS: rng.uniform(0, 64, (2, count, 2)).astype(np.float32),
        c.POINT_LABELS: rng.integers(-1, 4, (2, count)).astype(np.float32),
        c.MASK_INPUT: rng.standard_normal((2, 1, 16, 16), np.float32),
        c.HAS_MASK_INPUT: np.array([0, 1], np.float32),
    }
    wanted, _ = run(Decoder(model), feeds)
    static = StaticDecoder(model, 16)
    found = call_by_call(lambda one: run(static, one)[0], 1, 16)(feeds)
    for key, array in wanted.items():
        assert np.abs(found[key] - array).max() < 1e-5 * array.std()
    if count == 16:
        with pytest.raises(PromptError, match=r"16 points .* at most 8; .*--max-points"):
            call_by_call(lambda one: one, 1, 8)(feeds)


def damaged(bundle, tmp_path, change):
    """A copy of a bundle whose encoder was changed, with a manifest that agrees to it."""
    copy = shutil.copytree(bundle, tmp_path / "copy")
    package = copy / "encoder.mlpackage"
    model = ct.models.MLModel(str(package), skip_model_load=True)
    change(package, model.get_spec())
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    manifest["encoder"] |= describe_file(package).to_json()
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    return copy


def every_operation(spec):
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def operations(spec, kind):
    return [op for op in every_operation(spec) if op.type == kind]


def constant(spec, name):
    return next(op for op in operations(spec, "const") if op.outputs[0].name == name)


def save(package, spec):
    (path,) = package.glob("Data/*/*.mlmodel")
    path.write_bytes(spec.SerializeToString())


def input_name(op, key):
    return op.inputs[key].arguments[0].name


def linear_layers(spec):
    """The 1×1 convolutions between a block's norms and shortcuts: they hold transposable weights."""
    makers = {value.name: op for op in every_operation(spec) for value in op.outputs}
    return [
        op
        for op in operations(spec, "conv")
        if shape(constant(spec, input_name(op, "weight")))[2:] == [1, 1]
        and makers[input_name(op, "x")].type in ("layer_norm", "reshape")
    ]


def change_weight(package, spec):
    """One value in 7 million."""
    op = linear_layers(spec)[5]
    offset = constant(spec, input_name(op, "weight")).attributes["val"].blobFileValue.offset
    (path,) = package.glob("Data/*/weights/weight.bin")
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[offset + 16 : offset + 24], "little")  # of the blob's own header
    values = np.frombuffer(data, np.float32, 4, start).copy()
    values[2] += 1.0
    data[start : start + 16] = values.tobytes()
    path.write_bytes(data)


def transpose_weight(package, spec):
    weights = [constant(spec, input_name(op, "weight")) for op in linear_layers(spec)]
    weight = next(weight for weight in weights if shape(weight)[0] == shape(weight)[1])
    value, side = weight.attributes["val"], shape(weight)[0]
    (path,) = package.glob("Data/*/weights/weight.bin")
    data = bytearray(path.read_bytes())
    offset = value.blobFileValue.offset
    start = int.from_bytes(data[offset + 16 : offset + 24], "little")
    matrix = np.frombuffer(data, np.float32, side * side, start).reshape(side, side).T.copy()
    data[start : start + matrix.nbytes] = matrix.tobytes()
    path.write_bytes(data)


def shape(op):
    return [d.constant.size for d in op.outputs[0].type.tensorType.dimensions]


def change_epsilon(package, spec):
    name = input_name(operations(spec, "layer_norm")[3], "epsilon")
    tensor = constant(spec, name).attributes["val"].immediateValue.tensor
    assert tensor.floats.values[0] == pytest.approx(1e-5)
    tensor.floats.values[0] = 1e-2
    save(package, spec)


def swap_axes(package, spec):
    name = input_name(operations(spec, "softmax")[0], "axis")
    constant(spec, name).attributes["val"].immediateValue.tensor.ints.values[0] = -2
    save(package, spec)


@pytest.mark.parametrize(
    ("change", "block"),
    [
        (change_weight, "layers.1.blocks.1"),
        (transpose_weight, "layers.1.blocks.0"),
        (change_epsilon, "layers.1.blocks.1"),
        (swap_axes, "layers.1.blocks.0"),
    ],
)
def test_verify_finds_damage(change, block, coreml, cases, tmp_path):
    """At the block whose operation was changed, and not before."""
    report = compare(damaged(coreml, tmp_path, change), cases)
    assert report.failed
    assert report.failed[0].name == f"encoder image_encoder.{block}"


def test_verify_passes_without_damage(coreml, cases, tmp_path):
    copy = damaged(coreml, tmp_path, lambda package, spec: save(package, spec))
    assert not compare(copy, cases).failed


def test_an_operation_that_is_not_simulated(coreml, cases, tmp_path):
    def change(package, spec):
        operations(spec, "gelu")[0].type = "gelu_of_the_future"
        save(package, spec)

    copy = damaged(coreml, tmp_path, change)
    with pytest.raises(ConversionError, match=r"encoder\.mlpackage: .*gelu_of_the_future"):
        compare(copy, cases)


def test_damage_that_the_manifest_does_not_know(coreml, cases, tmp_path):
    copy = shutil.copytree(coreml, tmp_path / "copy")
    (path,) = copy.glob("encoder.mlpackage/Data/*/weights/weight.bin")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"encoder\.mlpackage: sha256"):
        compare(copy, cases)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"encoder\.mlpackage: \d+ bytes, the manifest says"):
        compare(copy, cases)


def test_only_apples_systems_predict(coreml):
    with pytest.raises(BundleError, match="predicts on Apple's systems only"):
        Segmenter(coreml)


@pytest.mark.slow
def test_values_beyond_float16_stay_in_float32(pictures, tmp_path):
    """A network whose first layers reach 1e5: float16 throughout would be infinite."""
    model = seeded(SIZE, seed=5)
    with torch.no_grad():
        norm = model.image_encoder.patch_embed.seq[2].bn
        norm.weight *= 3e4
        norm.bias *= 3e4
    cases = compute_cases(model, find_photos(pictures), prompts=(), detailed=0)
    found, converted = convert_encoder(model, cases, tmp_path, precision="fp16")
    figures = tensor_figures(cases[0].outputs[c.IMAGE_EMBEDDINGS], found)
    assert not TARGET.precision("fp16").tolerance.violations(figures)
    about = converted.details["float16"]
    assert about["largest"] > 65504
    assert len(about["kept_in_float32"]) > 3
    why = [entry["why"] for entry in converted.details["leaving_neural_engine"]]
    assert any("kept in float32" in reason for reason in why)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8", "deployment_target": "iOS16"}, "int8 needs iOS17, not iOS16"),
        ({"precision": "int8-weights", "deployment_target": "iOS15"}, "needs iOS16"),
        ({"precision": "fp16", "deployment_target": "iOS9"}, "unknown deployment target 'iOS9'"),
        ({"precision": "int3"}, "coreml has no precision 'int3'"),
    ],
)
def test_what_cannot_be_asked_for(options, message, tmp_path, pictures):
    with pytest.raises(UsageError, match=message):
        export_coreml(tmp_path / "bundle", pictures, **options)
    assert list(tmp_path.iterdir()) == []


def test_options_of_another_target(tmp_path):
    for options in ({"input": "image"}, {"deployment_target": "iOS17"}, {"max_points": 16}):
        with pytest.raises(UsageError, match=r"onnx fp32 does nothing with --.*: it is for .*coreml"):
            export(SOURCE, tmp_path / "bundle", image_size=SIZE, **options)


def test_a_converter_that_takes_too_long(tmp_path, pictures):
    with pytest.raises(ConversionError, match=r"took longer than 0\.2 s.*its log: ") as caught:
        export_coreml(tmp_path / "bundle", pictures, timeout=0.2)
    log = str(caught.value).split("its log: ")[1]
    assert "to_coreml.worker" in Path(log).read_text()
    Path(log).unlink()
    assert list(tmp_path.iterdir()) == []
