"""The web target: a bundle with a page around it, and onnxruntime-web out of npm."""

import hashlib
import json
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from pocketsam import Segmenter, export
from pocketsam.cli import main
from pocketsam.errors import DownloadError
from pocketsam.export.to_web import onnxruntime_web
from pocketsam.export.to_web.onnxruntime_web import FILES, read_engine
from pocketsam.export.to_web.site import add_page
from pocketsam.models.download import cache_folder
from pocketsam.runtime.bundle import DEFAULT_BUNDLE, open_bundle

MOST_BYTES = 30_000_000
CACHED = cache_folder() / f"{onnxruntime_web.PACKAGE}-{onnxruntime_web.VERSION}"


@pytest.fixture(scope="module")
def engine():
    """The files of onnxruntime-web, out of the cache or from npm."""
    try:
        return read_engine()
    except DownloadError as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")


@pytest.fixture(scope="module")
def site(tmp_path_factory, engine):
    """The page around the default bundle."""
    folder = tmp_path_factory.mktemp("web") / "site"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    add_page(folder)
    return folder


@pytest.mark.slow
def test_a_site_is_a_bundle(tmp_path, engine):
    site = tmp_path / "site"
    export("default", site, target="web", image_size=64, accept="lossy")
    assert (site / "index.html").is_file()
    manifest = open_bundle(site).manifest
    assert (manifest.target, manifest.precision) == ("web", "int8-weights")
    assert manifest.grade is not None
    assert Segmenter(site).image_size == 64
    assert main(["verify", str(site)]) == 0


def test_the_page_lists_its_files(site):
    listed = json.loads((site / "site.json").read_text())["files"]
    present = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert present - set(listed) == {"site.json", "manifest.json", "sw.js"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((site / name).read_bytes()).hexdigest() == sha256
    assert "development" not in (site / "sw.js").read_text()
    assert "MIT License" in (site / "onnxruntime" / "LICENSE").read_text()


def test_other_thresholds_alone_are_a_new_export(site, tmp_path):
    """Browsers keep a page until its service worker changes."""
    folder = tmp_path / "site"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["mask_threshold"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    add_page(folder)
    assert (folder / "site.json").read_text() == (site / "site.json").read_text()
    assert (folder / "sw.js").read_text() != (site / "sw.js").read_text()


def test_all_of_it_is_small(site):
    networks = sum(path.stat().st_size for path in DEFAULT_BUNDLE.iterdir())
    page = sum(
        path.stat().st_size for path in site.rglob("*") if path.is_file() and path.suffix != ".onnx"
    )
    assert page + networks <= MOST_BYTES


def test_no_address_of_another_origin_in_the_page():
    page = Path(onnxruntime_web.__file__).parent / "page"
    for path in page.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text.replace("http://localhost", "")
            assert "https://" not in text


def use(monkeypatch, tmp_path: Path, npm: str | None) -> None:
    """Gives an empty cache, and a program as npm (None: none at all)."""
    monkeypatch.setenv("POCKETSAM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "programs"
    folder.mkdir()
    if npm is not None:
        program = folder / "npm"
        program.write_text(f"#!/bin/sh\n{npm}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if npm else str(folder))


def test_without_npm_it_says_what_to_install(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, None)
    with pytest.raises(DownloadError, match=r"needs npm once.*Node\.js"):
        read_engine()


def test_what_npm_says_is_passed_on(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, "echo 'npm error network is unreachable' >&2; exit 1")
    with pytest.raises(DownloadError, match="network is unreachable"):
        read_engine()


@pytest.mark.parametrize("name", [*FILES, "package.json"])
def test_another_package_is_refused(monkeypatch, tmp_path, name):
    (tmp_path / "file").write_bytes(b"something else")
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        for inside in FILES if name in FILES else ():
            tar.add(tmp_path / "file", f"package/dist/{inside}")
    # the arguments: pack PACKAGE --silent --pack-destination FOLDER
    use(monkeypatch, tmp_path, f'/bin/cp {tmp_path / "package.tgz"} "$5"')
    with pytest.raises(DownloadError, match=r"not the pinned file|damaged or another package"):
        read_engine()
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_fetched_again(monkeypatch, tmp_path, engine):
    found = engine
    use(monkeypatch, tmp_path, None)
    folder = tmp_path / "cache" / CACHED.name
    folder.mkdir(parents=True)
    for name, content in found.items():
        (folder / name).write_bytes(content)
    assert read_engine() == found
    (folder / next(iter(FILES))).write_bytes(b"damaged")
    with pytest.raises(DownloadError):
        read_engine()


def test_the_command_says_no_more_than_it_must(monkeypatch, tmp_path, capsys):
    use(monkeypatch, tmp_path, None)
    output = tmp_path / "site"
    assert (
        main(["export", "default", "--target", "web", "--image-size", "64", "--output", str(output)])
        == 1
    )
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .startswith("pocketsam: error: --target web needs npm")
    )
    assert not output.exists()
