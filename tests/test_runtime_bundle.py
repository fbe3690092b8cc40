"""A bundle comes from anywhere: nothing in it is believed before it has been checked."""

import hashlib
import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pocketsam.errors import BundleError, IntegrityError
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.contract import MANIFEST_NAME, SCHEMA_VERSION


@pytest.fixture
def fake(tmp_path):
    """A directory with the form of a bundle, and bytes that no onnxruntime would load."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    manifest = {"schema_version": 1, "target": "onnx", "precision": "fp32", "image_size": 256}
    manifest["model"] = {"trained": True}
    for part, name in (
        ("encoder", "encoder.onnx"),
        ("decoder", "decoder.onnx"),
        ("golden", "golden.npz"),
    ):
        data = f"bytes of the {part}".encode()
        (folder / name).write_bytes(data)
        manifest[part] = {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST_NAME).read_text()) | changes
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_a_good_bundle_is_read(fake):
    bundle = open_bundle(str(fake))
    assert bundle.image_size == 256
    assert bundle.read("decoder") == b"bytes of the decoder"


@pytest.mark.parametrize("part", ["encoder", "decoder", "golden"])
def test_any_change_of_a_file_is_found(fake, part):
    bundle = open_bundle(fake)
    path = fake / bundle.manifest[part]["file"]
    data = path.read_bytes()
    for changed in (data[:-1], data + b"x", data[:-1] + b"x", b""):
        path.write_bytes(changed)
        with pytest.raises(IntegrityError, match=path.name):
            bundle.read(part)
    path.unlink()
    with pytest.raises(IntegrityError, match=f"{path.name}: No such file"):
        bundle.read(part)


def test_what_is_no_bundle(tmp_path, fake):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "file", tmp_path / "empty"):
        with pytest.raises(BundleError, match=f"{path.name}: not a bundle") as caught:
            open_bundle(path)
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"schema_version": "1"}', b"\xff\xfe"])
def test_a_damaged_manifest(fake, text):
    path = fake / MANIFEST_NAME
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IntegrityError, match=MANIFEST_NAME) as caught:
        open_bundle(fake)
    assert caught.value.exit_code == 5


def test_a_newer_schema_asks_for_a_newer_pocketsam(fake):
    edit(fake, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=f"version {SCHEMA_VERSION + 1}.*upgrade") as caught:
        open_bundle(fake)
    assert type(caught.value) is BundleError


@pytest.mark.parametrize("version", ["1", True, 0, -1, 1.0, None])
def test_a_schema_version_that_is_none(fake, version):
    edit(fake, schema_version=version)
    with pytest.raises(IntegrityError, match="schema_version"):
        open_bundle(fake)


@pytest.mark.parametrize(
    "change",
    [
        {"target": None},
        {"precision": 3},
        {"model": "sam"},
        {"model": {"trained": 1}},
        {"image_size": "256"},
        {"image_size": 100},
        {"image_size": -64},
        {"image_size": True},
        {"encoder": None},
        {"decoder": []},
        {"encoder": {"file": "encoder.onnx", "sha256": "", "bytes": "5"}},
        {"golden": {"file": "golden.npz"}},
    ],
)
def test_missing_and_mistyped_fields(fake, change):
    edit(fake, **change)
    with pytest.raises(IntegrityError, match=next(iter(change))):
        open_bundle(fake)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "./encoder.onnx"])
def test_a_file_name_that_leaves_the_directory(fake, name):
    secret = fake.parent / "secret"
    secret.write_bytes(b"secret")
    entry = {"file": name, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit(fake, encoder=entry)
    with pytest.raises(IntegrityError, match="leaves the bundle"):
        open_bundle(fake).read("encoder")


def test_a_link_that_leaves_the_directory(fake):
    secret = fake.parent / "secret"
    secret.write_bytes(b"bytes of the encoder")
    (fake / "encoder.onnx").unlink()
    (fake / "encoder.onnx").symlink_to(secret)
    with pytest.raises(IntegrityError, match="leaves the bundle"):
        open_bundle(fake).read("encoder")


def test_external_data_is_refused(fake):
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, "../../secret")
    weight.ClearField("raw_data")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight])
    data = helper.make_model(graph).SerializeToString()
    (fake / "encoder.onnx").write_bytes(data)
    entry = {"file": "encoder.onnx", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(fake, encoder=entry)
    with pytest.raises(IntegrityError, match="external data"):
        open_bundle(fake).read("encoder")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    json_values, st.sampled_from([None, "schema_version", "target", "image_size", "encoder", "golden"])
)
def test_no_manifest_raises_anything_else(fake, value, key):
    path = fake / MANIFEST_NAME
    good = path.read_text()
    path.write_text(json.dumps(value if key is None else json.loads(good) | {key: value}))
    try:
        bundle = open_bundle(fake)
        for part in ("encoder", "decoder", "golden"):
            bundle.read(part)
    except BundleError:
        pass
    finally:
        path.write_text(good)
