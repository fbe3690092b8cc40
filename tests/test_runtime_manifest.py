"""The manifest: every field has its type, and what was read is written again."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pocketsam.errors import BundleError, IntegrityError
from pocketsam.runtime.manifest import SCHEMA_VERSION, Manifest
from pocketsam.runtime.verification.tolerance import Tolerance
from pocketsam.thresholds import Thresholds

WHERE = Path("bundle/manifest.json")


def tensor(name: str, *shape: int | str, **layout: str) -> dict[str, Any]:
    return {"name": name, **layout, "shape": list(shape), "dtype": "float32"}


TOLERANCE = {
    "error": 0.1,
    "snr_db": 40.0,
    "cosine": 0.9999,
    "score": 0.005,
    "mask_iou": 0.9,
    "mask_iou_mean": 0.98,
    "best_kept": 1.0,
}

ONNX: dict[str, Any] = {
    "schema_version": 2,
    "model": {
        "architecture": "mobile_sam",
        "checkpoint": "mobile_sam_512.safetensors",
        "checkpoint_sha256": "20" * 32,
        "trained": True,
    },
    "target": "onnx",
    "precision": "fp16",
    "image_size": 256,
    "preprocessing": {
        "input": "pixel_values",
        "color": "RGB",
        "layout": "NCHW",
        "resize": "longest side to image_size: int(side * scale + 0.5), at least 1",
        "filter": "bilinear with antialiasing (Pillow)",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "padding": "zeros on the right and below, after normalising",
    },
    "prompt_labels": {
        "absent": -2,
        "pad": -1,
        "background": 0,
        "foreground": 1,
        "box_first_corner": 2,
        "box_second_corner": 3,
    },
    "mask_threshold": 0.0,
    "tools": {"python": "3.11.7", "pocketsam": "0.1.0", "torch": "2.13.0+cpu", "onnx": "1.23.2"},
    "encoder": {
        "file": "encoder.onnx",
        "sha256": "9c" * 32,
        "bytes": 11711261,
        "macs": 3033825024,
        "float16": {"largest": 321.1, "largest_tensor": "matmul_18", "kept_in_float32": []},
        "opset": 20,
        "simplified": True,
        "stages": ["image_encoder.patch_embed", "image_encoder.layers.0.blocks.0"],
        "inputs": [tensor("pixel_values", 1, 3, 256, 256)],
        "outputs": [tensor("image_embeddings", 1, 256, 16, 16)],
    },
    "decoder": {
        "file": "decoder.onnx",
        "sha256": "ed" * 32,
        "bytes": 8322467,
        "macs": 134449664,
        "opset": 20,
        "simplified": True,
        "stages": ["mask_decoder.transformer.layers.1.1"],
        "inputs": [
            tensor("image_embeddings", 1, 256, 16, 16),
            tensor("point_coords", "B", "N", 2),
            tensor("point_labels", "B", "N"),
        ],
        "outputs": [tensor("masks", "B", 4, "H", "W"), tensor("iou_predictions", "B", 4)],
    },
    "golden": {"file": "golden.npz", "sha256": "f7" * 32, "bytes": 45122, "tolerance": TOLERANCE},
    "thresholds": {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.8},
    "grade": "close",
    "parity": {"passed": True, "runner": "onnxruntime", "rows": [{"tensor": "masks", "ok": True}]},
    "also": {"int8-weights": "5a" * 32},
}

TFLITE: dict[str, Any] = ONNX | {
    "target": "tflite",
    "encoder": {
        "file": "encoder.tflite",
        "sha256": "1d" * 32,
        "bytes": 23251668,
        "macs": 3033825024,
        "signature": "serving_default",
        "inputs": [tensor("pixel_values", 1, 256, 256, 3, layout="NHWC")],
        "outputs": [tensor("image_embeddings", 1, 16, 16, 256, layout="NHWC")],
    },
    "decoder": {
        "file": "decoder.tflite",
        "sha256": "48" * 32,
        "bytes": 16602468,
        "macs": 134449664,
        "signature": "serving_default",
        "points": 16,
        "inputs": [tensor("point_coords", 1, 16, 2)],
        "outputs": [tensor("low_res_masks", 1, 4, 64, 64, layout="NCHW")],
    },
    "golden": ONNX["golden"] | {"drift": dict(TOLERANCE)},
    "grade": None,
    "parity": None,
    "also": {},
}

COREML: dict[str, Any] = ONNX | {
    "target": "coreml",
    "encoder": ONNX["encoder"] | {"file": "encoder.mlpackage", "deployment_target": "iOS16"},
    "decoder": {
        "file": "decoder.mlpackage",
        "sha256": "76" * 32,
        "bytes": 8398083,
        "macs": 134449664,
        "deployment_target": "iOS16",
        "stages": ["mask_decoder.transformer.layers.0.0"],
        "inputs": [tensor("point_coords", 1, 16, 2)],
        "outputs": [tensor("iou_predictions", 1, 4)],
        "operations": {"add": 23, "cast": 9},
        "leaving_neural_engine": [{"operation": "cast", "count": 9, "why": "types change"}],
        "points": 16,
        "float16": {"largest": 1012.0, "limit": 65504.0},
    },
}

EXAMPLES = {"onnx": ONNX, "tflite": TFLITE, "coreml": COREML}

MAY_BE_MISSING = (
    "thresholds",
    "parity",
    "also",
    "grade",
    "drift",
    "macs",
    "stages",
    "points",
    "signature",
    "layout",
)
DETAILS = ("float16", "opset", "simplified", "deployment_target", "operations", "leaving_neural_engine")
"""What converters report is kept as it is."""


@pytest.mark.parametrize("target", EXAMPLES)
def test_what_was_read_is_written_again(target):
    value = EXAMPLES[target]
    written = Manifest.from_json(deepcopy(value), WHERE).to_json()
    assert written == value
    assert list(written) == list(value)
    assert json.loads(json.dumps(written, allow_nan=False)) == value
    if target != "coreml":  # the converter of Core ML wrote its keys in another order than the others
        assert json.dumps(written) == json.dumps(value)


def test_fields_have_types():
    manifest = Manifest.from_json(COREML, WHERE)
    assert manifest.decoder is manifest.network("decoder")
    assert manifest.decoder.max_points == 16
    assert manifest.encoder.max_points is None
    assert manifest.decoder.intermediates == ("mask_decoder.transformer.layers.0.0",)
    assert manifest.decoder.details["operations"]["cast"] == 9
    assert manifest.decoder.inputs[0].shape == (1, 16, 2)
    assert manifest.preprocessing.std == (58.395, 57.12, 57.375)
    assert manifest.golden.tolerance == Tolerance(**TOLERANCE)
    assert manifest.golden.drift is None
    assert manifest.grade == "close"
    assert manifest.also == {"int8-weights": "5a" * 32}
    assert Manifest.from_json(TFLITE, WHERE).encoder.inputs[0].layout == "NHWC"


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a JSON value that has a type of its own, as keys and indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if key not in DETAILS:
            yield (*path, key)
            if isinstance(inner, (dict, list)) and key != "parity":
                yield from fields(inner, (*path, key))


def name_of(path: tuple[Any, ...]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    return text.rsplit("[", 1)[0] if "shape" in path else text  # a shape is checked as a whole


def may_be_missing(path: tuple[Any, ...]) -> bool:
    return path[-1] in MAY_BE_MISSING and path[0] != "preprocessing"


def altered(value: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    copy = inner = deepcopy(value)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copy


EVERY_FIELD = [(target, path) for target, value in EXAMPLES.items() for path in fields(value)]


@pytest.mark.parametrize(("target", "path"), EVERY_FIELD, ids=str)
def test_a_wrong_type_is_refused_by_name(target, path):
    value = EXAMPLES[target]
    inner: Any = value
    for key in path:
        inner = inner[key]
    allowed = {type(inner)}
    if isinstance(inner, float):
        allowed.add(int)
    if path[-2:-1] == ("shape",):
        allowed = {int, str}
    if may_be_missing(path):
        allowed |= {type(None), dict} if path[-1] == "parity" else {type(None)}
    wrong = [new for new in ("x", 64, 1.5, True, None, [], {}) if type(new) not in allowed]
    assert len(wrong) >= 4
    for new in wrong:
        with pytest.raises(IntegrityError) as caught:
            Manifest.from_json(altered(value, path, new), WHERE)
        assert str(caught.value).startswith(f"{WHERE}: ")
        assert name_of(path) in str(caught.value)


NAMED_FIELDS = [
    (target, path)
    for target, path in EVERY_FIELD
    if isinstance(path[-1], str)
    and path[0] not in ("prompt_labels", "tools")
    and path[:-1] != ("also",)
]


@pytest.mark.parametrize(("target", "path"), NAMED_FIELDS, ids=str)
def test_a_missing_field_is_refused_by_name(target, path):
    value = deepcopy(EXAMPLES[target])
    inner: Any = value
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    if may_be_missing(path):
        assert Manifest.from_json(value, WHERE)
        return
    with pytest.raises(IntegrityError) as caught:
        Manifest.from_json(value, WHERE)
    assert f"{WHERE}: " in str(caught.value)
    assert name_of(path) in str(caught.value)


@pytest.mark.parametrize("size", [0, -64, 1, 100, 1023, 4096 + 64, 10**30])
def test_a_size_out_of_range(size):
    with pytest.raises(
        IntegrityError, match=f"image_size {size} is no multiple of 64, from 64 to 4096"
    ):
        Manifest.from_json(ONNX | {"image_size": size}, WHERE)


@pytest.mark.parametrize("size", [64, 512, 1024, 4096])
def test_a_size_in_range(size):
    assert Manifest.from_json(ONNX | {"image_size": size}, WHERE).image_size == size


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_number_that_is_not_finite(number):
    with pytest.raises(IntegrityError, match=r"golden\.tolerance\.score .*finite number"):
        Manifest.from_json(altered(ONNX, ("golden", "tolerance", "score"), number), WHERE)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_mean_and_deviation_are_of_three_channels(values):
    with pytest.raises(IntegrityError, match=r"preprocessing\.std .*3 numbers"):
        Manifest.from_json(altered(ONNX, ("preprocessing", "std"), values), WHERE)


@pytest.mark.parametrize("name", ["../x", "", "..", "a/b", "/etc/hostname", "./x"])
@pytest.mark.parametrize("path", [("encoder", "file"), ("golden", "file")], ids=name_of)
def test_a_name_that_leaves_the_bundle(path, name):
    with pytest.raises(IntegrityError, match=r"also .* leaves the bundle"):
        Manifest.from_json(ONNX | {"also": {name: "5a" * 32}}, WHERE)
    with pytest.raises(IntegrityError, match=rf"{path[0]}.* leaves the bundle"):
        Manifest.from_json(altered(ONNX, path, name), WHERE)


def test_a_manifest_of_the_first_schema():
    """Its golden vectors had a single number, and nothing bound the bundles inside."""
    old = ONNX | {"schema_version": 1, "also": ["int8-weights"]}
    del old["grade"]
    manifest = Manifest.from_json(altered(old, ("golden", "tolerance"), 0.15), WHERE)
    assert manifest.golden.tolerance is None
    assert manifest.also == {"int8-weights": ""}
    assert manifest.grade is None


def test_a_manifest_without_thresholds_means_sams():
    old = {key: value for key, value in ONNX.items() if key != "thresholds"}
    assert Manifest.from_json(old, WHERE).thresholds == Thresholds(0.88, 0.95)
    with pytest.raises(IntegrityError, match=r"must lie in 0\.\.1"):
        Manifest.from_json(altered(ONNX, ("thresholds", "pred_iou_thresh"), 1.5), WHERE)


def test_a_bundle_inside_is_named_by_its_hash():
    for wrong in ("", "5a", "x" * 64):
        with pytest.raises(IntegrityError, match=r"also\.fp16 is .*, no sha256"):
            Manifest.from_json(ONNX | {"also": {"fp16": wrong}}, WHERE)


def test_a_grade_that_is_none():
    with pytest.raises(IntegrityError, match="grade is 'fine'; known are equivalent, close, lossy"):
        Manifest.from_json(ONNX | {"grade": "fine"}, WHERE)


def test_a_newer_schema():
    says = (
        f"schema version {SCHEMA_VERSION + 1}, and this pocketsam reads up to {SCHEMA_VERSION}; upgrade"
    )
    with pytest.raises(BundleError, match=says) as caught:
        Manifest.from_json({"schema_version": SCHEMA_VERSION + 1}, WHERE)
    assert type(caught.value) is BundleError


@pytest.mark.parametrize("version", ["1", True, 0, -1, 1.0, None])
def test_a_schema_version_that_is_none(version):
    with pytest.raises(IntegrityError, match="schema_version"):
        Manifest.from_json(ONNX | {"schema_version": version}, WHERE)


@pytest.mark.parametrize("value", [None, 3, [], "x"])
def test_what_is_no_object(value):
    with pytest.raises(IntegrityError, match="the manifest"):
        Manifest.from_json(value, WHERE)


def test_unknown_fields():
    value = altered(ONNX | {"later": 1}, ("encoder", "later"), {"x": [1]})
    manifest = Manifest.from_json(value, WHERE)
    assert manifest.encoder.details["later"] == {"x": [1]}
    assert "later" not in manifest.to_json()
