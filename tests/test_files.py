"""The one writer of files and directories: whole or not at all, whoever else writes or kills."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pocketsam import files
from pocketsam.errors import PocketSamError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SWAP = """if True:
    import os, signal, sys
    from pathlib import Path
    from pocketsam import files

    steps = int(sys.argv[2])

    def count(event, arguments):  # of every call that changes a directory
        global steps
        if event in ("os.rename", "os.rmdir", "os.mkdir", "os.remove", "ctypes.dlsym", "shutil.rmtree"):
            steps -= 1
            if steps < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[3] == "renames":
        files._exchange = lambda *_: False
    with files.staged_directory(Path(sys.argv[1])) as work:
        (work / "file").write_text("new")
        sys.addaudithook(count)
    print("done")
"""


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_kill_9_at_every_step_of_the_swap(tmp_path, how):
    """The old one or the new one is there at once, or (moved aside) after the next run."""
    place, seen = tmp_path / "bundle", []
    for step in range(20):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "file").write_text("old")
        command = [sys.executable, "-c", SWAP, place, str(step), how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if how == "exchange":
            seen.append((place / "file").read_text())
        with (
            pytest.raises(PocketSamError, match="enough"),
            files.staged_directory(place),
        ):  # the next run
            raise PocketSamError("enough")
        assert (place / "file").read_text() in ("old", "new")
        assert list(tmp_path.iterdir()) == [place]
        if done.stdout:
            break
    assert done.stdout == "done\n"
    assert step > 2
    assert how == "renames" or {"old", "new"} == set(seen)


WRITE = """if True:
    import os, signal, sys
    from pathlib import Path
    from pocketsam.files import write_file

    def write(work):
        work.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    write_file(Path(sys.argv[1]), write)
"""


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    path = tmp_path / "masks.json"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WRITE, path], check=False)
        assert [p.name for p in tmp_path.iterdir()] == [".masks.partial.json"]
    files.write_bytes(path, b"{}")
    assert contents(tmp_path) == {"masks.json": b"{}"}


def test_two_writers_of_a_file(tmp_path):
    """The second one waits, and both write whole files."""
    path, order = tmp_path / "masks.json", []
    second = threading.Thread(target=lambda: (files.write_bytes(path, b"2" * 99), order.append(2)))

    def write(work):
        second.start()
        second.join(0.3)
        work.write_bytes(b"1" * 99)
        order.append(1)

    files.write_file(path, write)
    second.join()
    assert order == [1, 2]
    assert contents(tmp_path) == {"masks.json": b"2" * 99}

    def fails(work):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PocketSamError, match=r"masks\.json: cannot be written: No space left"):
        files.write_file(path, fails)
    assert contents(tmp_path) == {"masks.json": b"2" * 99}


def test_a_file_has_the_rights_that_the_system_asks_for(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "x", b"")
        with files.staged_directory(tmp_path / "bundle"):
            pass
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("x", "bundle")] == [0o640, 0o750]


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a\0b", "x" * 300, "\ud800"])
def test_a_name_that_no_system_takes(name):
    with pytest.raises(PocketSamError, match=r"cannot be written"):
        files.write_bytes(Path(name), b"")
    if "\0" in name:
        with pytest.raises(PocketSamError, match="null"):
            files.make_folder(Path(name))


def test_the_longest_names(tmp_path):
    name = "x" * (files.MAX_NAME - 5)
    files.write_bytes(tmp_path / f"{name}.json", b"1")
    with files.staged_directory(tmp_path / f"{name}.bund") as work:
        (work / "a").write_bytes(b"2")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.bund", f"{name}.json"]


@pytest.mark.parametrize("make", ["mkfifo", "symlink", "link"])
def test_something_else_in_the_place_of_the_sibling(tmp_path, make):
    """Neither waited for nor written to."""
    (tmp_path / "mine").write_bytes(b"mine")
    (getattr(os, make))(*([tmp_path / "mine"] if "link" in make else []), tmp_path / ".x.partial.json")
    with pytest.raises(PocketSamError, match=r"x\.json'?: cannot be written"):
        files.write_bytes(tmp_path / "x.json", b"")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not (tmp_path / "x.json").exists()


def test_who_writes_a_directory_is_named(tmp_path):
    with files.staged_directory(tmp_path / "b") as work:
        says = f"another pocketsam \\(process {os.getpid()}\\) is writing it"
        with pytest.raises(PocketSamError, match=says), files.staged_directory(tmp_path / "b"):
            raise AssertionError("not reached")
        (work / "x").write_bytes(b"")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["x"]


def test_without_locks_as_on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    files.write_bytes(tmp_path / "x.json", b"x")
    with files.staged_directory(tmp_path / "bundle") as work:
        (work / "x").write_bytes(b"x")
        again = files.staged_directory(tmp_path / "bundle")
        with pytest.raises(PocketSamError, match=r"another pocketsam .*is writing it"), again:
            raise AssertionError("not reached")
    assert contents(tmp_path / "bundle") == {"x": b"x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "x.json"]


def test_several_files_are_written_or_none(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")

    def fail(work):
        work.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PocketSamError, match="two: cannot be written: No space left"):
        files.write_files([(one, lambda work: work.write_text("new")), (two, fail)])
    assert contents(tmp_path) == {"one": b"old"}
    files.write_files([(path, lambda work: work.write_text("new")) for path in (one, two)])
    assert contents(tmp_path) == {"one": b"new", "two": b"new"}
