"""A bundle comes from anywhere: nothing in it is believed before it has been checked."""

import hashlib
import json
import os
from copy import deepcopy
from functools import reduce

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_runtime_manifest import ONNX

from pocketsam.errors import BundleError, IntegrityError
from pocketsam.runtime.bundle import hash_tree, open_bundle, read_model
from pocketsam.runtime.manifest import MANIFEST_NAME, SCHEMA_VERSION


@pytest.fixture
def fake(tmp_path):
    """A directory with the form of a bundle, and bytes that no onnxruntime would load."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    manifest = deepcopy(ONNX)
    for part, name in (
        ("encoder", "encoder.onnx"),
        ("decoder", "decoder.onnx"),
        ("golden", "golden.npz"),
    ):
        data = f"bytes of the {part}".encode()
        (folder / name).write_bytes(data)
        manifest[part] |= {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for key, value in changes.items():
        manifest[key] = manifest[key] | value if isinstance(value, dict) else value
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_a_good_bundle_is_read(fake):
    bundle = open_bundle(str(fake))
    assert bundle.image_size == 256
    assert bundle.read("decoder") == b"bytes of the decoder"


@pytest.mark.parametrize("part", ["encoder", "decoder", "golden"])
def test_any_change_of_a_file_is_found(fake, part):
    bundle = open_bundle(fake)
    path = fake / json.loads((fake / MANIFEST_NAME).read_text())[part]["file"]
    data = path.read_bytes()
    for changed in (data[:-1], data + b"x", data[:-1] + b"x", b""):
        path.write_bytes(changed)
        with pytest.raises(IntegrityError, match=path.name):
            bundle.read(part)
    path.unlink()
    with pytest.raises(IntegrityError, match=f"{path.name}: No such file"):
        bundle.read(part)


@pytest.mark.parametrize("part", ["encoder", "decoder", "golden"])
def test_every_flipped_bit_and_every_cut_is_found(fake, part):
    bundle = open_bundle(fake)
    path = fake / json.loads((fake / MANIFEST_NAME).read_text())[part]["file"]
    good = path.read_bytes()
    damaged = [good[:end] for end in range(len(good))]
    damaged += [
        good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :]
        for i in range(len(good))
        for bit in range(8)
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=path.name) as caught:
            bundle.read(part)
        assert caught.value.exit_code == 5
    path.write_bytes(good)
    assert bundle.read(part) == good


def test_an_error_has_the_figures_of_damage(fake):
    bundle = open_bundle(fake)
    (fake / "golden.npz").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"golden\.npz: 5 bytes, the manifest says 19"):
        bundle.read("golden")
    other = b"bytes of the Golden"
    (fake / "golden.npz").write_bytes(other)
    with pytest.raises(IntegrityError, match=f"sha256 is {hashlib.sha256(other).hexdigest()}, the man"):
        bundle.read("golden")


def test_a_directory_in_the_place_of_a_file(fake):
    (fake / "encoder.onnx").unlink()
    (fake / "encoder.onnx").mkdir()
    with pytest.raises(IntegrityError, match=r"encoder\.onnx: Is a directory"):
        open_bundle(fake).read("encoder")


def test_a_manifest_that_is_a_directory(fake):
    (fake / MANIFEST_NAME).unlink()
    (fake / MANIFEST_NAME).mkdir()
    with pytest.raises(BundleError, match=MANIFEST_NAME) as caught:
        open_bundle(fake)
    assert caught.value.exit_code == 1


def test_what_is_no_bundle(tmp_path, fake):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "file", tmp_path / "empty"):
        with pytest.raises(BundleError, match=f"{path.name}: not a bundle") as caught:
            open_bundle(path)
        assert caught.value.exit_code == 1


def test_a_manifest_nested_too_deep(fake):
    (fake / MANIFEST_NAME).write_text('{"model":' * 100_000)
    with pytest.raises(IntegrityError, match=MANIFEST_NAME):
        open_bundle(fake)


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


def test_a_schema_of_the_far_future_names_both_versions(fake):
    (fake / MANIFEST_NAME).write_text('{"schema_version": 999}')
    says = rf"{MANIFEST_NAME}: schema version 999, and this pocketsam reads up to {SCHEMA_VERSION}"
    with pytest.raises(BundleError, match=says) as caught:
        open_bundle(fake)
    assert not isinstance(caught.value, IntegrityError)
    assert caught.value.exit_code == 1


FIELDS = (
    *(("target",), ("precision",), ("model",), ("model", "trained"), ("image_size",)),
    *((part,) for part in ("encoder", "decoder", "golden")),
    *((part, key) for part in ("encoder", "decoder", "golden") for key in ("file", "sha256", "bytes")),
)


@pytest.mark.parametrize("name", ["../none", "/none", "none/none", "../../none", "encoder.onnx/"])
def test_a_name_is_judged_before_anything_is_opened(fake, name):
    edit(fake, encoder={"file": name, "bytes": 6, "sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=r"encoder\.file .* leaves the bundle"):
        open_bundle(fake).read("encoder")


def test_a_link_to_nothing(fake):
    (fake / "encoder.onnx").unlink()
    (fake / "encoder.onnx").symlink_to(fake.parent / "none")
    with pytest.raises(IntegrityError, match=r"encoder\.onnx: No such file"):
        open_bundle(fake).read("encoder")


def test_a_bundle_of_links(fake):
    """As caches of models make them: blobs named by their hash, and links to these."""
    blobs = fake.parent / "blobs"
    blobs.mkdir()
    for path in list(fake.iterdir()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(blob)
    bundle = open_bundle(fake)
    for part in ("encoder", "decoder", "golden"):
        assert bundle.read(part) == f"bytes of the {part}".encode()
    (fake / "decoder.onnx").resolve().write_bytes(b"bytes of the Decoder")
    with pytest.raises(IntegrityError, match=r"decoder\.onnx: sha256"):
        bundle.read("decoder")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["encoder.onnx", "golden.npz", MANIFEST_NAME])
def test_a_file_that_would_never_end(fake, name, make):
    (fake / name).unlink()
    make(fake / name)
    with pytest.raises(BundleError, match=rf"{name}: not a regular file"):
        open_bundle(fake).read("golden" if name == "golden.npz" else "encoder")


def test_a_model_of_others(tmp_path):
    os.mkfifo(tmp_path / "x.onnx")
    for path, says in (
        ("x.onnx", "not a regular file"),
        (".", "Is a directory"),
        ("y", "No such file"),
    ):
        with pytest.raises(BundleError, match=says):
            read_model(tmp_path / path)
    with pytest.raises(BundleError, match="null"):
        read_model("a\0b")


def test_files_larger_than_any_bundle_are_not_read(fake):
    for name in ("encoder.onnx", MANIFEST_NAME):
        os.truncate(fake / name, 2**42)  # takes no space on the disk
    with pytest.raises(BundleError, match=rf"{MANIFEST_NAME}: {2**42} bytes, more than"):
        open_bundle(fake)
    manifest = deepcopy(ONNX)
    (fake / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=f"encoder.onnx: {2**42} bytes, the manifest says"):
        open_bundle(fake).read("encoder")
    edit(fake, encoder={"bytes": 2**42})
    with pytest.raises(IntegrityError, match=f"encoder.onnx: {2**42} bytes, more than"):
        open_bundle(fake).read("encoder")


def test_a_directory_of_links_and_of_pipes(fake):
    """A network that is a directory, as of Core ML."""
    package, blob = fake / "encoder.mlpackage", fake.parent / "blob"
    (package / "Data").mkdir(parents=True)
    blob.write_bytes(b"weights")
    (package / "Data" / "weight.bin").write_bytes(b"weights")
    plain = hash_tree(package)
    (package / "Data" / "weight.bin").unlink()
    (package / "Data" / "weight.bin").symlink_to(blob)
    assert hash_tree(package) == plain
    edit(fake, encoder={"file": package.name, "sha256": plain[0], "bytes": 7})
    assert open_bundle(fake).locate("encoder") == package
    edit(fake, encoder={"bytes": 8})
    with pytest.raises(IntegrityError, match="7 bytes, the manifest says 8"):
        open_bundle(fake).locate("encoder")
    for make in (os.mkfifo, lambda path: path.symlink_to(fake.parent)):
        make(package / "x")
        with pytest.raises(IntegrityError, match="x: neither a regular file nor a directory"):
            hash_tree(package)
        (package / "x").unlink()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, str(-(2**64))])
@pytest.mark.parametrize(
    "key", ["parity", "encoder.details", "decoder.bytes", "golden.tolerance.error"]
)
def test_numbers_beyond_all_sizes(fake, number, key):
    """Also where nothing but ``info`` reads them."""
    text = {
        "parity": '"passed": true',
        "encoder.details": '"opset": 20',
        "decoder.bytes": f'"bytes": {len("bytes of the decoder")}',
        "golden.tolerance.error": '"error": 0.1',
    }[key]
    old = (fake / MANIFEST_NAME).read_text()
    assert text in old
    (fake / MANIFEST_NAME).write_text(old.replace(text, text.rpartition(" ")[0] + " " + number))
    with pytest.raises(IntegrityError, match=r"is beyond ±2\*\*63|not JSON"):
        open_bundle(fake)


@pytest.mark.parametrize("text", ['"onnx": "\\ud800"', '"\\udfff": "1.0"'])
def test_half_a_character(fake, text):
    """JSON can say it, and nothing can print it."""
    old = (fake / MANIFEST_NAME).read_text()
    assert '"onnx": "1.23.2"' in old
    (fake / MANIFEST_NAME).write_text(old.replace('"onnx": "1.23.2"', text))
    with pytest.raises(IntegrityError, match=r"(tools\.onnx|a key) is '.ud[8f]..', no text"):
        open_bundle(fake)


def test_parity_nested_too_deep(fake):
    deep = "[" * 200 + "]" * 200
    text = (fake / MANIFEST_NAME).read_text()
    (fake / MANIFEST_NAME).write_text(text.replace('"passed": true', f'"passed": {deep}'))
    with pytest.raises(IntegrityError, match="nested more than 50 levels"):
        open_bundle(fake)


@pytest.mark.parametrize("value", [0, -1, 2**40])
def test_points_without_end(fake, value):
    edit(fake, decoder={"points": value})
    with pytest.raises(IntegrityError, match=rf"decoder\.points is {value}, not from 1 to 65536"):
        open_bundle(fake)


def test_a_number_that_json_does_not_know(fake):
    text = (fake / MANIFEST_NAME).read_text()
    (fake / MANIFEST_NAME).write_text(text.replace('"passed": true', '"passed": NaN'))
    with pytest.raises(IntegrityError, match="NaN is no number of JSON"):
        open_bundle(fake)


@pytest.mark.parametrize("name", ["..\\secret", "\\secret", "C:\\secret"])
def test_a_backslash_leads_nowhere(fake, name):
    (fake.parent / "secret").write_bytes(b"secret")
    edit(fake, encoder={"file": name, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()})
    with pytest.raises(IntegrityError, match="secret"):
        open_bundle(fake).read("encoder")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a" * 300], ids=["NUL", "surrogate", "long"])
def test_a_file_name_that_no_system_takes(fake, name):
    edit(fake, encoder={"file": name, "bytes": 6, "sha256": "0" * 64})
    with pytest.raises(IntegrityError) as caught:
        open_bundle(fake).read("encoder")
    assert str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "./encoder.onnx"])
def test_a_file_name_that_leaves_the_directory(fake, name):
    secret = fake.parent / "secret"
    secret.write_bytes(b"secret")
    entry = {"file": name, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit(fake, encoder=entry)
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


def outside_weights(folder):
    """A model of 4 weights in a file of their own, as the onnx package writes it."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight]))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (folder / "w.bin").stat().st_size == 16
    return (folder / "m.onnx").read_bytes()


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.ONNX", "encoder.bin", "encoder"])
def test_external_data_is_refused_whatever_the_file_is_called(fake, name):
    data = outside_weights(fake)
    (fake / name).write_bytes(data)
    edit(fake, encoder={"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(IntegrityError, match=f"{name}: refers to external data") as caught:
        open_bundle(fake).read("encoder")
    assert caught.value.exit_code == 5


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values | st.text(max_size=3), st.sampled_from([*FIELDS, ("schema_version",)]))
@example("a\0b", ("encoder", "file"))
def test_no_field_raises_anything_else(fake, value, field):
    path = fake / MANIFEST_NAME
    good = path.read_text()
    manifest = json.loads(good)
    reduce(dict.__getitem__, field[:-1], manifest)[field[-1]] = value
    path.write_text(json.dumps(manifest))
    try:
        bundle = open_bundle(fake)
        for part in ("encoder", "decoder", "golden"):
            bundle.read(part)
    except BundleError:
        pass
    finally:
        path.write_text(good)
