"""Archives of anybody, ``.npz`` and torch's: what they unpack to is known before it is unpacked.

``numpy.load`` believes a header's shape, unpacks as much as there is, and raises a dozen classes.
"""

import io
import math
import os
import re
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import CheckpointError

MAX_BYTES = 2**27
"""Of all arrays together: twice what the largest canvas, 4096 pixels, gives."""
MAX_ARRAYS = 256
_FORMAT: Any = np.lib.format  # its functions have no types
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes."""
KINDS = "biufU"
"""Of dtypes: bool, integers, floats and text."""
ENCRYPTED = 1
STRANGERS = (
    (rb"version https://git-lfs", "a pointer of Git LFS instead of the file; run `git lfs pull`"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page instead of the file; download it again"),
    (rb'\s*[{\[]\s*["{\[}\]]', "JSON, a text; name the file with the weights"),
    (rb"\x80[\x02-\x05]", "a plain pickle, which could run code; save it with torch.save"),
    (
        rb"\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar",
        "a packed file; unpack it first",
    ),
    (rb"\x89HDF", "an HDF5 file, as Keras writes; pocketsam reads PyTorch's weights"),
    (rb".{4}TFL3", "a TFLite file, which is exported already"),
    (rb"\x93NUMPY", "an array of NumPy, without names"),
    (rb"PK", "a zip archive, as torch writes; name it .pt, or unpack it"),
    (rb"\x08[\x03-\x14]\x12", "an ONNX file, which is exported already"),
    (rb"$", "an empty file"),
)
"""(pattern of the first bytes, what the file is): what people have where a checkpoint should be."""
SAFETENSORS = rb".{6}\0\0\{"
OLD_FORMAT = b"\xfc\x9cF\xf9 j\xa8P\x19"
"""torch's magic number, at the head of files older than its archives."""


def read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an ``.npz`` file by name.

    Args:
        data: the file's bytes.

    Raises:
        ValueError: another kind of file, a damaged one, or one that unpacks to over ``MAX_BYTES``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_entries(archive)
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen unrelated classes
        raise ValueError(str(error) or type(error).__name__) from None


def _read_entries(archive: zipfile.ZipFile) -> dict[str, NDArray[Any]]:
    entries = archive.infolist()
    if len(entries) > MAX_ARRAYS:
        raise ValueError(f"holds {len(entries)} files, more than {MAX_ARRAYS}")
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise ValueError(f"unpacks to over {MAX_BYTES} bytes")
    arrays: dict[str, NDArray[Any]] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or name in arrays:
            raise ValueError(f"{entry.filename!r} is no array, or there twice")
        if entry.flag_bits & ENCRYPTED or entry.compress_type not in METHODS:
            raise ValueError(f"{entry.filename!r} is encrypted, or packed by an unknown method")
        with archive.open(entry) as stream:  # read() without a size would unpack whatever there is
            arrays[name] = _parse(stream.read(entry.file_size), name)
    return arrays


def _parse(data: bytes, name: str) -> NDArray[Any]:
    """Returns the array of an ``.npy`` file, once its header agrees with its size."""
    stream = io.BytesIO(data)
    version = _FORMAT.read_magic(stream)
    readers = {(1, 0): _FORMAT.read_array_header_1_0, (2, 0): _FORMAT.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name}: a format of NumPy that is not known here, {version}")
    shape, is_fortran, dtype = readers[version](stream)
    if dtype.kind not in KINDS or any(size < 0 for size in shape):
        raise ValueError(f"{name}: {dtype} of shape {list(shape)}, no plain array")
    start = stream.tell()
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"{name}: {dtype} of shape {list(shape)} in {len(data) - start} bytes")
    flat = (
        np.frombuffer(data, dtype, math.prod(shape), start) if math.prod(shape) else np.empty(0, dtype)
    )
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def describe_stranger(head: bytes) -> str:
    """Returns what a file is that is no checkpoint, by its first 512 bytes; "" for something else."""
    kinds = (what for pattern, what in STRANGERS if re.match(pattern, head, re.DOTALL))
    return next(kinds, "")


def is_torch_archive(name: str, file: BinaryIO) -> bool:
    """Returns whether a torch file is an archive, or of the format before that.

    Raises:
        CheckpointError: it is neither, or a program, or it unpacks to more than its size.
    """
    head, size = file.read(512), file.seek(0, os.SEEK_END)
    if not head.startswith(b"PK"):
        if OLD_FORMAT not in head[:32]:
            what = describe_stranger(head)
            if re.match(SAFETENSORS, head, re.DOTALL):
                what = "a safetensors file; name it .safetensors"
            why = f"but {what}" if what else "or truncated"
            raise CheckpointError(f"{name}: not a torch checkpoint, {why}")
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{name}: not a torch checkpoint, or truncated: {error}") from None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{name}: a TorchScript program; save model.state_dict() instead")
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        listed = ", ".join(ascii(entry.filename)[1:-1] for entry in entries[:3])
        raise CheckpointError(
            f"{name}: not a torch checkpoint, but a zip archive of {listed:.150}; unpack it"
        )
    held = sum(entry.file_size for entry in entries)
    if held > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{name}: refused: its {size} bytes unpack to {held}; torch writes checkpoints uncompressed"
        )
    return True
