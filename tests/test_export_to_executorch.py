"""ExecuTorch: lowered to XNNPACK, run by ExecuTorch's own runtime, refused where it is not right."""

import importlib.util
import json
import sys

import pytest
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
from pocketsam.errors import BundleError, IntegrityError, PocketSamError, ProviderError
from pocketsam.export import check_anywhere
from pocketsam.export.options import Options
from pocketsam.export.to_executorch import TARGET, convert
from pocketsam.export.to_executorch.environment import EXECUTORCH
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.manifest import MANIFEST_NAME

try:
    EXECUTORCH.python()
    HAVE_EXECUTORCH = True
except PocketSamError:
    HAVE_EXECUTORCH = False
needs_executorch = pytest.mark.skipif(
    not HAVE_EXECUTORCH, reason="no ExecuTorch: run `make executorch-env`"
)


@pytest.fixture(scope="module")
def reference(pictures):
    return shallow_reference(pictures)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, reference):
    path = tmp_path_factory.mktemp("executorch") / "bundle"
    write(reference, path, TARGET, Options("fp32", max_points=10, prompts_per_call=2))
    return path


@needs_executorch
def test_the_bundle(bundle, capsys):
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    assert manifest["grade"] == "equivalent"
    assert manifest["parity"]["runner"].startswith(f"ExecuTorch {EXECUTORCH.version}")
    assert manifest["tools"]["executorch"] == EXECUTORCH.version
    assert manifest["encoder"]["delegates"] > 0
    outside = {e["operation"] for e in manifest["encoder"]["outside_delegates"]}
    assert "native_layer_norm.out" in outside
    assert not any("expand" in operation for operation in outside)
    assert manifest["decoder"]["inputs"][1]["shape"] == [2, 10, 2]
    assert main(["info", str(bundle)]) == 0
    assert "delegates to XNNPACK; outside of them: " in capsys.readouterr().out
    assert main(["verify", str(bundle)]) == 0


@needs_executorch
def test_changed_weights_fail_parity_and_golden_vectors(bundle, reference, tmp_path):
    weight = reference.loaded.model.mask_decoder.output_hypernetworks_mlps[0].layers[1].weight
    old = weight.detach().numpy()
    changed = damaged(bundle, tmp_path / "changed", "decoder", replaced(old, 1.5 * old))
    assert verify(reference, bundle).ok
    report = verify(reference, changed)
    assert not report.ok
    assert report.failed[0].part == "decoder"
    assert not all(result.ok for result in check_anywhere(changed))


@needs_executorch
def test_the_battery_changes_constants_where_they_lie(bundle, reference, tmp_path):
    changes_constants(bundle, reference, convert, tmp_path)


@needs_executorch
@pytest.mark.slow
def test_certificates_find_damages(bundle, reference, tmp_path):
    finds_damages(bundle, reference, TARGET, tmp_path)


@needs_executorch
def test_damaged_files(bundle, tmp_path):
    half = damaged(bundle, tmp_path / "half", "encoder", lambda data: data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"encoder: .*"):
        check_anywhere(half)
    with pytest.raises(BundleError, match=r"encoder: .*"):
        check_anywhere(damaged(bundle, tmp_path / "none", "encoder", lambda data: b""))
    newer = damaged(
        bundle, tmp_path / "newer", "encoder", lambda data: data.replace(b"ET12", b"ET99", 1)
    )
    with pytest.raises(BundleError, match="encoder: begins with b'ET99', and this ExecuTorch reads"):
        check_anywhere(newer)
    (half / "encoder.pte").write_bytes(b"changed since")
    with pytest.raises(IntegrityError, match="bytes, the manifest says"):
        check_anywhere(half)


@needs_executorch
def test_the_runtime_says_that_it_does_not_run_them(bundle):
    with pytest.raises(BundleError, match="a bundle for executorch; this runtime runs onnx"):
        open_network(open_bundle(bundle), "encoder")
    with pytest.raises(ProviderError, match="provider cpu"):
        check_anywhere(bundle, providers="cuda")


@needs_executorch
@pytest.mark.slow
def test_8_bits(reference, tmp_path, bundle):
    report = write(reference, tmp_path / "int8", TARGET, Options("int8"))
    assert report.ok
    manifest = open_bundle(tmp_path / "int8").manifest
    assert manifest.encoder.details["int8"]["layers"] > 0
    assert manifest.encoder.bytes < open_bundle(bundle).manifest.encoder.bytes


def test_without_executorch(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv(EXECUTORCH.variable, raising=False)
    assert importlib.util.find_spec("executorch") is None
    arguments = ["export", "seeded:11", "--target", "executorch", "--image-size", str(SIZE)]
    assert main([*arguments, "--output", str(tmp_path / "bundle")]) == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert "ExecuTorch 1.5.1 is not installed; run `make executorch-env`" in message
    assert not (tmp_path / "bundle").exists()


def test_another_python(monkeypatch, tmp_path):
    monkeypatch.setenv(EXECUTORCH.variable, str(tmp_path / "python"))
    with pytest.raises(PocketSamError, match="no such program"):
        EXECUTORCH.python()
    monkeypatch.setenv(EXECUTORCH.variable, sys.executable)
    with pytest.raises(PocketSamError, match=r"executorch 1\.5\.1 is needed, .*PackageNotFound"):
        EXECUTORCH.python()


def test_the_requirements_name_the_version():
    lines = (convert.__file__.rpartition("/")[0] + "/requirements.txt",)
    with open(lines[0]) as stream:  # noqa: PTH123
        assert f"executorch=={EXECUTORCH.version}\n" in stream.read()
