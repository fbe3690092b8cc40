"""Bundles are written whole or not at all, whatever happens in between."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SMALL, run_pocketsam

from pocketsam.errors import (
    BundleError,
    CheckpointError,
    IntegrityError,
    ParityError,
    PocketSamError,
)
from pocketsam.export import bundle as writer
from pocketsam.export import pipeline
from pocketsam.export.metrics import TOLERANCES, Tolerance
from pocketsam.export.options import Options
from pocketsam.export.pipeline import export_bundle
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.runtime import Segmenter
from pocketsam.runtime.bundle import choose_bundle, open_bundle
from pocketsam.runtime.contract import MANIFEST_NAME
from pocketsam.runtime.golden import check_golden


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_manifest_describes_the_files(bundle):
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    assert sorted(p.name for p in bundle.iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "golden.npz",
        "manifest.json",
    ]
    for part in ("encoder", "decoder", "golden"):
        data = (bundle / manifest[part]["file"]).read_bytes()
        assert manifest[part]["bytes"] == len(data)
        assert manifest[part]["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["schema_version"] == 1
    assert manifest["image_size"] == SMALL
    assert manifest["model"]["trained"] is False
    assert len(manifest["model"]["checkpoint_sha256"]) == 64
    assert manifest["tools"].keys() >= {"torch", "onnx", "onnxruntime", "onnxsim", "pocketsam"}
    assert manifest["parity"]["passed"] is True
    assert {row["tensor"] for row in manifest["parity"]["rows"]} >= {"low_res_masks", "masks"}


def test_the_same_input_gives_the_same_bytes(bundle, tmp_path):
    pipeline.export_bundle("seeded:11", tmp_path / "again", image_size=SMALL)
    assert contents(tmp_path / "again") == contents(bundle)


def test_golden_vectors_hold_and_notice_other_weights(bundle, tmp_path):
    assert all(result.ok for result in check_golden(bundle))
    pipeline.export_bundle("seeded:12", tmp_path / "other", image_size=SMALL, verify=False)
    os.replace(bundle_copy(bundle, tmp_path) / "golden.npz", tmp_path / "other" / "golden.npz")
    manifest = json.loads((tmp_path / "other" / MANIFEST_NAME).read_text())
    manifest["golden"] = open_bundle(bundle).manifest["golden"]
    writer.write_manifest(tmp_path / "other", manifest)
    assert not any(result.ok for result in check_golden(tmp_path / "other"))


def bundle_copy(bundle, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in contents(bundle).items():
        (copy / name).write_bytes(data)
    return copy


def test_a_bundle_that_fails_parity_does_not_stay(tmp_path, monkeypatch):
    impossible = Tolerance(error=0.0, snr_db=1e9, cosine=1.0, mask_iou=1.0)
    monkeypatch.setitem(TOLERANCES, ("onnx", "fp32"), impossible)
    with pytest.raises(ParityError, match="patch_embed"):
        pipeline.export_bundle("seeded", tmp_path / "bundle", image_size=64)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_when_asked(bundle, tmp_path):
    copy = bundle_copy(bundle, tmp_path)
    with pytest.raises(BundleError, match="--force"):
        pipeline.export_bundle("seeded", copy, image_size=64, verify=False)
    assert contents(copy) == contents(bundle)
    pipeline.export_bundle("seeded", copy, image_size=64, verify=False, replace=True)
    assert open_bundle(copy).image_size == 64
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_failed_export_keeps_the_old_bundle(bundle, tmp_path, monkeypatch):
    copy = bundle_copy(bundle, tmp_path)

    def fails(*_):
        raise OSError(28, "No space left on device", "decoder.onnx")

    monkeypatch.setattr(to_onnx, "_describe", fails)
    with pytest.raises(BundleError, match="No space left"):
        pipeline.export_bundle("seeded", copy, image_size=64, verify=False, replace=True)
    assert contents(copy) == contents(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"miaow")
    for replace in (False, True):
        with pytest.raises(BundleError, match="not a bundle"):
            pipeline.export_bundle("seeded", tmp_path / "photos", verify=False, replace=replace)
    assert contents(tmp_path / "photos") == {"cat.png": b"miaow"}


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_a_file_that_grows_too_large_leaves_nothing(target, tmp_path):
    """A full disk, played by the system's limit on file sizes: the real write fails."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

    arguments = [
        "export",
        "seeded",
        "--image-size",
        "64",
        "--target",
        target,
        "--output",
        tmp_path / "bundle",
        "--no-verify",
    ]
    done = run_pocketsam(*arguments, preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_no_bundle_and_the_next_export_cleans_up(tmp_path):
    target = tmp_path / "bundle"
    command = [sys.executable, "-m", "pocketsam", "export", "seeded", "--image-size", "64"]
    process = subprocess.Popen([*command, "--output", target], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.*.partial/encoder.onnx")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1

    pipeline.export_bundle("seeded", target, image_size=64, verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_moved_aside_by_a_killed_export_comes_back(bundle, tmp_path):
    bundle_copy(bundle, tmp_path).rename(tmp_path / ".bundle.abc.old.partial")
    with pytest.raises(BundleError, match="--force"), writer.staged(tmp_path / "bundle", replace=False):
        raise AssertionError("not reached")
    assert contents(tmp_path / "bundle") == contents(bundle)


def test_bad_arguments_cost_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        pipeline.export_bundle("nowhere.pt", tmp_path / "bundle", verify=False)
    with pytest.raises(PocketSamError, match="tflight"):
        pipeline.export_bundle("seeded", tmp_path / "bundle", target="tflight")
    with pytest.raises(PocketSamError, match="int3"):
        pipeline.export_bundle("seeded", tmp_path / "bundle", options=Options("int3"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def several(tmp_path_factory, pictures):
    path = tmp_path_factory.mktemp("several") / "bundle"
    also = ("fp16", "int8-weights")
    export_bundle("seeded:11", path, image_size=64, photos=pictures, calibration=pictures, also=also)
    return path


def test_a_bundle_of_several_precisions(several, photo):
    """Each is verified, and opened as asked for or as the device wants."""
    assert sorted(p.name for p in several.iterdir() if p.is_dir()) == ["fp16", "int8-weights"]
    for name in ("fp16", "int8-weights"):
        assert open_bundle(several / name).manifest["parity"]["rows"]
    assert choose_bundle(several).manifest["precision"] == "fp32"
    assert choose_bundle(several, gpu=True).manifest["precision"] == "fp16"
    assert choose_bundle(several, flags=["asimddp"]).manifest["precision"] == "fp32"  # holds no int8
    embeddings = []
    for name in (None, "fp32", "fp16"):
        segmenter = Segmenter(several, precision=name)
        segmenter.set_image(photo)
        embeddings.append(segmenter.get_image_embedding())
    assert np.array_equal(embeddings[0], embeddings[1])
    assert 0 < np.abs(embeddings[2] - embeddings[0]).max() < 0.1
    assert "also holds fp16, int8-weights" in run_pocketsam("info", several).stdout


def test_a_precision_that_is_not_there(several, tmp_path):
    with pytest.raises(BundleError, match="holds fp32, fp16, int8-weights, not int8"):
        Segmenter(several, precision="int8")
    damaged = tmp_path / "damaged"
    shutil.copytree(several, damaged)
    shutil.rmtree(damaged / "fp16")
    with pytest.raises(BundleError, match=r"fp16: not a bundle"):
        Segmenter(damaged, precision="fp16")
    manifest = json.loads((damaged / "manifest.json").read_text())
    for wrong in (["../x"], [""], [3], "fp16"):
        (damaged / "manifest.json").write_text(json.dumps(manifest | {"also": wrong}))
        with pytest.raises(IntegrityError, match="also"):
            Segmenter(damaged)


def test_the_same_precision_twice(tmp_path):
    with pytest.raises(PocketSamError, match="a precision twice: fp32, fp32"):
        export_bundle("seeded:11", tmp_path / "bundle", image_size=64, also=("fp32",))
    with pytest.raises(PocketSamError, match="onnx has no precision 'palette4'"):
        export_bundle("seeded:11", tmp_path / "bundle", image_size=64, also=("palette4",))
    assert not (tmp_path / "bundle").exists()
