"""The command line itself: numbers out of range, negative values, what stdout and stderr may be."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import call_pocketsam
from PIL import Image

from pocketsam import terminal

IMAGES = ("nowhere.png", "--output", "out.png")
DISTILL = ("distill", "nowhere", "--teacher", "seeded", "--output", "out")


@pytest.mark.parametrize("value", [-1, 0])
@pytest.mark.parametrize(
    "command",
    [
        ("export", "nowhere.pt", "--output", "out", "--image-size"),
        ("export", "nowhere.pt", "--output", "out", "--target", "tflite", "--max-points"),
        ("export", "nowhere.pt", "--output", "out", "--target", "tflite", "--timeout"),
        ("verify", "nowhere", "--threads"),
        ("segment", "nowhere", *IMAGES, "--point", "1,1", "--threads"),
        ("embed", "nowhere", *IMAGES, "--threads"),
        ("everything", "nowhere", *IMAGES, "--threads"),
        ("everything", "nowhere", *IMAGES, "--points-per-side"),
        ("everything", "nowhere", *IMAGES, "--points-per-batch"),
        ("everything", "nowhere", *IMAGES, "--crop-n-points-downscale-factor"),
        ("bench", "nowhere", "--threads"),
        ("bench", "nowhere", "--runs"),
        ("compare", "nowhere", "--reference", "nowhere", "--threads"),
        ("compare", "nowhere", "--reference", "nowhere", "--prompts"),
        ("roofline", "--bandwidth", 1, "--gflops"),
        ("roofline", "--gflops", 1, "--bandwidth"),
        ("roofline", "--efficiency"),
        ("evaluate", "seeded", "--scenes"),
        ("evaluate", "seeded", "--images", "nowhere", "--teacher", "seeded", "--prompts"),
        ("evaluate", "seeded", "--scenes", 1, "--gallery", "a.png", "--rows"),
        (*DISTILL, "--image-size"),
        (*DISTILL, "--steps"),
        (*DISTILL, "--batch"),
        (*DISTILL, "--accumulate"),
        (*DISTILL, "--mode", "coupled", "--prompts"),
        (*DISTILL, "--learning-rate"),
        (*DISTILL, "--save-every"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_counts_and_sizes(command, value):
    refused(*command, value)


@pytest.mark.parametrize(
    "command",
    [
        ("export", "nowhere.pt", "--output", "out", "--precision", "int8", "--min-miou", -0.1),
        ("export", "nowhere.pt", "--output", "out", "--precision", "int8", "--min-speedup", "inf"),
        ("everything", "nowhere", *IMAGES, "--crop-n-layers", -1),
        ("everything", "nowhere", *IMAGES, "--min-mask-region-area", -1),
        ("everything", "nowhere", *IMAGES, "--time-budget", -1),
        ("bench", "nowhere", "--warmup", -1),
        ("compare", "nowhere", "--reference", "nowhere", "--seed", -1),
        ("roofline", "--bandwidth", 1, "--gflops", "inf"),
        ("roofline", "--gflops", 1, "--bandwidth", "nan"),
        ("evaluate", "seeded", "--scenes", 1, "--teacher", "seeded", "--seed", -1),
    ],
    ids=lambda command: " ".join(map(str, (command[0], *command[-2:]))),
)
def test_what_may_be_zero(command):
    refused(*command)


def refused(*command):
    """A usage error of one line that names the option and the value."""
    done = call_pocketsam(*command)
    *_, option, value = command
    name = option.removeprefix("--")
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert name in last or name.replace("-", "_") in last
    assert str(value) in last


def test_negative_numbers_are_values():
    words = ["--box", "-2,10,100,90", "--point", "-.5,1", "-x", "--json", "photo.png", "-1"]
    joined = ["--box=-2,10,100,90", "--point=-.5,1", "-x", "--json", "photo.png", "-1"]
    assert terminal.join_negative(words) == joined


def test_a_box_that_begins_left_of_the_image(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    command = ["segment", tmp_path / "photo.png", "--output", tmp_path / "out.json"]
    done = call_pocketsam(*command, "--box", "-2,10,100,90")
    assert done.returncode == 0, done.stderr
    box = json.loads((tmp_path / "out.json").read_text())["masks"][0]["boxes"]
    assert box == [[-2, 10, 100, 90]]


@pytest.mark.parametrize(
    ("command", "encoding"), [("verify", "cp1252"), ("info", "ascii"), ("info", "utf-16")]
)
def test_a_terminal_that_lacks_characters(command, encoding):
    """✓ becomes a question mark; no verdict depends on it."""
    done = subprocess.run(
        [sys.executable, "-m", "pocketsam", command],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert "int8-weights" in done.stdout.decode(encoding)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "pocketsam", "info", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "pocketsam: error: No space left on device\n"


def test_no_stdout_at_all():
    command = f"{shlex.quote(sys.executable)} -m pocketsam verify >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_where_stderr_is_no_terminal(capsys, monkeypatch):
    """A line every 30 s, and none of work that is done before that."""
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "_shown", 1000.0)
    for step, seconds in enumerate((1, 20, 10, 5, 31, 40)):
        now[0] += seconds
        terminal.show_progress(f"step {step}", last=step == 5)
    assert capsys.readouterr().err == "step 2\nstep 4\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segment", "a.png", "--output", "o", "--points", "1,1"), "did you mean --point?"),
        (("segment", "a.png", "--output", "o", "--poin", "1,1"), "unrecognized arguments: --poin"),
        (("info", "a", "b"), "unrecognized arguments: b"),
        (
            ("segment", "a.png", "--point", "1,1", "--output", ""),
            "'': name a file or a folder",
        ),
        (("segment", "a.png", "--point", "1,1", "--output", "-"), "--output '-'"),
        (("segment", "a.png", "--point", "1,1", "--output", "m.d"), "a folder ends in /"),
    ],
)
def test_misspelt_options_and_outputs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call_pocketsam(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
