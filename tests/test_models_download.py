"""The downloader against a real server on this machine, with the faults that servers have."""

import contextlib
import dataclasses
import hashlib
import io
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_pocketsam, run_pocketsam

from pocketsam.errors import BundleError, DownloadError
from pocketsam.export import export
from pocketsam.models import download as module
from pocketsam.models.checkpoint import load_model, read_settings
from pocketsam.models.download import CHECKPOINTS, RemoteFile, cache_folder, cached, download
from pocketsam.models.sam import seeded

PAYLOAD = np.random.default_rng(0).bytes(700_001)


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    """The server is on this machine."""
    monkeypatch.setenv("no_proxy", "*")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        mode = server.modes.pop(0) if server.modes else "good"
        if mode in ("404", "416", "500"):
            self.send_error(int(mode))
            return
        if mode == "stall":
            server.stalled.wait(10)
            return
        start = 0
        data = PAYLOAD
        if mode == "damaged":
            data = PAYLOAD[:1000] + bytes([PAYLOAD[1000] ^ 1]) + PAYLOAD[1001:]
        if mode == "long":
            data = PAYLOAD + b"more" * 200_000
        asked = self.headers.get("Range")
        if asked and mode != "no ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            first = start + 7 if mode == "wrong range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        if mode == "endless":
            self.end_headers()
            self.send_endlessly()
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mode in ("cut", "reset", "stall midway"):
            self.wfile.write(body[:300_000])
            self.close_connection = True
            if mode != "cut":
                server.stalled.wait(10)
            if mode == "reset":
                self.reset()
            return
        server.sent.append(len(body))  # before they go: the client may be done first
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def send_endlessly(self):
        self.close_connection = True
        try:
            for _ in range(100):  # far more than the buffers between the two can hold
                self.wfile.write(PAYLOAD)
        except ConnectionError:
            return
        self.server.sent.append(100 * len(PAYLOAD))

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


@pytest.fixture
def server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.modes, server.sent = [], [], []
        server.stalled = threading.Event()
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        entry = RemoteFile(
            f"http://127.0.0.1:{server.server_port}/weights.pt",
            "weights.pt",
            len(PAYLOAD),
            hashlib.sha256(PAYLOAD).hexdigest(),
        )
        monkeypatch.setitem(CHECKPOINTS, "test", entry)
        yield server
        server.stalled.set()
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_official_address_and_hash():
    assert CHECKPOINTS["mobile_sam"] == RemoteFile(
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "mobile_sam.pt",
        40728226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    )


def test_a_file_arrives_whole(server, tmp_path):
    seen = []
    path = download("test", tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "weights.pt"
    assert path.read_bytes() == PAYLOAD
    assert names(tmp_path) == ["weights.pt"]
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_name_of_ones_own(server, tmp_path):
    assert download("test", tmp_path / "mine.pt").read_bytes() == PAYLOAD
    assert names(tmp_path) == ["mine.pt"]


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "weights.pt").write_bytes(PAYLOAD)
    assert download("test", tmp_path) == tmp_path / "weights.pt"
    assert server.requests == []


def test_another_file_in_the_place_is_left_alone(server, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"weights\.pt: exists"):
        download("test", tmp_path)
    assert (tmp_path / "weights.pt").read_bytes() == b"mine"
    assert server.requests == []


def test_a_broken_download_resumes_where_it_stopped(server, tmp_path):
    server.modes = ["cut"]
    with pytest.raises(DownloadError, match=rf"300000 of {len(PAYLOAD)} bytes are kept; run it again"):
        download("test", tmp_path)
    assert names(tmp_path) == ["weights.pt.part"]
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert server.requests[-1]["Range"] == "bytes=300000-"
    assert server.sent == [len(PAYLOAD) - 300_000]


def test_a_connection_that_is_reset_keeps_what_came(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50_000)
    server.modes = ["reset"]
    with pytest.raises(
        DownloadError, match=r"connection broke .* bytes are kept; run it again"
    ) as caught:
        download("test", tmp_path, progress=lambda *_: server.stalled.set())
    kept = int(re.search(r"(\d+) of", str(caught.value))[1])
    assert (tmp_path / "weights.pt.part").read_bytes() == PAYLOAD[:kept]
    assert kept >= 50_000
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert server.requests[-1]["Range"] == f"bytes={kept}-"


def test_a_server_without_ranges_starts_over(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(PAYLOAD[:1000])
    server.modes = ["no ranges"]
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert server.sent == [len(PAYLOAD)]


def test_a_range_that_the_server_refuses_starts_over(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(bytes(1000))
    server.modes = ["416"]
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert [request.get("Range") for request in server.requests] == ["bytes=1000-", None]


def test_another_range_than_asked_for_is_not_written(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(PAYLOAD[:1000])
    server.modes = ["wrong range"]
    with pytest.raises(DownloadError, match="asked for bytes from 1000"):
        download("test", tmp_path)
    assert (tmp_path / "weights.pt.part").read_bytes() == PAYLOAD[:1000]
    assert download("test", tmp_path).read_bytes() == PAYLOAD


def test_a_whole_part_needs_no_network(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(PAYLOAD)
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert server.requests == []


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(bytes(len(PAYLOAD) + 5))
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert "Range" not in server.requests[-1]


def test_damaged_bytes_never_get_the_name(server, tmp_path):
    server.modes = ["damaged"]
    with pytest.raises(DownloadError, match="sha256") as caught:
        download("test", tmp_path)
    damaged = PAYLOAD[:1000] + bytes([PAYLOAD[1000] ^ 1]) + PAYLOAD[1001:]
    for data in (PAYLOAD, damaged):
        assert hashlib.sha256(data).hexdigest() in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode", ["long", "endless"])
def test_more_bytes_than_the_file_has_are_refused(server, tmp_path, mode):
    server.modes = [mode]
    with pytest.raises(DownloadError, match=rf"more than the {len(PAYLOAD)} bytes"):
        download("test", tmp_path)
    assert names(tmp_path) == []
    assert mode == "long" or server.sent == []  # it stopped long before the server did


def test_a_damaged_part_is_not_kept(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="deleted"):
        download("test", tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode", ["404", "416", "500"])
def test_an_error_of_the_server_is_told(server, tmp_path, mode):
    server.modes = [mode]
    with pytest.raises(DownloadError, match=rf"127\.0\.0\.1.*answers {mode} .*by other means"):
        download("test", tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_stalls(server, tmp_path):
    server.modes = ["stall"]
    start = time.monotonic()
    with pytest.raises(DownloadError, match="no answer in time"):
        download("test", tmp_path, timeout=0.3)
    assert time.monotonic() - start < 5


def test_a_server_that_stalls_midway(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50_000)
    server.modes = ["stall midway"]
    with pytest.raises(DownloadError, match=rf"in time; 300000 of {len(PAYLOAD)} bytes are kept"):
        download("test", tmp_path, timeout=0.3)
    assert (tmp_path / "weights.pt.part").read_bytes() == PAYLOAD[:300_000]


def test_offline(tmp_path):
    with pytest.raises(DownloadError, match=r"cannot be reached.*Offline\?"):
        download("mobile_sam", tmp_path, url="http://127.0.0.1:9/nothing")
    with pytest.raises(DownloadError, match="cannot be reached"):
        download("mobile_sam", tmp_path, url="http://no-such-host.invalid/weights.pt", timeout=5)
    assert names(tmp_path) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(DownloadError, match="known are mobile_sam, sam_vit_b"):
        download("sam3", tmp_path)
    with pytest.raises(DownloadError, match="must be an http"):
        download("mobile_sam", tmp_path, url="file:///etc/passwd")
    for url in ("http://[::1", "http://a b/", "http://127.0.0.1:9/é", f"http://{'a' * 70}.org/"):
        with pytest.raises(DownloadError, match="cannot be reached") as caught:
            download("mobile_sam", tmp_path, url=url)
        assert url in str(caught.value)


def test_two_at_once(server, tmp_path):
    """The second is refused while the first runs, and the first's file arrives whole."""
    second = []

    def try_again(_done, _total):
        if not second:  # flock holds between two opened files, of one process or of two
            with pytest.raises(DownloadError, match=r"weights\.pt\.part: another pocketsam") as caught:
                download("test", tmp_path)
            second.append(caught)

    assert download("test", tmp_path, progress=try_again).read_bytes() == PAYLOAD
    assert second
    assert len(server.requests) == 1
    assert names(tmp_path) == ["weights.pt"]


def test_a_directory_that_is_not_there(server, tmp_path):
    with pytest.raises(DownloadError, match="nowhere"):
        download("test", tmp_path / "nowhere" / "weights.pt")
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "weights.pt.part").mkdir()
    with pytest.raises(DownloadError, match=r"weights\.pt\.part: Is a directory"):
        download("test", tmp_path)


def test_a_disk_that_takes_no_more(server, tmp_path):
    resource = pytest.importorskip("resource")  # a limit on a file's size is as good as a full disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        with pytest.raises(DownloadError, match=r"weights\.pt: File too large"):
            download("test", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "weights.pt.part").read_bytes() == PAYLOAD[:400_000]
    assert download("test", tmp_path).read_bytes() == PAYLOAD


def test_an_interrupt_keeps_the_part(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50_000)

    def interrupt(done, _total):
        if done >= 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download("test", tmp_path, progress=interrupt)
    assert (tmp_path / "weights.pt.part").read_bytes() == PAYLOAD[:200_000]


def test_the_command(tmp_path):
    done = run_pocketsam("download", "mobile_sam", "--output", tmp_path, "--url", "http://127.0.0.1:9/")
    assert done.returncode == 1
    assert done.stderr.startswith("pocketsam: error: http://127.0.0.1:9/: cannot be reached")
    assert run_pocketsam("download", "nothing").returncode == 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETSAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_where_the_system_keeps_such_files(monkeypatch, tmp_path):
    monkeypatch.delenv("POCKETSAM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/pocketsam"
    for absent in ("", "relative"):  # the specification says that a relative path is no path
        monkeypatch.setenv("XDG_CACHE_HOME", absent)
        assert cache_folder() == tmp_path / ".cache/pocketsam"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library/Caches/pocketsam"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local/pocketsam"
    monkeypatch.setenv("POCKETSAM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_checkpoint_is_downloaded_once(server, cache):
    assert cached("test") == cache / "weights.pt"
    assert cached("test").read_bytes() == PAYLOAD
    assert len(server.requests) == 1


def test_a_cached_download_resumes(server, cache):
    server.modes = ["cut"]
    with pytest.raises(DownloadError, match="run it again"):
        cached("test")
    assert cached("test").read_bytes() == PAYLOAD
    assert server.requests[-1]["Range"] == "bytes=300000-"


def test_a_cache_that_cannot_be_made(server, cache):
    cache.write_bytes(b"a file")
    with pytest.raises(DownloadError, match=r"cache: File exists; POCKETSAM_CACHE chooses another"):
        cached("test")


@pytest.fixture
def named(server, monkeypatch, cache):
    """Serves seeded weights under the name ``mobile_sam``."""
    data = io.BytesIO()
    torch.save(seeded(64, seed=3).state_dict(), data)
    monkeypatch.setitem(globals(), "PAYLOAD", data.getvalue())
    size, digest = len(PAYLOAD), hashlib.sha256(PAYLOAD).hexdigest()
    entry = RemoteFile(CHECKPOINTS["test"].url, "mobile_sam.pt", size, digest)
    monkeypatch.setitem(CHECKPOINTS, "mobile_sam", entry)
    return server


def test_a_name_loads(named, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobile_sam").mkdir()  # a bundle, as README names it
    loaded = load_model("mobile_sam", 64)
    assert (loaded.name, loaded.architecture, loaded.note) == ("mobile_sam.pt", "mobile_sam", "")
    assert loaded.sha256 == CHECKPOINTS["mobile_sam"].sha256
    assert read_settings("mobile_sam").image_size == 1024
    assert len(named.requests) == 1


def test_export_takes_names(named, cache, tmp_path, pictures):
    """Up to the place of the bundle, which is taken: no conversion, which has tests of its own."""
    lines = []
    (tmp_path / "bundle").write_bytes(b"")
    with pytest.raises(BundleError, match="bundle"):
        export("mobile_sam", tmp_path / "bundle", image_size=64, images=pictures, progress=lines.append)
    progress = [line for line in lines if line.startswith(f"downloading mobile_sam to {cache}: ")]
    assert progress[-1].endswith(f"100 % of {len(PAYLOAD) / 1e6:.0f} MB")
    assert len(progress) <= 11
    assert lines[len(progress) :] == ["loading mobile_sam"]
    assert len(named.requests) == 1


@pytest.mark.parametrize("name", ["mobile_sam", "sam_vit_b"])
def test_a_name_without_a_network_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETSAM_CACHE", str(tmp_path / "cache"))
    entry = dataclasses.replace(CHECKPOINTS[name], url="http://127.0.0.1:9/weights.pt")
    monkeypatch.setitem(CHECKPOINTS, name, entry)
    done = call_pocketsam("export", name, "--output", tmp_path / "bundle")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(r"pocketsam: error: http://127\.0\.0\.1.* cannot be reached .*Offline\?", line)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_demo_takes_a_name():
    """Only what it would run: the rest has tests of its own."""
    root = Path(__file__).parent.parent
    for arguments, checkpoint in (((), "default"), (("CHECKPOINT=mobile_sam",), "mobile_sam")):
        command = ["make", "--dry-run", "demo", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert f"pocketsam export '{checkpoint}' --target onnx" in done.stdout
        assert "for better masks: make demo CHECKPOINT=mobile_sam" in done.stdout
