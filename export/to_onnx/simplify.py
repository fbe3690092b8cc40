"""onnxsim, whose result is not taken unseen."""

import numpy as np
import onnx
import onnxsim

from pocketsam.export.to_onnx.large import attach, detach, open_model
from pocketsam.export.traced import TracedNetwork
from pocketsam.runtime import contract as c


def simplify(model: onnx.ModelProto, network: TracedNetwork) -> tuple[onnx.ModelProto, bool]:
    """Returns onnxsim's result if it loads, runs and agrees; otherwise the model as it came.

    onnxsim has written operators that the opset lacks, so its word is not taken for it.
    """
    feeds = {name: value.numpy() for name, value in network.example().items()}
    feeds[c.ORIG_IM_SIZE] = np.array([60, 80], np.float32)
    expected = open_model(model, "converted model")(feeds)
    small, detached = detach(model)
    try:
        simplified, _ = onnxsim.simplify(small)
        simplified = attach(simplified, detached)
        found = open_model(simplified, "simplified model")(feeds)
    except Exception:  # onnxsim and onnxruntime raise what they like; the answer is the same
        return model, False
    same = found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], rtol=1e-3, atol=1e-3) for name in expected
    )
    return (simplified, True) if same else (model, False)
