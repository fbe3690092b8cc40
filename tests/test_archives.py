"""Archives of arrays: what they unpack to is known before it is unpacked."""

import io
import json
import os
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from tiny_bundle import write, write_tiny

from pocketsam.archives import MAX_BYTES, read_npz
from pocketsam.errors import ImageError, IntegrityError
from pocketsam.runtime.embedding import Embedding, read_embedding
from pocketsam.runtime.verification.golden import check_golden

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "text": np.array("sha"),
    "empty": np.zeros((0, 3), np.uint8),
    "number": np.array(2.5),
}


def packed(arrays, write=np.savez):
    stream = io.BytesIO()
    write(stream, **arrays)
    return stream.getvalue()


def zipped(data, name="a.npy", **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def npy(shape="(3,)", descr="'<f4'", data=bytes(12)):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def with_flag(data, flag):
    """Sets bits of general purpose in both of an entry's headers."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(signature) + offset] |= flag
    return bytes(changed)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(write):
    found = read_npz(packed(ARRAYS, write))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable


BAD = {
    "empty": b"",
    "nonsense": b"nonsense",
    "a bare array": npy(),
    "cut": packed(ARRAYS)[:-30],
    "bzip2": zipped(npy(), compression=zipfile.ZIP_BZIP2),
    "lzma": zipped(npy(), compression=zipfile.ZIP_LZMA),
    "encrypted": with_flag(zipped(npy()), 1),
    "another file": zipped(npy(), "a.txt"),
    "a shape of terabytes": zipped(npy("(10**12,)".replace("10**12", str(10**12)))),
    "a shape below zero": zipped(npy("(-3,)")),
    "a shape of floats": zipped(npy("(3.0,)")),
    "too many bytes": zipped(npy(data=bytes(13))),
    "objects": zipped(npy(descr="'|O'")),
    "records": zipped(npy(descr="[('x', '<f4')]")),
    "complex": zipped(npy(descr="'<c8'", data=bytes(24))),
    "a header that is code": zipped(npy("(__import__('os').getpid(),)")),
    "a deep header": zipped(npy("(" * 5000)),
    "a long header": zipped(npy("(3,)" + " " * 60_000)),
    "no header": zipped(b""),
    "a later format": zipped(b"\x93NUMPY\x09\x00" + bytes(20)),
    "300 kB that unpack to 300 MB": None,
}


def bomb():
    """A megabyte of zeros, deflated, three hundred times."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(f"({300 * 2**20},)", "'|u1'", b""))
        for _ in range(300):
            file.write(bytes(2**20))
    return stream.getvalue()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module", autouse=True)
def _bomb():
    BAD["300 kB that unpack to 300 MB"] = bomb()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_by_everyone(name, tiny, tmp_path):
    data = BAD[name]
    with pytest.raises(ValueError, match=r"\S"):
        read_npz(data)
    (tmp_path / "cat.npz").write_bytes(data)
    with pytest.raises(ImageError, match=r"cat\.npz: not an embedding of pocketsam: \S"):
        read_embedding(tmp_path / "cat.npz")
    copy = shutil.copytree(tiny, tmp_path / "bundle")
    write(copy, json.loads((copy / "manifest.json").read_text()), golden=data)
    with pytest.raises(IntegrityError, match="damaged golden vectors"):
        check_golden(copy)


def test_a_size_that_lies_does_not_unpack_more():
    """The directory says 12 bytes, and what follows unpacks to megabytes."""
    data = bytearray(bomb())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = len(npy()).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\S"):
            read_npz(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_the_largest_embedding_fits(tmp_path):
    assert MAX_BYTES > 256 * 256 * 256 * 4
    large = np.zeros((1, 256, 256, 256), np.float32)
    Embedding(large, (4096, 4096), "0" * 64, "1" * 64).save(tmp_path / "x.npz")
    assert read_embedding(tmp_path / "x.npz").values.shape == large.shape


def test_an_embedding_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(ImageError, match=r"x\.npz: cannot be read: not a regular file"):
        read_embedding(tmp_path / "x.npz")


@pytest.mark.parametrize("value", [np.array(["a", "b"]), np.array(3), np.array(b"bytes")])
def test_a_hash_that_is_no_text(tmp_path, value):
    Embedding(np.zeros((1, 256, 4, 4), np.float32), (5, 6), "0" * 64, "1" * 64).save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        np.savez(tmp_path / "x.npz", **(dict(file) | {"encoder_sha256": value}))
    with pytest.raises(ImageError, match=r"x\.npz"):
        read_embedding(tmp_path / "x.npz")
