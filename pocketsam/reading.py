"""Files of anybody, read with care: no pipes and devices, no more bytes than are wanted."""

import errno
import stat
from pathlib import Path


def regular_size(path: Path) -> int:
    """Returns the size in bytes of a regular file, or of one that a link leads to.

    Raises:
        OSError: it is missing, or something else: a pipe would wait for a writer, a device might never
            end.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size


def read_regular(path: Path, limit: int) -> bytes:
    """Returns the bytes of a regular file, see ``regular_size``.

    Args:
        path: the file.
        limit: most bytes that it may have; the size is compared before anything is read.

    Raises:
        OSError: it cannot be read, is no regular file, is too large, or changed meanwhile.
    """
    size = regular_size(path)
    if size > limit:
        raise OSError(errno.EFBIG, f"{size} bytes, more than {limit}", str(path))
    with path.open("rb") as stream:
        data = stream.read(size + 1)
    if len(data) != size:
        raise OSError(errno.EIO, "its size changed while it was read", str(path))
    return data
