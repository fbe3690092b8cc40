"""Every number that an option takes: out of range, it is refused by its name, before any work."""

import pytest
from conftest import call_pocketsam

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
