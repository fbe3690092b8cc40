import json

import pytest
from conftest import call_pocketsam

from pocketsam.export.traced import Encoder, count_macs
from pocketsam.models.sam import seeded
from pocketsam.runtime.commands import roofline


@pytest.mark.parametrize("size", [64, 256, 448, 1024])
def test_the_operations_are_the_networks(size):
    """Counted by torch in the network itself; 38.8 G at 1024 (contracts.md)."""
    assert roofline.encoder_macs(size) == count_macs(Encoder(seeded(size)))


def test_weights_are_those_of_the_encoder():
    """Of 6.066 M parameters TinyViT's unused classifier has 0.32 M; norms and biases are small."""
    weights = sum(operation.weights for operation in roofline.operations(1024))
    assert 5.5e6 < weights < 6.066e6


def test_bounds_follow_the_device():
    fast = roofline.bound(1024, 1e3, 1e9)  # memory costs nothing: arithmetic alone
    assert fast == pytest.approx(2 * roofline.encoder_macs(1024) / 1e12)
    starved = roofline.bound(1024, 1e9, 100)  # arithmetic costs nothing
    assert roofline.bound(1024, 1e9, 50) == pytest.approx(2 * starved)
    assert roofline.bound(1024, 1e9, 100, 2) == pytest.approx(starved / 2)
    assert roofline.bound(512, 100, 10) < roofline.bound(1024, 100, 10) / 3.5


def test_the_command():
    done = call_pocketsam("roofline", "pi5", "--json")
    result = json.loads(done.stdout)
    assert [row["image_size"] for row in result["rows"]] == list(roofline.SIZES)
    assert result["rows"][-1]["estimate_s"] == pytest.approx(2 * result["rows"][-1]["bound_s"])
    done = call_pocketsam("roofline", "--gflops", "100", "--bandwidth", "10", "--efficiency", "0.8")
    assert "at 80% ms" in done.stdout
    assert "an estimate" in done.stdout
    measured = json.loads(call_pocketsam("roofline", "--json").stdout)
    assert measured["device"]["gflops"] > 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--gflops", "100"], "together"),
        (["pi4", "--gflops", "1", "--bandwidth", "1"], "not both"),
        (["--gflops", "0", "--bandwidth", "1"], "above 0"),
        (["pi4", "--efficiency", "2"], "--efficiency 2.0"),
    ],
)
def test_bad_figures(arguments, error):
    done = call_pocketsam("roofline", *arguments)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr
