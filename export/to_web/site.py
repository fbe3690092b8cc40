"""Adds the page to a bundle's folder, so that any static server serves it."""

import gzip
import hashlib
import json
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

from pocketsam import __version__
from pocketsam.errors import ConversionError
from pocketsam.export.to_web.onnxruntime_web import PACKAGE, VERSION, read_engine
from pocketsam.runtime.manifest import MANIFEST_NAME

ENGINE = "onnxruntime"
"""Folder of onnxruntime-web's files."""
SITE_NAME = "site.json"
"""Lists every file of the page with its sha256; the page checks what it loads."""
SAMPLE = "photo.jpg"
LICENSES = ("LICENSE", "ThirdPartyNotices.txt")
"""Of onnxruntime, as its Python package carries them."""


def add_page(folder: Path) -> None:
    """Writes the page beside a bundle's networks: HTML, modules, onnxruntime-web, a photograph.

    WebAssembly is stored gzipped (a quarter of its size); the page unpacks it.

    Args:
        folder: holds the networks, the golden vectors and the manifest.

    Raises:
        DownloadError: onnxruntime-web could not be had.
        ConversionError: this installation lacks onnxruntime's licences.
    """
    page = files("pocketsam.export.to_web") / "page"
    for part in ("", "worker"):
        for source in (page / part).iterdir():
            if source.is_file():
                _write(folder / part / source.name, source.read_bytes())
    _write(folder / SAMPLE, (files("pocketsam.runtime") / "demo.jpg").read_bytes())
    for name, data in read_engine().items():
        path = folder / ENGINE / name
        if path.suffix == ".wasm":
            # not ".gz": some servers call that an encoding, and the browser then unpacks it
            _write(path.with_name(f"{name}.packed"), gzip.compress(data, 9, mtime=0))
        else:
            _write(path, data)
    for name in LICENSES:
        _write(folder / ENGINE / name, _license(name))
    _write_site(folder)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _license(name: str) -> bytes:
    """Returns a file of licences out of the installed onnxruntime."""
    for path in distribution("onnxruntime").files or ():
        if path.name == name:
            return Path(str(path.locate())).read_bytes()
    raise ConversionError(f"the installed onnxruntime has no {name}, which its files must carry")


def _write_site(folder: Path) -> None:
    """Writes the list of files, and a hash of all into the service worker, whose cache it names."""
    worker = folder / "sw.js"
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST_NAME, SITE_NAME) and path != worker
    }
    about = {"pocketsam": __version__, PACKAGE: VERSION, "files": hashes}
    text = json.dumps(about, indent=1) + "\n"
    (folder / SITE_NAME).write_text(text, encoding="utf-8")
    manifest = (folder / MANIFEST_NAME).read_bytes()  # thresholds may be all that a new export changes
    version = hashlib.sha256(text.encode() + manifest).hexdigest()[:16]
    source = worker.read_text(encoding="utf-8")
    names = json.dumps([*hashes, MANIFEST_NAME, SITE_NAME])
    for place, value in (('["development"]', names), ('"development"', f'"{version}"')):
        if place not in source:
            raise ConversionError(f"sw.js has no place for {value[:40]}")
        source = source.replace(place, value)
    worker.write_text(source, encoding="utf-8")
