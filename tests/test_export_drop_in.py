"""Files for other tools: their graphs, and whole directories compared with PyTorch."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import call_pocketsam

from pocketsam.errors import BundleError, ParityError, UsageError
from pocketsam.export.bundle import describe_file
from pocketsam.export.drop_in import check, export_for, graphs, weights
from pocketsam.export.drop_in.join import join
from pocketsam.export.drop_in.one_file import SquareNetwork
from pocketsam.export.drop_in.tools import TOOLS, find_tool
from pocketsam.export.drop_in.write import RECORD, write_drop_in
from pocketsam.export.reference import Reference
from pocketsam.models.checkpoint import DEFAULT
from pocketsam.models.image_encoder_vit import ImageEncoderViT
from pocketsam.models.sam import ARCHITECTURES, build
from pocketsam.runtime.image import preprocess

SIDE = 64
OWN_CANVAS = [name for name, tool in TOOLS.items() if tool.canvas is None]
OWN_CANVAS.remove("image-segmenter")  # for Core AI, with which it is tested


def run(model, **feeds):
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, feeds)


@pytest.fixture(scope="module")
def reference(pictures):
    return Reference(DEFAULT, SIDE, images=pictures, calibration=pictures)


@pytest.mark.parametrize("dtype", ["float", "uint8"])
@pytest.mark.parametrize("layout", ["HWC", "NCHW"])
def test_a_picture_in_the_frame_becomes_what_sam_wants(layout, dtype, photo):
    picture = check.to_frame(photo, SIDE)
    given = picture.transpose(2, 0, 1)[None] if layout == "NCHW" else picture
    given = given.astype(np.float32 if dtype == "float" else np.uint8)
    (found,) = run(graphs.picture_graph("image", layout, dtype, SIDE, SIDE), image=given)
    assert np.abs(found - preprocess(photo, SIDE)).max() < 1e-5


def test_a_larger_frame_is_scaled_with_antialiasing():
    picture = np.random.default_rng(0).integers(0, 255, (100, 256, 3), np.uint8)
    graph = graphs.picture_graph("image", "HWC", "uint8", SIDE, 256)
    (found,) = run(graph, image=picture)
    wanted = check._canvas(check.torch.from_numpy(picture), SIDE, 256).numpy()
    assert found.shape == (1, 3, SIDE, SIDE)
    assert np.abs(found - wanted).max() < 1e-3
    assert found[0, 0, :25].std() < 0.5  # noise that was averaged, not picked
    assert not found[:, :, 25:].any()


def prompts(labels, adds_point, mask_side=None, **more):
    shapes = {"points": "float[B, N, 2]", "labels": "float[B, N]"}
    graph = graphs.prompt_graph(shapes, SIDE, 256, mask_side=mask_side, adds_point=adds_point)
    labels = np.array(labels, np.float32)
    points = np.arange(2 * labels.size, dtype=np.float32).reshape(*labels.shape, 2)
    return run(graph, points=points, labels=labels, **more)


def test_points_get_sams_own_point_and_boxes_do_not():
    xy, kinds, mask, given = prompts([[1, 0], [2, 3]], adds_point=True)
    assert kinds.tolist() == [[1, 0, -1], [2, 3, -2]]
    assert xy[1].tolist() == [[1, 1.25], [1.5, 1.75], [0, 0]]
    assert not mask.any()
    assert not given.any()
    _, kinds, _, _ = prompts([[1, 0, -1], [2, 3, -1]], adds_point=False)
    assert kinds.tolist() == [[1, 0, -1], [2, 3, -2]]


def test_a_mask_input_of_another_side_is_scaled():
    given = np.kron(np.random.default_rng(1).normal(size=(1, 1, 16, 16)), np.ones((16, 16)))
    inputs = {"mask_input": given.astype(np.float32), "has_mask_input": np.ones(1, np.float32)}
    _, _, mask, has_mask = prompts([[1, -1]], False, 256, **inputs)
    assert np.allclose(mask[0, 0], given[0, 0, ::16, ::16], atol=1e-6)
    assert has_mask.tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "given", "chosen"),
    [
        ([1, -1], 0, 2),
        ([1], 0, 2),
        ([1, -1], 1, 0),
        ([1, 0, -1], 0, 0),
        ([2, 3, -2], 0, 0),
        ([2, 3, 1], 0, 0),
    ],
)
def test_only_a_single_click_gets_the_best_of_three(labels, given, chosen):
    scores = np.array([[0.9, 0.1, 0.8, 0.3]], np.float32)
    masks = np.random.default_rng(2).normal(size=(1, 4, 16, 16)).astype(np.float32)
    kinds = np.array([labels], np.float32)
    score, mask = run(
        graphs.choice_graph(SIDE), scores=scores, masks=masks, kinds=kinds, given=np.float32([given])
    )
    assert score.tolist() == [[scores[0, chosen]]]
    assert np.array_equal(mask[0, 0], masks[0, chosen])


def test_a_mask_is_cropped_to_its_box():
    logits = np.full((1, 1, 9, 11), -1, np.float32)
    pixels, *corners = run(graphs.crop_graph(), logits=logits)
    assert [int(n[0]) for n in corners] == [0, 0, 0, 0]
    assert pixels.tolist() == [[[[0]]]]
    logits[0, 0, 2:5, 3:7], logits[0, 0, 3, 4] = 1, -1
    pixels, *corners = run(graphs.crop_graph(), logits=logits)
    assert [int(n[0]) for n in corners] == [3, 2, 6, 4]
    assert pixels[0, 0].tolist() == [[255] * 4, [255, 0, 255, 255], [255] * 4]


def test_graphs_of_the_same_names_are_not_joined():
    one = graphs.crop_graph()
    with pytest.raises(ValueError, match=r"both graphs have .*crop"):
        join(one, graphs.crop_graph(), {"logits": "pixels"})


@pytest.mark.parametrize("name", OWN_CANVAS)
def test_a_directory_for_a_tool(name, reference, tmp_path):
    tool, output = find_tool(name), tmp_path / "for-tool"
    agreement = write_drop_in(reference, output, tool, "fp32")
    assert agreement.worst[1] > 0.99
    assert len(agreement.ious) == 4 * (len(reference.photos) + 3)
    record = json.loads((output / RECORD).read_text())
    assert record["tool"] == name
    assert record["mask_iou"]["worst"] == round(agreement.worst[1], 5)
    for file, entry in record["files"].items():
        described = describe_file(output / file)
        assert entry == {"sha256": described.sha256, "bytes": described.bytes}
        onnx.checker.check_model(onnx.load(output / file), full_check=True)
        if name == "opencv":
            check_opencv_4_reads(onnx.load(output / file).graph)
    for file in tool.files:
        text = (output / file).read_text()
        assert "$" not in text, file
        if file.endswith(".json"):
            json.loads(text)
        if file.endswith(".py"):
            compile(text, file, "exec")
    with pytest.raises(BundleError, match="exists; --force replaces it"):
        write_drop_in(reference, output, tool, "fp32")
    if name == "rembg":
        assert write_drop_in(reference, output, tool, "fp32", force=True).ious == agreement.ious


def test_a_checkpoints_name_does_no_harm(reference, tmp_path, monkeypatch):
    """It stands in YAML and Python of other tools."""
    name = 'run #3: "best" \\u.pt'
    named = dataclasses.replace(reference.loaded, name=name)
    monkeypatch.setattr(reference, "loaded", named)
    write_drop_in(reference, tmp_path / "osam", find_tool("osam"), "fp32")
    (script,) = (tmp_path / "osam").glob("*.py")
    assert "MobileSAM for osam: run _3_ _best_ _u.pt" in script.read_text()
    compile(script.read_text(), str(script), "exec")
    assert json.loads((tmp_path / "osam" / RECORD).read_text())["checkpoint"] == Path(name).name


def test_wrong_files_are_not_written(reference, tmp_path, monkeypatch):
    """A decoder that is right for clicks, and takes boxes for clicks."""
    monkeypatch.setattr(graphs, "BOX", 9.5)
    with pytest.raises(ParityError, match=r"rembg 2\.0, .*box.*: mask IoU .* with PyTorch's, 0\.99"):
        write_drop_in(reference, tmp_path / "out", find_tool("rembg"), "fp32")
    assert list(tmp_path.iterdir()) == []


def test_opencv_pads_to_six_points(reference):
    """Padding changes nothing; SAM's own point is there for points, and not for a box."""
    network = SquareNetwork(reference.loaded.model, 256)
    points, labels = np.zeros((1, 1, 6, 2)), np.full((1, 1, 6, 1), -1)
    points[0, 0, :2], labels[0, 0, :2, 0] = [[100, 40], [200, 250]], [1, 0]
    xy, kinds = network._prompt(*(torch.tensor(x, dtype=torch.float32) for x in (points, labels)))
    assert xy[0].tolist() == [[25, 10], [50, 62.5]] + [[0, 0]] * 5
    assert kinds[0].tolist() == [1, 0, -2, -2, -2, -2, -1]
    labels[0, 0, :2, 0] = [2, 3]
    _, kinds = network._prompt(*(torch.tensor(x, dtype=torch.float32) for x in (points, labels)))
    assert kinds[0].tolist() == [2, 3, -2, -2, -2, -2, -2]
    assert network.padding_mask(kinds)[0].tolist() == [0, 0, 1, 1, 1, 1, 1]


def check_opencv_4_reads(graph):
    """It reads no Unsqueeze of several axes, and no shape that depends on the input."""
    assert not {node.op_type for node in graph.node} & {"Unsqueeze", "Squeeze", "Shape", "Expand"}
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert shapes == [[1, 3, 1024, 1024], [1, 1, 6, 2], [1, 1, 6, 1], [1, 1, 3, 1024, 1024], [1, 1, 3]]


@pytest.mark.parametrize("name", ["isat", "label-studio"])
def test_weights_that_mobilesam_itself_loads(name, reference, mobile_sam, tmp_path):
    agreement = write_drop_in(reference, tmp_path / "out", find_tool(name), "fp32")
    assert agreement.worst[1] == 1
    path = tmp_path / "out/mobile_sam.pt"
    official = mobile_sam.sam_model_registry["vit_t"](checkpoint=str(path))  # strict
    for key, tensor in reference.loaded.model.state_dict().items():
        assert torch.equal(official.state_dict()[key], tensor), key
    assert str(path.stat().st_size)[:2] == "40"
    assert "mobile_sam.pt" in (tmp_path / "out/README.md").read_text()


def test_wrong_weights_are_not_written(reference, tmp_path, monkeypatch):
    def save_rounded(path, state):
        torch.save({key: tensor.bfloat16() for key, tensor in state.items()}, path)
        rounded = torch.load(path)
        rounded["mask_decoder.iou_token.weight"] *= 9
        rounded["mask_decoder.mask_tokens.weight"] *= 9
        torch.save(rounded, path)

    monkeypatch.setattr(weights, "save_tensors", save_rounded)
    with pytest.raises(ParityError, match=r"ISAT 1\.5, .*: mask IoU .* with PyTorch's, 0\.99"):
        write_drop_in(reference, tmp_path / "out", find_tool("isat"), "fp32")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_replaced(reference, tmp_path):
    (tmp_path / "sam_vit_b_01ec64.encoder.onnx").write_bytes(b"another model")
    with pytest.raises(BundleError, match="holds other files; choose a new directory"):
        write_drop_in(reference, tmp_path, find_tool("rembg"), "fp32", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["sam_vit_b_01ec64.encoder.onnx"]


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        ("gimp", {}, "unknown tool 'gimp'; known are anylabeling, "),
        (
            "rembg",
            {"precision": "fp16"},
            r"rembg 2\.0 does not run fp16; choose --precision fp32 or int8",
        ),
        ("opencv", {"precision": "int8"}, "zoo does not run int8; choose --precision fp32"),
        ("isat", {"precision": "int8"}, r"ISAT 1\.5 does not run int8; choose --precision fp32"),
        ("cvat", {"image_size": 512}, "a canvas of 1024 only, not of 512; give --image-size 1024"),
        ("isat", {"image_size": 512}, "a canvas of 1024 only, not of 512; give --image-size 1024"),
    ],
)
def test_what_a_tool_cannot_take(tool, options, message, tmp_path):
    steps = []
    with pytest.raises(UsageError, match=message):
        export_for(tool, DEFAULT, tmp_path / "out", **options, progress=steps.append)
    assert not [step for step in steps if step.startswith(("converting", "writing", "computing"))]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "tool", "message"),
    [
        (
            "sam_vit_b",
            "isat",
            r"ISAT 1\.5 builds mobile_sam .* the checkpoint is sam_vit_b; choose another",
        ),
        ("sam_vit_b", "label-studio", "backend builds mobile_sam .* the checkpoint is sam_vit_b"),
        (
            "lite_medsam",
            "rembg",
            "prepares pictures as SAM does, and this network wants them otherwise",
        ),
    ],
)
def test_a_checkpoint_that_a_tool_cannot_take(architecture, tool, message, tmp_path, monkeypatch):
    if architecture == "sam_vit_b":  # at its own size it has 90 million weights
        narrow = partial(ImageEncoderViT, 96, 2, 3, (1,), 256)
        monkeypatch.setitem(ARCHITECTURES, architecture, narrow)
    torch.save(build(architecture, 256).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=message):
        export_for(tool, tmp_path / "weights.pt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_options_that_do_nothing(tmp_path):
    done = call_pocketsam(
        "export", DEFAULT, "--for", "rembg", "--target", "tflite", "--output", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "--for does nothing with --target" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_tool_that_reads_one_canvas_gets_it(tmp_path):
    """Where no --image-size is given: our checkpoint's own is 512."""
    done = call_pocketsam("export", DEFAULT, "--for", "isat", "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / RECORD).read_text())["image_size"] == 1024
    assert min(json.loads(done.stdout)["mask_iou"].values()) == 1
