"""Downloads the official checkpoints: resumable, verified, whole or not at all. Needs no torch."""

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pocketsam.errors import DownloadError

try:
    import fcntl
except ModuleNotFoundError:  # Windows; two downloads to one place are not noticed there
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 18
"""Bytes read at a time."""
_HINT = "a file fetched by other means can be given to the commands as it is"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the network, and what to check once it has arrived.

    Attributes:
        url: its official address.
        file_name: the name of the file that is written.
        size: in bytes.
        sha256: of the content, in lower-case hexadecimal digits.
    """

    url: str
    file_name: str
    size: int
    sha256: str


CHECKPOINTS: dict[str, RemoteFile] = {
    "mobile_sam": RemoteFile(
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "mobile_sam.pt",
        40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "sam_vit_b": RemoteFile(
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam_vit_l": RemoteFile(
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam_vit_h": RemoteFile(
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}

Progress = Callable[[int, int], None]


def download(
    name: str,
    destination: str | os.PathLike[str] = ".",
    *,
    url: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Downloads a checkpoint, and returns the file's path; after an interruption, another call resumes.

    The bytes go to ``DESTINATION.part``, which is renamed once its size and sha256 are right.

    Args:
        name: a key of ``CHECKPOINTS``.
        destination: a file; or a directory, for the official file name in it.
        url: another http or https address of the same file.
        progress: called with (bytes so far, bytes in all).
        timeout: seconds without an answer after which to give up.

    Returns:
        The path of the file. If it exists already with the right sha256, nothing is downloaded.

    Raises:
        DownloadError: the name is unknown, the network fails, the data are damaged, ``destination``
            is another file, is being downloaded by another process, or cannot be written.
    """
    if name not in CHECKPOINTS:
        raise DownloadError(f"unknown checkpoint {name!r}; known are {', '.join(CHECKPOINTS)}")
    wanted = CHECKPOINTS[name]
    address = url or wanted.url
    if not address.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{address}: must be an http or https address")
    path = Path(destination)
    if path.is_dir():
        path = path / wanted.file_name
    try:
        if path.exists():
            found = hash_file(path)
            if found != wanted.sha256:
                raise DownloadError(f"{path}: exists with sha256 {found}, not {wanted.sha256}; move it")
            return path
        part = path.with_name(f"{path.name}.part")
        with _locked(part):
            if not path.exists():  # else another process has just finished
                _fetch(address, part, wanted.size, progress, timeout)
                _accept(part, path, wanted)
    except OSError as error:  # from the disk; errors of the network are DownloadErrors by now
        raise DownloadError(f"{error.filename or path}: {error.strerror or error}") from None
    return path


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Holds an unfinished file's lock, which the system takes from a process that ends.

    Raises:
        DownloadError: another process is downloading it.
    """
    if not fcntl:
        yield
        return
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{part}: another pocketsam is downloading it; wait for it") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def cache_folder() -> Path:
    """Returns the directory where official checkpoints are kept; it need not exist.

    ``POCKETSAM_CACHE``, or else the place that the system has for such files: ``pocketsam`` in
    ``XDG_CACHE_HOME`` or ``~/.cache``, ``~/Library/Caches`` on macOS, ``LOCALAPPDATA`` on Windows.
    """
    own = os.environ.get("POCKETSAM_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        usual = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        usual = Path.home() / "Library" / "Caches"
    else:
        usual = Path(os.environ.get("XDG_CACHE_HOME", ""))
        usual = usual if usual.is_absolute() else Path.home() / ".cache"
    return usual / "pocketsam"


def cached(name: str, progress: Progress | None = None) -> Path:
    """Returns the path of an official checkpoint in ``cache_folder``; downloads it if it is not there.

    Args:
        name: a key of ``CHECKPOINTS``.
        progress: as for ``download``.

    Raises:
        DownloadError: as for ``download``.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{folder}: {error.strerror}; POCKETSAM_CACHE chooses another place for downloads"
        ) from None
    return download(name, folder, progress=progress)


def _fetch(address: str, part: Path, size: int, progress: Progress | None, timeout: float) -> None:
    """Appends the missing bytes to ``part``, or starts over if the server knows no ranges."""
    done = part.stat().st_size if part.exists() else 0
    if done > size:
        part.unlink()
        done = 0
    if done == size:
        return
    answer, done = _open(address, done, timeout)
    with answer, part.open("ab" if done else "wb") as file:
        done, ending = _copy(answer, file, done, size, progress)
    if done > size:
        part.unlink()
        raise DownloadError(f"{address}: sends more than the {size} bytes of the file; deleted")
    if done < size:
        raise DownloadError(
            f"{address}: {ending}; {done} of {size} bytes are kept; run it again to resume"
        )


def _open(address: str, done: int, timeout: float) -> tuple[http.client.HTTPResponse, int]:
    """Returns the server's answer, and the offset of its first byte in the file: ``done``, or 0."""
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "pocketsam"})
        if done:
            request.add_header("Range", f"bytes={done}-")
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:
            return _open(address, 0, timeout)
        raise DownloadError(
            f"{address}: the server answers {error.code} {error.reason}; {_HINT}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a malformed url
        raise DownloadError(_explain(address, error)) from None
    if answer.status != 206:
        return answer, 0
    start = answer.headers.get("Content-Range", "")
    if not start.startswith(f"bytes {done}-"):
        answer.close()
        raise DownloadError(f"{address}: asked for bytes from {done}, the server sent {start!r}")
    return answer, done


def _copy(
    answer: http.client.HTTPResponse, file: BinaryIO, done: int, size: int, progress: Progress | None
) -> tuple[int, str]:
    """Copies until the answer ends or ``size`` is exceeded.

    Returns:
        The number of bytes now in the file, and why the answer ended.
    """
    ending = ""
    try:
        while done <= size and not ending:
            data, ending = _read(answer)
            file.write(data)
            done += len(data)
            if data and progress is not None:
                progress(min(done, size), size)
    finally:
        file.flush()
        os.fsync(file.fileno())
    return done, ending


def _read(answer: http.client.HTTPResponse) -> tuple[bytes, str]:
    """Returns the next bytes, and why none will follow: "" as long as more may come."""
    try:
        data = answer.read(CHUNK)
    except http.client.IncompleteRead as cut:
        return cut.partial, "the connection closed"
    except TimeoutError:
        return b"", "no answer in time"
    except (OSError, http.client.HTTPException) as error:
        return b"", f"the connection broke ({error})"
    return data, "" if data else "the connection closed"


def _accept(part: Path, path: Path, wanted: RemoteFile) -> None:
    """Renames ``part`` to ``path`` if its sha256 is right; deletes it otherwise."""
    found, size = hash_file(part), part.stat().st_size
    if found != wanted.sha256:
        part.unlink()
        raise DownloadError(
            f"{path.name}: {size} bytes with sha256 {found} arrived instead of {wanted.size} bytes "
            f"with {wanted.sha256}; deleted"
        )
    part.replace(path)


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _explain(address: str, error: Exception) -> str:
    """Returns a message for an address that cannot be reached."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"{address}: no answer in time; run it again to resume; {_HINT}"
    return f"{address}: cannot be reached ({reason}). Offline? {_HINT[0].upper()}{_HINT[1:]}"
