"""Core AI: converted by Apple's packages, run by its own executor, refused where it is not right."""

import hashlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from shallow import (
    SIZE,
    changes_constants,
    damaged,
    finds_damages,
    replaced,
    shallow_reference,
    verify,
    write,
)

from pocketsam.cli import main
from pocketsam.errors import BundleError, IntegrityError, ParityError, PocketSamError
from pocketsam.export import check_anywhere
from pocketsam.export.drop_in.tools import find_tool
from pocketsam.export.drop_in.write import write_drop_in
from pocketsam.export.options import Options
from pocketsam.export.to_coreai import TARGET, convert
from pocketsam.export.to_coreai.environment import COREAI, PROGRAMS
from pocketsam.export.to_coreai.networks import HalfEncoder
from pocketsam.export.traced import run_outputs
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.manifest import MANIFEST_NAME

try:
    COREAI.python()
    HAVE_COREAI = True
except PocketSamError:
    HAVE_COREAI = False
needs_coreai = pytest.mark.skipif(not HAVE_COREAI, reason="no Core AI: run `make coreai-env`")


@pytest.fixture(scope="module")
def reference(pictures):
    return shallow_reference(pictures)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, reference):
    path = tmp_path_factory.mktemp("coreai") / "bundle"
    write(reference, path, TARGET, Options("fp32", max_points=10, prompts_per_call=3))
    return path


@needs_coreai
def test_the_bundle(bundle, capsys):
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    assert manifest["grade"] == "equivalent"
    assert manifest["parity"]["runner"].startswith("Apple's Core AI executor (coreai-core 1.0.0b3)")
    assert manifest["tools"]["coreai-core"] == COREAI.version
    assert manifest["encoder"]["operations"]["conv2d"] > 10
    assert manifest["decoder"]["inputs"][1]["shape"] == [3, 10, 2]
    compared = {row["tensor"] for row in manifest["parity"]["rows"]}
    assert {"image_encoder.layers.2.blocks.0", "mask_decoder.output_upscaling"} <= compared
    assert main(["verify", str(bundle)]) == 0
    assert "golden" in capsys.readouterr().out
    about = json.loads((bundle / "encoder.aimodel/metadata.json").read_text())
    assert "seeded:11" in about["description"]
    assert about["creationDate"].startswith("1970")


@needs_coreai
def test_apples_rules(bundle):
    """What is counted as broken is what the operations, counted by themselves, say."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    for half in ("encoder", "decoder"):
        counts, operations = Counter(), manifest[half]["operations"]
        for entry in manifest[half]["neural_engine_rules"]:
            counts[entry["rule"]] += entry["count"]
        assert counts["softmax along height or width"] == operations["softmax"] > 0
        assert 0 < counts["several heads in one product"] <= operations["broadcasting_batch_matmul"]
        assert counts["a norm in steps"] == operations["reduce_mean"] + operations["rsqrt"]
        assert counts["computed in float32"] > operations["conv2d"]
        assert "a comparison" not in counts
        assert any("a norm in steps" in note for note in manifest[half]["notes"])
    narrow = {e["where"]: e["padded_bytes"] for e in manifest["decoder"]["neural_engine_rules"]}
    assert narrow["output iou_predictions"] == 3 * (64 - 4 * 4)  # three prompts, four float32
    assert narrow["input point_coords"] == 3 * 10 * (64 - 2 * 4)


def sealed(path):
    """Writes the hash of an edited program, as a converter would have."""
    program = (path / "main.mlirb").read_bytes()
    (path / "main.hash").write_bytes(hashlib.sha256(program).digest())


@needs_coreai
def test_changed_weights_fail_parity_and_golden_vectors(bundle, reference, tmp_path):
    weight = reference.loaded.model.mask_decoder.output_hypernetworks_mlps[0].layers[1].weight
    old = weight.detach().numpy()
    edit = replaced(old, 1.5 * old)
    changed = damaged(bundle, tmp_path / "one", "decoder", edit, "main.mlirb")
    with pytest.raises(BundleError, match="its program is not the one of its hash"):
        check_anywhere(changed)
    sealed(changed / "decoder.aimodel")
    with pytest.raises(IntegrityError):
        check_anywhere(changed)
    changed = damaged(changed, tmp_path / "two", "decoder", lambda data: data, "main.mlirb")
    report = verify(reference, changed)
    assert not report.ok
    assert report.failed[0].part == "decoder"
    assert not all(result.ok for result in check_anywhere(changed))


@needs_coreai
def test_the_battery_changes_constants_where_they_lie(bundle, reference, tmp_path):
    changes_constants(bundle, reference, convert, tmp_path)


@needs_coreai
@pytest.mark.slow
def test_certificates_find_damages(bundle, reference, tmp_path):
    finds_damages(bundle, reference, TARGET, tmp_path)


@needs_coreai
def test_damaged_programs(bundle, tmp_path):
    half = damaged(
        bundle, tmp_path / "half", "encoder", lambda data: data[: len(data) // 2], "main.mlirb"
    )
    with pytest.raises(BundleError, match="its program is not the one of its hash"):
        check_anywhere(half)
    sealed(half / "encoder.aimodel")
    half = damaged(half, tmp_path / "sealed", "encoder", lambda data: data, "main.mlirb")
    with pytest.raises(BundleError, match=r"encoder: .*"):
        check_anywhere(half)
    newer = damaged(
        bundle,
        tmp_path / "newer",
        "encoder",
        lambda data: data.replace(b'"assetVersion" : "2.0"', b'"assetVersion" : "9.0"'),
        "metadata.json",
    )
    with pytest.raises(BundleError, match=r"version 9\.0"):
        check_anywhere(newer)


@needs_coreai
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8-weights", "palette6"])
def test_smaller_precisions(precision, reference, bundle, tmp_path):
    report = write(reference, tmp_path / "small", TARGET, Options(precision))
    assert report.ok
    share = {"fp16": 0.6, "int8-weights": 0.45, "palette6": 0.45}[precision]
    small, plain = (open_bundle(path).manifest for path in (tmp_path / "small", bundle))
    assert small.encoder.bytes < share * plain.encoder.bytes
    arithmetic = [network.details["arithmetic"] for network in (small.encoder, small.decoder)]
    assert arithmetic == ["float16" if precision == "fp16" else "float32", "float32"]


@needs_coreai
def test_files_for_apples_segmenter(reference, tmp_path, monkeypatch):
    """With its names and shapes; refused where the colours are swapped."""
    tool, output = find_tool("image-segmenter"), tmp_path / "segmenter"
    agreement = write_drop_in(reference, output, tool, "fp32")
    assert agreement.worst[1] > 0.99
    about = json.loads((output / "metadata.json").read_text())
    assert (about["metadata_version"], about["kind"]) == ("0.2", "segmenter")
    file = output / about["assets"]["main"]
    network = convert.load(file, "file")
    names = {"batched_images": (1, 3, SIZE, SIZE), "batched_points": (1, 1, 6, 2)}
    assert network.shapes == names | {"batched_point_labels": (1, 1, 6)}
    found = network({name: np.ones(shape, np.float32) for name, shape in network.shapes.items()})
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {"pred_masks": (1, 1, 3, SIZE, SIZE), "iou_scores": (1, 1, 3)}

    def swapped(feeds):
        feeds["batched_images"] = feeds["batched_images"][:, ::-1]
        return network(feeds)

    monkeypatch.setattr(convert, "write_file", lambda _, path, *__: shutil.copytree(file, path))
    monkeypatch.setattr(convert, "load", lambda *_: swapped)
    with pytest.raises(ParityError, match=r"CoreAIImageSegmenter, .*: mask IoU"):
        write_drop_in(reference, tmp_path / "wrong", tool, "fp32")
    assert not (tmp_path / "wrong").exists()


def test_fp16_is_the_encoders(reference):
    model = convert.prepared(reference.loaded.model)
    encoder = HalfEncoder(model)
    feeds = {name: value.numpy() for name, value in encoder.example().items()}
    (embedding,) = run_outputs(encoder, feeds).values()
    assert embedding.dtype == np.float32
    assert all(x.dtype == torch.float16 for x in encoder.model.image_encoder.parameters())
    assert all(x.dtype == torch.float32 for x in model.parameters())


def test_without_core_ai(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv(COREAI.variable, raising=False)
    arguments = ["export", "seeded:11", "--target", "coreai", "--image-size", str(SIZE)]
    assert main([*arguments, "--output", str(tmp_path / "bundle")]) == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert "Core AI 1.0.0b3 is not installed; run `make coreai-env`" in message
    assert not (tmp_path / "bundle").exists()


def test_the_requirements_name_the_versions():
    lines = (Path(convert.__file__).parent / "requirements.txt").read_text().splitlines()
    assert f"{COREAI.package}=={COREAI.version}" in lines
    assert all(f"{name}=={version}" in lines for name, version in PROGRAMS.items())
