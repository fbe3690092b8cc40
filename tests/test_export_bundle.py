"""Bundles are written whole or not at all, whatever happens in between."""

import dataclasses
import errno
import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, call_pocketsam, change_encoder
from toy_target import TARGET

from pocketsam import files
from pocketsam.errors import (
    BundleError,
    CheckpointError,
    IntegrityError,
    ParityError,
    PocketSamError,
    UsageError,
)
from pocketsam.export import bundle as writer
from pocketsam.export import export
from pocketsam.export.targets import TARGETS
from pocketsam.export.verification.tolerances import FP32
from pocketsam.runtime import Segmenter
from pocketsam.runtime.bundle import choose_bundle, open_bundle
from pocketsam.runtime.manifest import MANIFEST_NAME, SCHEMA_VERSION
from pocketsam.runtime.verification.golden import check_golden


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
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["image_size"] == SMALL
    assert manifest["model"]["trained"] is False
    assert len(manifest["model"]["checkpoint_sha256"]) == 64
    assert manifest["tools"].keys() >= {"torch", "onnx", "onnxruntime", "onnxsim", "pocketsam"}
    assert manifest["parity"]["passed"] is True
    assert {row["tensor"] for row in manifest["parity"]["rows"]} >= {"low_res_masks", "masks"}


def test_golden_vectors_hold_and_notice_other_weights(bundle, tmp_path):
    assert all(result.ok for result in check_golden(bundle))
    change_encoder(bundle, tmp_path / "copy")
    assert not any(result.ok for result in check_golden(tmp_path / "copy"))


def bundle_copy(bundle, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in contents(bundle).items():
        (copy / name).write_bytes(data)
    return copy


@pytest.fixture
def toy(monkeypatch):
    """A target that converts in no time; what is tested here is the same for all."""
    monkeypatch.setitem(TARGETS, "toy", TARGET)


def export_toy(path, **options):
    return export("seeded", path, **{"target": "toy", "image_size": 64, "verify": False} | options)


def test_the_same_input_gives_the_same_bytes(toy, tmp_path):
    """Manifest and golden vectors; the tests of each target compare its own files."""
    for name in ("one", "two"):
        export_toy(tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_bundle_that_fails_parity_does_not_stay(tmp_path, monkeypatch, pictures):
    impossible = dataclasses.replace(FP32, error=0.0, snr_db=1e9)
    strict = dataclasses.replace(TARGET.precision("fp32"), tolerance=impossible)
    monkeypatch.setitem(TARGETS, "toy", dataclasses.replace(TARGET, precisions=(strict,)))
    with pytest.raises(ParityError, match="patch_embed") as caught:
        export_toy(tmp_path / "bundle", verify=True, images=pictures)
    assert caught.value.report.failed
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_when_asked(toy, bundle, tmp_path):
    copy = bundle_copy(bundle, tmp_path)
    with pytest.raises(BundleError, match="--force"):
        export_toy(copy)
    assert contents(copy) == contents(bundle)
    export_toy(copy, force=True)
    assert open_bundle(copy).image_size == 64
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_failed_export_keeps_the_old_bundle(toy, bundle, tmp_path, monkeypatch):
    copy = bundle_copy(bundle, tmp_path)

    def fails(*_):
        raise OSError(28, "No space left on device", "decoder.safetensors")

    monkeypatch.setattr("pocketsam.export.pipeline.write_usage", fails)
    with pytest.raises(BundleError, match=r"decoder\.safetensors: No space left"):
        export_toy(copy, force=True)
    assert contents(copy) == contents(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_directory_of_something_else_is_left_alone(toy, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"miaow")
    for force in (False, True):
        with pytest.raises(BundleError, match="not a bundle"):
            export_toy(tmp_path / "photos", force=force)
    assert contents(tmp_path / "photos") == {"cat.png": b"miaow"}


COMMAND = [sys.executable, Path(__file__).with_name("toy_target.py"), "export", "seeded"]
COMMAND += ["--image-size", "64", "--no-verify"]


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))


@pytest.mark.parametrize(
    "target",
    ["toy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "coreml"))],
)
def test_a_file_that_grows_too_large_leaves_nothing(target, tmp_path):
    """A full disk, played by the system's limit on file sizes: the real write fails."""
    command = [*COMMAND, "--target", target, "--output", tmp_path / "bundle"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit_files)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_no_bundle_and_the_next_export_cleans_up(toy, tmp_path):
    bundle = tmp_path / "bundle"
    command = [*COMMAND, "--target", "toy", "--output", bundle]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.partial/new/encoder.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not bundle.exists()
    assert len(list(tmp_path.iterdir())) == 1

    export_toy(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_moved_aside_by_a_killed_export_comes_back(bundle, tmp_path):
    (tmp_path / ".bundle.partial").mkdir()
    bundle_copy(bundle, tmp_path).rename(tmp_path / ".bundle.partial/old")
    place = tmp_path / "bundle"
    with pytest.raises(BundleError, match="--force"), writer.staged_bundle(place, force=False):
        raise AssertionError("not reached")
    assert contents(place) == contents(bundle)


def test_a_second_export_to_the_same_place_is_refused(bundle, tmp_path):
    """It removed the files under the first one's hands."""
    place = tmp_path / "bundle"
    with writer.staged_bundle(place, force=False) as work:
        shutil.copytree(bundle, work, dirs_exist_ok=True)
        for force in (False, True):
            again = writer.staged_bundle(place, force=force)
            with (
                pytest.raises(PocketSamError, match=r"bundle: another pocketsam .*is writing it"),
                again,
            ):
                raise AssertionError("not reached")
        with writer.staged_bundle(tmp_path / "bundle.v2", force=False) as other:  # is another place
            shutil.copytree(bundle, other, dirs_exist_ok=True)
    assert contents(place) == contents(tmp_path / "bundle.v2") == contents(bundle)
    with pytest.raises(BundleError, match="--force"), writer.staged_bundle(place, force=False):
        raise AssertionError("not reached")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.v2"]


def test_a_file_system_without_locks(bundle, tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", flock)
    place = tmp_path / "bundle"
    with writer.staged_bundle(place, force=False) as work:
        shutil.copytree(bundle, work, dirs_exist_ok=True)
        again = writer.staged_bundle(place, force=True)
        with pytest.raises(PocketSamError, match=r"if none is, remove .*\.bundle\.partial"), again:
            raise AssertionError("not reached")
    assert contents(place) == contents(bundle)


def test_many_exports_to_the_same_place(tmp_path):
    """Whoever gets through leaves a whole directory; at every moment after the first there is one."""
    code = """if True:
        import random, sys, time
        from pathlib import Path
        from pocketsam.errors import PocketSamError
        from pocketsam.files import staged_directory

        written = 0
        while written < 20:
            try:
                with staged_directory(Path(sys.argv[1])) as work:
                    for name in "abc":
                        (work / name).write_text(f"{sys.argv[2]} {written}")
                written += 1
            except PocketSamError as error:
                assert "is writing it" in str(error)
                time.sleep(random.random() / 100)
    """
    place = tmp_path / "bundle"
    command = [sys.executable, "-c", code, str(place)]
    children = [
        subprocess.Popen([*command, number], stderr=subprocess.PIPE, text=True) for number in "123"
    ]
    for child in children:
        assert child.communicate(timeout=300)[1] == ""
        assert child.returncode == 0
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "c"]
    assert len({path.read_text() for path in place.iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_swap_that_is_cut_short_loses_nothing(bundle, tmp_path, monkeypatch, can_exchange):
    place = bundle_copy(bundle, tmp_path)
    rename = Path.rename

    def fails(self, target):
        if self.name == "new":
            raise OSError(errno.EACCES, "no")
        return rename(self, target)

    def swap(claim, destination):
        if can_exchange:
            raise OSError(errno.EACCES, "no")
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", fails)
        real_swap(claim, destination)

    real_swap = files._swap
    monkeypatch.setattr(files, "_swap", swap)
    with pytest.raises(BundleError, match="no"), writer.staged_bundle(place, force=True) as work:
        (work / MANIFEST_NAME).write_text("{}")
    assert contents(place) == contents(bundle)
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("place", ["/", "a\0b", "x" * 300])
def test_a_place_that_no_bundle_can_have(place):
    with (
        pytest.raises(BundleError, match=r"choose another|too long"),
        writer.staged_bundle(Path(place), True),
    ):
        raise AssertionError("not reached")


def test_bad_arguments_cost_nothing(toy, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        export("nowhere.pt", tmp_path / "bundle", target="toy")
    with pytest.raises(UsageError, match="tflight"):
        export_toy(tmp_path / "bundle", target="tflight")
    with pytest.raises(UsageError, match="int3"):
        export_toy(tmp_path / "bundle", precision="int3")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_several_precisions(several_precisions, photo):
    """Each is verified, and opened as asked for; unasked, the most precise, fp16 on a GPU."""
    assert sorted(p.name for p in several_precisions.iterdir() if p.is_dir()) == ["fp16", "int8"]
    for name in ("fp16", "int8"):
        assert open_bundle(several_precisions / name).manifest.parity["rows"]
    assert choose_bundle(several_precisions).manifest.precision == "fp32"
    assert choose_bundle(several_precisions, gpu=True).manifest.precision == "fp16"
    assert Segmenter(several_precisions).manifest.precision == "fp32"
    embeddings = []
    for name in ("fp32", "fp16"):
        segmenter = Segmenter(several_precisions, precision=name)
        segmenter.set_image(photo)
        embeddings.append(segmenter.get_image_embedding())
    assert 0 < np.abs(embeddings[1] - embeddings[0]).max() < 0.1
    listed = call_pocketsam("info", several_precisions).stdout
    assert "also holds fp16 (close), int8 (" in listed


def test_a_precision_that_is_not_there(several_precisions, tmp_path):
    with pytest.raises(BundleError, match="holds fp32, fp16, int8, not int2"):
        Segmenter(several_precisions, precision="int2")
    damaged = tmp_path / "damaged"
    shutil.copytree(several_precisions, damaged)
    shutil.rmtree(damaged / "fp16")
    with pytest.raises(BundleError, match=r"fp16: not a bundle"):
        Segmenter(damaged, precision="fp16")
    manifest = json.loads((damaged / "manifest.json").read_text())
    for wrong in (["../x"], [""], [3], "fp16"):
        (damaged / "manifest.json").write_text(json.dumps(manifest | {"also": wrong}))
        with pytest.raises(IntegrityError, match="also"):
            Segmenter(damaged)


def test_the_same_precision_twice(tmp_path):
    with pytest.raises(UsageError, match="a precision twice: fp32, fp32"):
        export("seeded:11", tmp_path / "bundle", image_size=64, also=("fp32",))
    with pytest.raises(UsageError, match="onnx has no precision 'palette4'"):
        export("seeded:11", tmp_path / "bundle", image_size=64, also=("palette4",))
    assert not (tmp_path / "bundle").exists()
