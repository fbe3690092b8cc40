"""A bundle of a few kilobytes that keeps the contract, for tests that need thousands of bundles."""

import hashlib
import io
import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.bundle import DEFAULT_BUNDLE, open_bundle
from pocketsam.runtime.contract import SPLIT_TENSORS
from pocketsam.runtime.verification import golden

SIDE = 64
LOW, CELLS = SIDE // 4, SIDE // 16
FILES = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "golden": "golden.npz"}


def model(inputs: dict[str, Any], outputs: dict[str, Any], nodes: list[Any], **weights: Any) -> bytes:
    """Returns an ONNX file; inputs and outputs are shapes by name."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in some.items()]
        for some in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", *values, tensors)
    opset = [helper.make_opsetid("", 18)]
    proto: ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return proto.SerializeToString()


def encoder() -> bytes:
    """Returns an encoder: means of 16 x 16 pixels, in 256 mixtures of the colours."""
    weight = np.random.default_rng(0).normal(size=(256, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node(
            "AveragePool", ["pixel_values"], ["means"], kernel_shape=[16, 16], strides=[16, 16]
        ),
        helper.make_node("Conv", ["means", "weight"], ["image_embeddings"]),
    ]
    outputs = {"image_embeddings": [1, 256, CELLS, CELLS]}
    return model({"pixel_values": [1, 3, SIDE, SIDE]}, outputs, nodes, weight=weight)


DECODER_INPUTS: dict[str, Any] = {
    "image_embeddings": [1, 256, CELLS, CELLS],
    "point_coords": ["B", "N", 2],
    "point_labels": ["B", "N"],
    "mask_input": ["M", 1, LOW, LOW],
    "has_mask_input": ["M"],
    "orig_im_size": [2],
}
DECODER_OUTPUTS: dict[str, Any] = {"iou_predictions": ["B", 4], "low_res_masks": ["B", 4, LOW, LOW]}


def decoder() -> bytes:
    """Returns a decoder: a picture of the embedding and the mask input, shifted by the prompt."""
    random = np.random.default_rng(1)
    tokens, features = SPLIT_TENSORS
    nodes = [
        ("ReduceMean", ["point_coords", "one"], ["place"], {"keepdims": 0}),
        ("ReduceMean", ["point_labels", "one"], ["label"], {"keepdims": 1}),
        ("Concat", ["place", "label"], ["prompt"], {"axis": 1}),
        ("Gemm", ["prompt", "weight", "bias"], ["shift"], {}),
        ("Sigmoid", ["shift"], ["iou_predictions"], {}),
        ("ReduceMean", ["image_embeddings", "one"], ["grey"], {"keepdims": 1}),
        ("ConvTranspose", ["grey", "spread"], ["picture"], {"strides": [4, 4]}),
        ("Reshape", ["has_mask_input", "column"], ["has"], {}),
        ("Mul", ["mask_input", "has"], ["mask"], {}),
        ("Add", ["picture", "mask"], ["both"], {}),
        ("Unsqueeze", ["shift", "last"], [tokens], {}),
        ("ReduceMean", [tokens, "one"], ["mean"], {"keepdims": 1}),
        ("Mul", ["mean", "nothing"], ["zeros"], {}),
        ("Add", ["both", "zeros"], [features], {}),
        ("Add", [features, tokens], ["low_res_masks"], {}),
    ]
    return model(
        DECODER_INPUTS,
        DECODER_OUTPUTS,
        [helper.make_node(kind, i, o, **options) for kind, i, o, options in nodes],
        one=np.array([1]),
        nothing=np.zeros(1, np.float32),
        column=np.array([-1, 1, 1, 1]),
        last=np.array([2, 3]),
        weight=(random.normal(size=(3, 4)) / 30).astype(np.float32),
        bias=np.zeros(4, np.float32),
        spread=random.normal(size=(1, 1, 4, 4)).astype(np.float32),
    )


def prompts() -> dict[str, np.ndarray]:
    """Returns the arrays of a golden file without the answers."""
    random = np.random.default_rng(2)
    click = np.array([[[20, 30]]], np.float32)
    one = np.ones((1, 1), np.float32)
    return {
        "image": random.integers(0, 255, (48, 60, 3), np.uint8),
        "point_point_coords": click,
        "point_point_labels": one,
        "box_boxes": np.array([[5, 6, 40, 45]], np.float32),
        "points_point_coords": np.concatenate([click, click + 9], axis=1),
        "points_point_labels": np.array([[1, 0]], np.float32),
        "refine_point_coords": click,
        "refine_point_labels": one,
        "refine_mask_inputs": random.normal(size=(1, 1, LOW, LOW)).astype(np.float32),
    }


def base() -> dict[str, Any]:
    """Returns the manifest of the package's bundle, changed to the size of this one."""
    manifest: dict[str, Any] = json.loads((DEFAULT_BUNDLE / "manifest.json").read_text())
    manifest |= {"image_size": SIDE, "also": {}}
    manifest["preprocessing"] |= {"input": "pixel_values"}
    for network, inputs, outputs in (
        ("encoder", {"pixel_values": [1, 3, SIDE, SIDE]}, {"image_embeddings": [1, 256, CELLS, CELLS]}),
        ("decoder", DECODER_INPUTS, DECODER_OUTPUTS),
    ):
        entry = manifest[network]
        for key, tensors in (("inputs", inputs), ("outputs", outputs)):
            entry[key] = [{"name": n, "shape": s, "dtype": "float32"} for n, s in tensors.items()]
        entry["stages"] = list(SPLIT_TENSORS) if network == "decoder" else []
    return manifest


def write(folder: Path, manifest: dict[str, Any], **files: bytes) -> Path:
    """Writes a bundle of some files, with their sizes and hashes; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = deepcopy(manifest)
    for part, data in files.items():
        (folder / FILES[part]).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest[part] |= {"file": FILES[part], "bytes": len(data), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_tiny(folder: Path, **changed: bytes) -> Path:
    """Writes the bundle with true golden answers; any of ``FILES`` may be another."""
    files = {"encoder": encoder(), "decoder": decoder(), "golden": b""}
    bundle = open_bundle(write(folder, base(), **files))
    arrays = prompts()
    networks = [open_network(bundle, name, "cpu", 1) for name in ("encoder", "decoder")]
    for name, answer in golden.answer_prompts(arrays, bundle.manifest, *networks).items():
        arrays |= {f"{name}_{key}": value for key, value in answer.items()}
        arrays |= {f"{name}_own_{key}": value for key, value in answer.items()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return write(folder, base(), **(files | {"golden": stream.getvalue()} | changed))


if __name__ == "__main__":
    print(write_tiny(Path(sys.argv[1])))
