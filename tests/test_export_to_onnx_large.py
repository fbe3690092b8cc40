"""Models beyond protobuf's 2 GiB; here the limit is low, and the model small enough for both ways."""

import numpy as np
import pytest

from pocketsam.errors import ConversionError
from pocketsam.export.cases import compute_cases
from pocketsam.export.options import Options
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_onnx import large, simplify
from pocketsam.models.image_encoder_vit import ImageEncoderViT
from pocketsam.models.sam import ARCHITECTURES, seeded


@pytest.fixture(scope="module")
def model():
    """SAM's architecture, with a few weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small_vit", lambda: ImageEncoderViT(64, 2, 2, (1,), 256))
        return seeded(64, 0, "small_vit")


@pytest.fixture(scope="module")
def cases(model, photo):
    return compute_cases(model, [("cat", photo)], detailed=0)


@pytest.mark.slow  # a minute: six conversions
def test_the_same_file_whichever_way(model, cases, monkeypatch, tmp_path):
    sizes = sum(4 * weight.numel() for weight in model.image_encoder.parameters())

    def convert(precision):
        network = to_onnx.traced_networks(model, Options())["encoder"]  # a new one is traced again
        to_onnx.convert(network, tmp_path / "encoder.onnx", Options(precision), cases)
        return to_onnx.load((tmp_path / "encoder.onnx").read_bytes(), "encoder")(cases[0].feeds)

    precisions = ("fp16", "int8-weights", "int4-weights")
    wanted = [convert(precision) for precision in precisions]
    monkeypatch.setattr(large, "MAX_BYTES", int(0.55 * sizes))
    monkeypatch.setattr(large, "LARGE", 2**12)
    detached = []
    monkeypatch.setattr(
        simplify, "attach", lambda *both: detached.append(both[1]) or large.attach(*both)
    )
    for precision, expected in zip(precisions, wanted, strict=True):
        found = convert(precision)
        assert np.array_equal(found["image_embeddings"], expected["image_embeddings"]), precision
    assert sum(len(weights) for weights in detached) > 3 * 8
    with pytest.raises(ConversionError, match=r"encoder\.onnx: 0\.0 GB of weights in fp32.*2 GiB"):
        convert("fp32")


def test_what_fits_is_left_alone(model):
    network = to_onnx.traced_networks(model, Options())["encoder"]
    graph, _ = to_onnx._trace_float(network)
    assert large.fits(graph)
    assert large.detach(graph) == (graph, {})
