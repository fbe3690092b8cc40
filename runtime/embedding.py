"""Embeddings in files, with hashes of the image and of the encoder that they belong to."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.archives import MAX_BYTES, read_npz
from pocketsam.errors import ImageError
from pocketsam.files import make_folder, write_file
from pocketsam.images import Pixels, StrPath, check_size
from pocketsam.reading import read_regular
from pocketsam.runtime.contract import IMAGE_EMBEDDINGS
from pocketsam.runtime.image import check_pixels


@dataclass(frozen=True)
class Embedding:
    """An image's embedding, with the hashes of the image and the encoder.

    Attributes:
        values: ``[1, 256, S/16, S/16]`` float32.
        original_size: (height, width) of the image.
        image_sha256: hash of the image's pixels, see ``hash_pixels``.
        encoder_sha256: hash of the encoder's file, as in the manifest.
        arithmetic: the number format that the encoder was asked to compute in: f32, bf16 or f16.
    """

    values: NDArray[np.float32]
    original_size: tuple[int, int]
    image_sha256: str
    encoder_sha256: str
    arithmetic: str = "f32"

    def save(self, path: StrPath) -> None:
        """Writes a file in NumPy's ``.npz`` format, whole or not at all, and makes its folder.

        The file is ``path``, whatever its suffix. A path without a suffix is fine too.
        """
        file = Path(path)
        make_folder(file.parent)
        arrays: dict[str, Any] = {
            IMAGE_EMBEDDINGS: self.values,
            "original_size": np.array(self.original_size, np.int64),
            "image_sha256": np.array(self.image_sha256),
            "encoder_sha256": np.array(self.encoder_sha256),
            "arithmetic": np.array(self.arithmetic),
        }

        def write(work: Path) -> None:
            with work.open("wb") as stream:  # given a path, NumPy appends .npz to other suffixes
                np.savez(stream, **arrays)

        write_file(file, write)


def hash_pixels(pixels: Pixels) -> str:
    """Returns a sha256 of an image's size and RGB values; the file's format does not matter."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def read_embedding(path: StrPath) -> Embedding:
    """Returns the embedding in a file that ``Embedding.save`` wrote.

    Raises:
        ImageError: the file cannot be read, or is something else.
    """
    try:
        arrays = read_npz(read_regular(Path(path), 2 * MAX_BYTES))
        values, size = arrays[IMAGE_EMBEDDINGS], arrays["original_size"]
        image_sha256, encoder_sha256 = arrays["image_sha256"], arrays["encoder_sha256"]
        arithmetic = arrays.get("arithmetic", np.array("f32"))  # files of earlier versions do not say
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise ImageError(f"{path}: not an embedding of pocketsam: it has no {error}") from None
    except (ValueError, MemoryError) as error:
        raise ImageError(f"{path}: not an embedding of pocketsam: {error}") from None
    if values.dtype != np.float32 or values.ndim != 4 or not np.isfinite(values).all():
        raise ImageError(f"{path}: {IMAGE_EMBEDDINGS} is not a finite float32 [1, 256, n, n]")
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise ImageError(f"{path}: original_size is not a height and a width in whole pixels")
    height, width = (int(side) for side in size)
    check_size(height, width, f"{path}: original_size")
    texts = (image_sha256, encoder_sha256, arithmetic)
    if any(text.shape or text.dtype.kind != "U" for text in texts):
        raise ImageError(f"{path}: image_sha256, encoder_sha256 or arithmetic is not a text")
    return Embedding(values, (height, width), *map(str, texts))


def is_foreign(path: StrPath) -> bool:
    """Returns whether a file is a whole ``.npz`` file that ``Embedding.save`` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "encoder_sha256.npy" not in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_matching(
    path: StrPath, encoder_sha256: str, shape: tuple[int, ...], image: Pixels | None = None
) -> Embedding:
    """Returns the embedding in a file, after checking which encoder and image it belongs to.

    Args:
        path: a file that ``Embedding.save`` wrote.
        encoder_sha256: hash of the encoder.
        shape: of the encoder's embeddings.
        image: ``[H, W, 3]`` uint8; None: any image.

    Raises:
        ImageError: the file cannot be read, is something else, or an embedding of another encoder or
            image; or ``image`` cannot be used.
    """
    embedding = read_embedding(path)
    if embedding.encoder_sha256 != encoder_sha256 or embedding.values.shape != shape:
        raise ImageError(
            f"{path}: embedding of another encoder (sha256 {embedding.encoder_sha256[:12]}…, this "
            f"bundle's is {encoder_sha256[:12]}…); encode the image again"
        )
    if image is None:
        return embedding
    pixels = check_pixels(image)
    if (embedding.image_sha256, embedding.original_size) != (hash_pixels(pixels), pixels.shape[:2]):
        raise ImageError(f"{path}: embedding of another image; encode this image")
    return embedding


def as_array(value: Any) -> NDArray[np.float32]:
    """Returns an embedding in numpy's memory, from there or from a GPU's."""
    array: NDArray[np.float32] = value if isinstance(value, np.ndarray) else value.numpy()
    return array
