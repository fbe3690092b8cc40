"""Keeps the teacher's embeddings, computed once, in one flat, memory-mapped file.

A record is an image's embedding in float16, 2·256·(S/16)² bytes: 2,097,152 at 1024 and 524,288 at 512.
``cache.json`` names the teacher, the size and the images; ``checksums.bin`` holds the CRC32 of each
record, written after the record, and 0 for a record that is missing. Where a file was cut or deleted,
what is left is checked, and the rest is computed again.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.errors import PocketSamError
from pocketsam.files import make_folder, write_bytes
from pocketsam.models.sam import EMBED_DIM

KEY_NAME, DATA_NAME, SUMS_NAME = "cache.json", "embeddings.f16", "checksums.bin"


class EmbeddingCache:
    """Embeddings of a list of images by one teacher at one size.

    Args:
        folder: of the cache; made if it does not exist.
        teacher: sha256 of the teacher's checkpoint.
        image_size: side of the canvas in pixels.
        images: names of the images, in the order of the records.

    Raises:
        PocketSamError: the folder holds the cache of another teacher, size or list of images; or the
            disk is too small.
    """

    def __init__(self, folder: Path, teacher: str, image_size: int, images: Sequence[str]) -> None:
        self.folder = folder
        self._key: dict[str, Any] = {
            "teacher": teacher,
            "image_size": image_size,
            "images": list(images),
        }
        cells = image_size // 16
        self.shape = (len(images), EMBED_DIM, cells, cells)
        is_whole = self._check_key()
        is_whole &= self._make(DATA_NAME, self.bytes_per_image * len(images))
        is_whole &= self._make(SUMS_NAME, 4 * len(images))
        self._open()
        if not is_whole:
            self._drop_damaged()

    def _open(self) -> None:
        """Maps the files into memory."""
        data, sums = self.folder / DATA_NAME, self.folder / SUMS_NAME
        try:
            self._data: NDArray[np.float16] = np.memmap(data, np.float16, "r+", shape=self.shape)
            self._sums: NDArray[np.uint32] = np.memmap(sums, np.uint32, "r+", shape=self.shape[:1])
        except OSError as error:
            raise PocketSamError(f"{self.folder}: {error.strerror}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a worker process needs; it maps the files itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_data", "_sums")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over what ``__getstate__`` returned."""
        vars(self).update(state)
        self._open()

    @property
    def bytes_per_image(self) -> int:
        """Returns the size of a record, without its checksum."""
        return 2 * int(np.prod(self.shape[1:]))

    def _check_key(self) -> bool:
        """Compares ``cache.json`` with this cache's teacher, size and images; writes it if need be.

        Returns:
            Whether it was there. Where it is damaged, nobody knows whose the records are.
        """
        path = self.folder / KEY_NAME
        found: Any = None
        if path.exists():
            with contextlib.suppress(ValueError):
                found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            for name, value in self._key.items():
                if found.get(name) != value:
                    raise PocketSamError(
                        f"{self.folder}: a cache of another {name}; choose another folder"
                    )
            return True
        make_folder(self.folder)
        (self.folder / SUMS_NAME).unlink(missing_ok=True)
        write_bytes(path, json.dumps(self._key).encode())
        return False

    def _make(self, name: str, size: int) -> bool:
        """Gives a file its full size, so that a disk too small fails at once.

        Returns:
            Whether it had it. What a shorter file holds is kept.
        """
        path = self.folder / name
        if path.exists() and path.stat().st_size == size:
            return True
        is_new = not path.exists()
        try:
            with path.open("ab") as file:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
        except OSError as error:
            if is_new:
                path.unlink(missing_ok=True)
            raise PocketSamError(f"{self.folder}: {error.strerror}") from None
        return False

    def _drop_damaged(self) -> None:
        """Marks the records as missing that are not what their checksums say."""
        for number in np.flatnonzero(self._sums):
            if self._sums[number] != _checksum(self._data[number]):
                self._sums[number] = 0

    def missing(self) -> list[int]:
        """Returns the numbers of the records that are missing, in order."""
        return [int(number) for number in np.flatnonzero(self._sums == 0)]

    def put(self, number: int, embedding: Tensor) -> None:
        """Stores an embedding ``[256, h, w]``.

        Raises:
            PocketSamError: it is not finite in float16.
        """
        record = embedding.to(torch.float16).cpu().numpy()
        if not np.isfinite(record).all():
            raise PocketSamError(
                f"{self._key['images'][number]}: the teacher's embedding is not finite"
            )
        self._data[number] = record
        self._sums[number] = _checksum(record)

    def get(self, number: int) -> Tensor:
        """Returns an embedding ``[256, h, w]`` in float32.

        Raises:
            PocketSamError: the record is missing or damaged.
        """
        record = np.array(self._data[number])
        if self._sums[number] != _checksum(record):
            self._sums[number] = 0
            raise PocketSamError(
                f"{self.folder / DATA_NAME}: record {number} is missing or damaged; start again to "
                "compute it again"
            )
        return torch.from_numpy(record).float()

    def fill(
        self,
        encode: Callable[[Tensor], Tensor],
        load: Callable[[int], Tensor],
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Computes the missing records; after a kill at any moment, another call resumes.

        Args:
            encode: turns ``pixel_values [1, 3, S, S]`` into ``[1, 256, h, w]``.
            load: turns an image's number into its ``pixel_values [3, S, S]``.
            progress: called with (records stored, records in all).
        """
        missing, total = self.missing(), self.shape[0]
        with torch.inference_mode():
            for done, number in enumerate(missing, start=total - len(missing) + 1):
                self.put(number, encode(load(number).unsqueeze(0))[0])
                progress(done, total)


def _checksum(record: NDArray[np.float16]) -> int:
    """Returns the CRC32, never 0: a checksum of 0 means that the record is missing."""
    return zlib.crc32(record.tobytes()) or 1
