"""The fast form computes what the network computes, whichever of its passes are left out."""

import numpy as np
import pytest
import torch

from pocketsam.errors import PocketSamError
from pocketsam.export.to_onnx.passes import PASSES, REPLACED, FastDecoder, optimise
from pocketsam.export.traced import Decoder, StaticDecoder, run
from pocketsam.models.sam import seeded
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import fill_up

NAMES = [one.name for one in PASSES]
SUBSETS = [[], NAMES, *([name] for name in NAMES), *([n for n in NAMES if n != name] for name in NAMES)]


def feeds(size, batch, points, seed=0):
    rng = np.random.default_rng(seed)
    return {
        c.IMAGE_EMBEDDINGS: rng.standard_normal((1, 256, size // 16, size // 16), np.float32),
        c.POINT_COORDS: rng.uniform(0, size, (batch, points, 2)).astype(np.float32),
        c.POINT_LABELS: rng.integers(-1, 4, (batch, points)).astype(np.float32),
        c.MASK_INPUT: 5 * rng.standard_normal((batch, 1, size // 4, size // 4), np.float32),
        c.HAS_MASK_INPUT: (np.arange(batch) % 2).astype(np.float32),
    }


@pytest.mark.parametrize("without", SUBSETS, ids=lambda names: "without " + (" ".join(names) or "none"))
@pytest.mark.parametrize(("batch", "points"), [(1, 2), (3, 5), (2, 0), (1, 20)])
def test_the_decoder(without, batch, points):
    network = seeded(128, seed=3)
    given = feeds(128, batch, points)
    wanted, intermediates = run(Decoder(network), given)
    found, found_stages = run(FastDecoder(optimise(network, without)), given)
    for name, array in wanted.items():
        assert np.abs(found[name] - array).max() < 2e-5 * array.std()
    for name in REPLACED:
        assert (name in found_stages) == ("masks" in without)
    assert set(c.SPLIT_TENSORS) <= set(found_stages)
    for name, array in found_stages.items():
        assert np.abs(array - intermediates[name]).max() < 1e-4, name


def test_places_that_are_not_used_stay_out():
    network = seeded(128, seed=3)
    given = feeds(128, 1, 3)
    wanted, _ = run(Decoder(network), given)
    network = StaticDecoder(optimise(network, ["masks"]), 16)
    found, _ = run(network, fill_up(given, len(given[c.POINT_LABELS]), 16))
    for name, array in wanted.items():
        assert np.abs(found[name] - array).max() < 2e-5 * array.std()


def test_the_network_itself_is_left_alone():
    network = seeded(64, seed=3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kinds = [type(module) for module in network.modules()]
    fast = optimise(network)
    assert [type(module) for module in network.modules()] == kinds
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    weight = fast.mask_decoder.output_upscaling[0].weight
    assert weight.data_ptr() == network.mask_decoder.output_upscaling[0].weight.data_ptr()


def test_an_unknown_pass():
    with pytest.raises(PocketSamError, match=r"unknown pass 'window'; known are cells, masks"):
        optimise(seeded(64), ["window"])
