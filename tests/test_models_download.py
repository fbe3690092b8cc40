"""The downloader against a real server on this machine, with the faults that servers have."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import run_pocketsam

from pocketsam.errors import DownloadError
from pocketsam.models import download as module
from pocketsam.models.download import CHECKPOINTS, RemoteFile, download

PAYLOAD = np.random.default_rng(0).bytes(700_001)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        mode = server.modes.pop(0) if server.modes else "good"
        if mode in ("404", "500"):
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
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mode == "cut":
            self.wfile.write(body[:300_000])
            self.close_connection = True
            return
        try:
            self.wfile.write(body)
            server.sent.append(len(body))
        except ConnectionError:
            pass


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
    with pytest.raises(DownloadError, match=rf"300000 of {len(PAYLOAD)} bytes; run it again"):
        download("test", tmp_path)
    assert names(tmp_path) == ["weights.pt.part"]
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert server.requests[-1]["Range"] == "bytes=300000-"
    assert server.sent == [len(PAYLOAD) - 300_000]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(PAYLOAD[:1000])
    server.modes = ["no ranges"]
    assert download("test", tmp_path).read_bytes() == PAYLOAD


def test_another_range_than_asked_for_is_not_written(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(PAYLOAD[:1000])
    server.modes = ["wrong range"]
    with pytest.raises(DownloadError, match="asked for bytes from 1000"):
        download("test", tmp_path)
    assert download("test", tmp_path).read_bytes() == PAYLOAD


def test_a_whole_part_needs_no_network(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(PAYLOAD)
    assert download("test", tmp_path).read_bytes() == PAYLOAD
    assert server.requests == []


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(bytes(len(PAYLOAD) + 5))
    assert download("test", tmp_path).read_bytes() == PAYLOAD


@pytest.mark.parametrize("mode", ["damaged", "long"])
def test_wrong_bytes_never_get_the_name(server, tmp_path, mode):
    server.modes = [mode]
    with pytest.raises(DownloadError, match="sha256"):
        download("test", tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_part_is_not_kept(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="deleted"):
        download("test", tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode", ["404", "500"])
def test_an_error_of_the_server_is_told(server, tmp_path, mode):
    server.modes = [mode]
    with pytest.raises(DownloadError, match=rf"127\.0\.0\.1.*answers {mode}"):
        download("test", tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_stalls(server, tmp_path):
    server.modes = ["stall"]
    start = time.monotonic()
    with pytest.raises(DownloadError, match="no answer in time"):
        download("test", tmp_path, timeout=0.3)
    assert time.monotonic() - start < 5


def test_offline(tmp_path):
    with pytest.raises(DownloadError, match=r"cannot be reached.*Offline\?"):
        download("mobile_sam", tmp_path, url="http://127.0.0.1:9/nothing")
    with pytest.raises(DownloadError, match="cannot be reached"):
        download("mobile_sam", tmp_path, url="http://no-such-host.invalid/weights.pt", timeout=5)
    assert names(tmp_path) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(DownloadError, match="known are mobile_sam, sam_vit_b"):
        download("sam3", tmp_path)
    with pytest.raises(DownloadError, match="wants an http"):
        download("mobile_sam", tmp_path, url="file:///etc/passwd")


def test_a_directory_that_is_not_there(server, tmp_path):
    with pytest.raises(DownloadError, match="nowhere"):
        download("test", tmp_path / "nowhere" / "weights.pt")


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
