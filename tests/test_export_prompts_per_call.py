"""Decoders of fixed shapes that answer several prompts in a call."""

from itertools import count

import numpy as np
import pytest
from test_export_to_tflite import needs_converter

from pocketsam.errors import IntegrityError, UsageError
from pocketsam.export.options import Options
from pocketsam.export.targets import TARGETS, open_converter
from pocketsam.export.traced import Decoder, StaticDecoder, run
from pocketsam.models.sam import seeded
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import call_by_call, decoder_batch
from pocketsam.runtime.bundle import open_bundle

SIZE, PROMPTS = 64, 7


def feeds(masks):
    """Seven prompts of two points each, with a mask input for all, or one for each."""
    rng = np.random.default_rng(masks)
    return {
        c.IMAGE_EMBEDDINGS: rng.standard_normal((1, 256, 4, 4), np.float32),
        c.POINT_COORDS: rng.uniform(0, SIZE, (PROMPTS, 2, 2)).astype(np.float32),
        c.POINT_LABELS: rng.integers(-1, 4, (PROMPTS, 2)).astype(np.float32),
        c.MASK_INPUT: rng.standard_normal((masks, 1, 16, 16), np.float32),
        c.HAS_MASK_INPUT: np.ones(masks, np.float32),
    }


def check(decoder, wanted, given, tolerance):
    found = decoder(given)
    for name in Decoder.outputs:
        assert found[name].shape == wanted[name].shape
        assert np.abs(found[name] - wanted[name]).max() < tolerance * wanted[name].std(), name


@pytest.mark.parametrize(
    ("prompts", "masks", "calls"), [(1, 1, 7), (3, 1, 3), (3, 7, 7), (7, 1, 1), (64, 1, 1), (64, 7, 7)]
)
def test_prompts_are_answered_together(prompts, masks, calls):
    model, given, made = seeded(SIZE, seed=3), feeds(masks), count()
    static = StaticDecoder(model, 5, prompts)

    def one_call(part):
        next(made)
        assert {name: part[name].shape for name in part} == {
            name: tuple(x.shape) for name, x in static.example().items()
        }
        return run(static, part)[0]

    check(call_by_call(one_call, prompts, 5), run(Decoder(model), given)[0], given, 2e-5)
    assert next(made) == calls


@pytest.mark.parametrize("target", ["coreml", pytest.param("tflite", marks=needs_converter)])
def test_files_that_answer_three_prompts(target, tmp_path):
    pytest.importorskip({"coreml": "coremltools", "tflite": "ai_edge_litert"}[target])
    model, converter = seeded(SIZE, seed=3), open_converter(TARGETS[target])
    options = TARGETS[target].resolve(Options(max_points=5, prompts_per_call=3))
    network, path = converter.traced_networks(model, options)["decoder"], tmp_path / "decoder"
    path = path.with_suffix(TARGETS[target].suffix)
    converted = converter.convert(network, path, options, [], {})
    shapes = {tensor.name: tensor.shape for tensor in (*converted.inputs, *converted.outputs)}
    assert shapes[c.POINT_LABELS] == (3, 5)
    assert shapes[c.MASK_INPUT] == (1, 1, 16, 16)
    assert shapes[c.LOW_RES_MASKS] == (3, 4, 16, 16)
    decoder = converter.load(path if path.is_dir() else path.read_bytes(), "decoder")
    for masks in (1, PROMPTS):
        given = feeds(masks)
        check(decoder, run(Decoder(model), given)[0], given, 1e-4)


def test_a_bundle_says_how_many(bundle, tmp_path):
    opened = open_bundle(bundle)
    assert decoder_batch(opened) == 8
    with pytest.raises(IntegrityError, match=r"point_labels has no number of prompts, 1 to"):
        opened.prompts_per_call  # noqa: B018  an ONNX bundle takes any


@pytest.mark.parametrize("wrong", [0, -1, 10**6, 2.0, True])
def test_wrong_numbers(wrong):
    with pytest.raises(UsageError, match=r"--prompts-per-call is .*; it must be a whole number"):
        Options(prompts_per_call=wrong)
