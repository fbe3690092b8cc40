"""The files of onnxruntime-web, from npm: fetched once, kept, and checked by their hashes."""

import hashlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import which

from pocketsam.errors import DownloadError
from pocketsam.files import make_folder, write_files
from pocketsam.models.download import cache_folder

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort.jspi.bundle.min.mjs": "07ec090355e11b342c95436db54da2d0c2bd5b1d319745bfd3337e6bdcf170ac",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort-wasm-simd-threaded.jspi.wasm": (
        "a54c76f86b0f0d9572380cf1c6292a7b3903716ffcbcd6b0e5c7050bf430eb93"
    ),
}
"""Name in the package's ``dist`` to sha256: WebAssembly alone, and with WebGPU (which needs JSPI)."""
TIMEOUT = 600
"""Seconds for npm."""


def read_engine() -> dict[str, bytes]:
    """Returns the files of ``FILES`` by name, from the cache; what is missing there comes from npm.

    Raises:
        DownloadError: there is no npm, it could not fetch the package, or its files are not the pinned
            ones.
        PocketSamError: the cache cannot be written.
    """
    folder = cache_folder() / f"{PACKAGE}-{VERSION}"
    found = {name: data for name in FILES if (data := _read(folder / name)) is not None}
    if len(found) < len(FILES):
        found = _fetch()
        make_folder(folder)
        write_files([(folder / name, _writer(data)) for name, data in found.items()])
    return found


def _writer(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _read(path: Path) -> bytes | None:
    """Returns a file's bytes if they are the pinned ones."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == FILES[path.name] else None


def _fetch() -> dict[str, bytes]:
    """Returns the files out of the package that npm downloads."""
    package = f"{PACKAGE}@{VERSION}"
    npm = which("npm")
    if npm is None:
        raise DownloadError(
            f"--target web needs npm once, for {package}: install Node.js (on Debian: sudo apt install "
            "npm) and run it again"
        )
    with tempfile.TemporaryDirectory() as work:
        command = [npm, "pack", package, "--silent", "--pack-destination", work]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT, cwd=work, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DownloadError(f"npm could not fetch {package}: {error}") from None
        archives = list(Path(work).glob("*.tgz"))
        if run.returncode or not archives:
            lines = (run.stderr or run.stdout).strip().splitlines() or ["it says nothing"]
            raise DownloadError(f"npm could not fetch {package}: {lines[0]}")
        return _unpack(archives[0].read_bytes(), package)


def _unpack(archive: bytes, package: str) -> dict[str, bytes]:
    """Returns the files of ``FILES`` in npm's archive, if they are the pinned ones."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for name in FILES:
                member = tar.extractfile(f"package/dist/{name}")
                found[name] = member.read() if member else b""
    except (KeyError, EOFError, OSError, tarfile.TarError) as error:
        raise DownloadError(f"{package}: a damaged or another package: {error}") from None
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != FILES[name]:
            raise DownloadError(f"{package}: {name} is not the pinned file; is the registry a mirror?")
    return found
