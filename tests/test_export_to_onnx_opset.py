"""Files in older operator sets compute what the newest one computes."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser
from test_export_to_onnx_passes import feeds

from pocketsam.errors import ConversionError, UsageError
from pocketsam.export.options import OPSETS, Options
from pocketsam.export.to_onnx.opset import lower_opset
from pocketsam.runtime import contract as c


def run(model, given):
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {entry.name: given[entry.name] for entry in session.get_inputs()})


@pytest.mark.parametrize("version", OPSETS)
def test_both_networks(bundle, version):
    for name in ("encoder", "decoder"):
        model = onnx.load(bundle / f"{name}.onnx")
        size = onnx.load(bundle / "encoder.onnx").graph.input[0].type.tensor_type.shape.dim[2].dim_value
        given = feeds(size, 2, 3) | {c.ORIG_IM_SIZE: np.array([60, 80], np.float32)}
        given[c.PIXEL_VALUES] = (
            np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
        )
        lowered = lower_opset(model, version)
        assert lowered.opset_import[0].version == version
        kinds = {node.op_type for node in lowered.graph.node}
        assert ("Gelu" in kinds) == (version >= 20)
        assert ("LayerNormalization" in kinds) == (version >= 17)
        for found, wanted in zip(run(lowered, given), run(model, given), strict=True):
            assert np.abs(found - wanted).max() < 1e-4 * wanted.std()
        assert model.opset_import[0].version == OPSETS[-1]


def small(text):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')


def test_what_has_no_older_spelling():
    norm = small(
        "f (float[2, 3, 4] x, float[3, 4] w) => (float[2, 3, 4] y)"
        " { y = LayerNormalization<axis = 1>(x, w) }"
    )
    with pytest.raises(ConversionError, match="other axes than the last"):
        lower_opset(norm, 16)
    reduce = small("f (float[2, 3] x, int64[1] a) => (float[M, N] y) { y = ReduceMax(x, a) }")
    with pytest.raises(ConversionError, match="ReduceMax with axes that are computed"):
        lower_opset(reduce, 17)
    image = small("f (float[2, 3] x) => (float[2, 3] y) { y = HannWindow<output_datatype = 1>(x) }")
    with pytest.raises(ConversionError, match="opset 15: "):
        lower_opset(image, 15)


@pytest.mark.parametrize("wrong", [14, 21, 0, "20"])
def test_wrong_opsets(wrong):
    with pytest.raises(UsageError, match=r"--opset is .*; it must be one of 15 to 20"):
        Options(opset=wrong)
