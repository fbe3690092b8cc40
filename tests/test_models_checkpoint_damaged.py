"""Checkpoints that are damaged, hostile, or hold values that float32 cannot: refused, and cheaply."""

import gzip
import io
import pathlib
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_models_unwrap import load, refuse, same

from pocketsam.errors import CheckpointError
from pocketsam.models.checkpoint import load_model, read_settings
from pocketsam.models.sam import seeded
from pocketsam.runtime.bundle import DEFAULT_BUNDLE


@pytest.fixture(scope="module")
def state():
    return seeded(64, seed=3).state_dict()


WEIGHT = "mask_decoder.iou_token.weight"
BAD = {
    "float64 beyond float32": (
        torch.full((1, 256), 1e300, dtype=torch.float64),
        "beyond float32's range",
    ),
    "infinity": (torch.full((1, 256), torch.inf), "NaN or infinity"),
    "NaN in float16": (torch.full((1, 256), torch.nan, dtype=torch.float16), "NaN or infinity"),
    "complex": (torch.ones(1, 256, dtype=torch.complex64), "torch.complex64"),
    "integer": (torch.ones(1, 256, dtype=torch.int64), "torch.int64"),
    "bool": (torch.ones(1, 256, dtype=torch.bool), "torch.bool"),
    "float8": (torch.ones(1, 256).to(torch.float8_e4m3fn), "torch.float8"),
    "sparse": (torch.ones(1, 256).to_sparse(), "sparse"),
    "meta": (torch.ones(1, 256, device="meta"), "no data"),
    "expanded": (torch.ones(1, 1).expand(1, 256), "expanded"),
    "0-dim": (torch.tensor(1.0), "shape of"),
    "transposed": (torch.ones(256, 1), "shape of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_weights_that_a_conversion_would_damage_are_named(kind, state, tmp_path):
    tensor, message = BAD[kind]
    _, line = refuse(state | {WEIGHT: tensor}, tmp_path, message)
    assert WEIGHT in line


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_and_nested_weights_are_named(state, tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(1, 256), 0.1, 0, torch.qint8)
    _, line = refuse(state | {WEIGHT: quantized}, tmp_path, "is quantized")
    assert WEIGHT in line


def test_float64_and_bfloat16_become_float32(state, tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        model = load(cast, tmp_path).model
        assert all(torch.equal(v, cast[k].to(v.dtype)) for k, v in model.state_dict().items())


@pytest.mark.parametrize("key", [1, 2.5, None, ("a", 1), b"image_encoder.neck.0.weight"])
def test_a_key_that_is_no_name(key, state, tmp_path):
    (line,) = refuse({"model": state | {key: torch.zeros(1)}}, tmp_path, "which is no name")
    assert repr(key) in line


def test_names_of_several_lines(tmp_path):
    content = {"a\nb": {f"image_encoder.{'x' * 5000}\n{i}": torch.zeros(1) for i in range(9)}}
    lines = refuse(content, tmp_path, "does not fit mobile_sam")
    assert max(map(len, lines[1:])) <= 210


def test_a_dictionary_that_holds_itself(state, tmp_path):
    content = {"epoch": 3}
    content["again"] = content
    refuse(content, tmp_path, "holds no tensors by name")
    content["model"] = state
    assert same(load(content, tmp_path).model, state)
    deep = {}
    for _ in range(60):  # 2 ** 60 paths
        deep = {"a": deep, "b": deep}
    refuse(deep, tmp_path, "holds no tensors by name")


@pytest.mark.parametrize(
    "shape", [(), (1, 64), (1, 64, 32, 768), (1, 0, 0, 768), (1, 100_000, 100_000, 768)]
)
def test_odd_position_tables_take_no_memory(shape, tmp_path):
    """Expanded from one element: contiguous, the last would have 30 TB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = {"image_encoder.pos_embed": torch.zeros(()).expand(shape)}
    refuse(content, tmp_path, "does not fit sam_vit_b")
    huge = {"image_encoder.pos_embed": torch.zeros(()).expand(1, 64, 64, 1280)}
    refuse(huge, tmp_path, r"does not fit sam_vit_h")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def archive_of(content):
    data = io.BytesIO()
    torch.save(content, data)
    return data.getvalue()


def rewritten(data, change, **options):
    """A torch archive with each entry's bytes changed by ``change(name, bytes)``."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return out.getvalue()


def refuse_bytes(data, tmp_path, message=r"bad\.pt", name="bad.pt"):
    (tmp_path / name).write_bytes(data)
    for read in (read_settings, lambda path: load_model(path, 64)):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path):
    data = archive_of({WEIGHT: torch.zeros(5_000_000)})
    packed = rewritten(data, lambda _, content: content, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 100_000
    refuse_bytes(packed, tmp_path, "unpack to 20")


PICKLES = {
    "struct.error": lambda data: data[:-40],
    "empty": lambda _: b"",
    "no stop": lambda data: data.replace(b".", b"0"),
    "stack": lambda _: b"\x80\x02" + b"0" * 50 + b".",
    "memo": lambda _: b"\x80\x02j\xff\xff\xff\xff.",
    "persistent id": lambda _: b"\x80\x02X\x01\x00\x00\x00aQ.",
    "long string": lambda _: b"\x80\x02X\xff\xff\xff\x7fab.",
    "not utf-8": lambda _: b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "reduce": lambda _: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "build": lambda _: b"\x80\x02ccollections\nOrderedDict\n)RK\x01b.",
    "long": lambda _: b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "unhashable": lambda _: b"\x80\x02}]]s.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_damaged_pickles(kind, state, tmp_path):
    data = archive_of({"a": torch.zeros(3), "b": [1, "x" * 300]})

    def change(name, content):
        return PICKLES[kind](content) if name.endswith("data.pkl") else content

    refuse_bytes(rewritten(data, change), tmp_path)
    old = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    head = old.getvalue()[:40]
    refuse_bytes(head + PICKLES[kind](old.getvalue()[40:]), tmp_path)


def test_bytes_changed_at_random(tmp_path):
    """Each of 300 is read, as its damage may be in the weights, or refused: nothing else."""
    rng = np.random.default_rng(0)
    new, old = archive_of({WEIGHT: torch.zeros(1, 256)}), io.BytesIO()
    torch.save({WEIGHT: torch.zeros(1, 256)}, old, _use_new_zipfile_serialization=False)
    lines = []
    for number in range(300):
        data = bytearray(new if number % 2 else old.getvalue())
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        (tmp_path / "bad.pt").write_bytes(
            data[: rng.integers(1, len(data))] if number % 5 == 0 else data
        )
        try:
            read_settings(tmp_path / "bad.pt")
        except CheckpointError as error:
            lines.append(len(str(error).splitlines()))
    assert len(lines) > 100
    assert max(lines) == 1


def test_an_old_file_loads(state, tmp_path):
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_model(tmp_path / "old.pth", 64).model, state)


class Runs:
    """A pickle that calls a function of another module when it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [eval, exec, pathlib.os.system, struct.pack, pickle.loads])
def test_luggage_that_would_run_is_refused(function, state, tmp_path):
    refuse({"model": state, "epoch": Runs(function, "1")}, tmp_path, "could run code")


def test_a_whole_module_is_refused(tmp_path):
    message = r"it holds torch\.nn\.modules\.linear\.Linear, .* save model\.state_dict\(\) alone"
    refuse(torch.nn.Linear(1, 1), tmp_path, message)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt"])
def test_only_regular_files_are_opened(suffix, tmp_path):
    path = tmp_path / f"pipe{suffix}"
    pathlib.os.mkfifo(path)
    link = tmp_path / f"link{suffix}"
    link.symlink_to("/dev/zero")
    for place in (path, link):
        for read in (read_settings, load_model):
            with pytest.raises(CheckpointError, match="not a regular file"):
                read(place)


def test_places_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="null"):
        load_model("a\0b.pt", 64)
    with pytest.raises(CheckpointError, match="too long"):
        load_model("x" * 5000 + ".pt", 64)
    with pytest.raises(CheckpointError, match="not one of the names default, seeded, mobile_sam"):
        load_model(tmp_path / "mobilesam", 64)
    with (tmp_path / "sparse.pt").open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(CheckpointError, match="not a torch checkpoint"):
        load_model(tmp_path / "sparse.pt", 64)


STRANGERS = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:6d\nsize 40\n",
    "a web page": b"\n<!DOCTYPE html><html><head><title>Not found</title></head></html>",
    "JSON, a text": b'{"error": "Repository not found"}',
    "a packed file": gzip.compress(b"weights"),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "a TFLite file": b"\x1c\0\0\0TFL3" + bytes(99),
    "an ONNX file": (DEFAULT_BUNDLE / "decoder.onnx").read_bytes(),
    "a plain pickle": pickle.dumps({"a": 1}, 4),
    "an empty file": b"",
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("what", STRANGERS)
def test_what_it_is_instead(what, suffix, tmp_path):
    path = tmp_path / f"mobile_sam{suffix}"
    path.write_bytes(STRANGERS[what])
    with pytest.raises(
        CheckpointError, match=f"mobile_sam{suffix}: (not a|no) .*, but {what}"
    ) as caught:
        load_model(path, 64)
    assert "\n" not in str(caught.value)


def test_containers_and_names_that_do_not_fit(tmp_path):
    state = {"image_encoder.neck.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pt")
    save_file(state, tmp_path / "weights.safetensors")
    with zipfile.ZipFile(tmp_path / "release.pt", "w") as archive:
        archive.write(tmp_path / "weights.pt", "weights.pt")
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "weights.safetensors").read_bytes())
    (tmp_path / "renamed.safetensors").write_bytes((tmp_path / "weights.pt").read_bytes())
    (tmp_path / "checkpoint-100").mkdir()
    for name, message in (
        ("release.pt", "but a zip archive of weights.pt; unpack it"),
        ("renamed.pt", "but a safetensors file; name it .safetensors"),
        ("renamed.safetensors", "but a zip archive, as torch writes; name it .pt, or unpack it"),
        ("checkpoint-100", "a folder; name the file with the weights in it"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name, 64)
