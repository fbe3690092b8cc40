from importlib.resources import files

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pocketsam.errors import BundleError, ProviderError
from pocketsam.runtime.session import MAX_THREADS, check_threads, open_session, provider_names

GEMM = files("pocketsam.runtime").joinpath("gemm.onnx").read_bytes()


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_names_of_a_provider(name):
    assert provider_names(name) == provider_names([name]) == ["CPUExecutionProvider"]


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "coreml", "xnnpack", "CUDAExecutionProvider"])
def test_a_missing_provider_lists_those_present(name):
    present = ort.get_available_providers()
    full = {"cuda": "CUDA", "tensorrt": "Tensorrt", "coreml": "CoreML", "xnnpack": "Xnnpack"}
    if f"{full.get(name, 'CUDA')}ExecutionProvider" in present:
        pytest.skip(f"{name} is present here")
    with pytest.raises(ProviderError, match=rf"{name}.*present are:.*cpu"):
        provider_names([name, "cpu"])


def test_unknown_and_no_providers():
    with pytest.raises(ProviderError, match="'gpu'; known are cpu, cuda, tensorrt, coreml, xnnpack"):
        provider_names("gpu")
    with pytest.raises(ProviderError, match="empty"):
        provider_names([])


def test_threads():
    assert check_threads(None) == 0
    assert check_threads(3) == 3
    for bad in (0, -1, MAX_THREADS + 1, 10_000, 1.5, True, "2"):
        with pytest.raises(ProviderError, match="threads"):
            check_threads(bad)


@pytest.mark.parametrize("data", [b"", b"nonsense", GEMM[:-10]])
def test_a_model_that_does_not_load(data):
    with pytest.raises(BundleError, match="the model: onnxruntime cannot load it") as caught:
        open_session(data, "the model")
    assert "\n" not in str(caught.value)


def test_gemm_is_one_matrix_product():
    """The file in the package is what this writes, and nothing more."""
    shapes = {"a": ["m", "k"], "b": ["k", "n"], "c": ["m", "n"]}
    tensors = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "gemm", [tensors["a"], tensors["b"]], [tensors["c"]])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="pocketsam")
    assert model.SerializeToString(deterministic=True) == GEMM

    a, b = np.random.default_rng(0).normal(size=(2, 30, 30)).astype(np.float32)
    (product,) = open_session(GEMM, "gemm", threads=1).run(None, {"a": a, "b": b})
    assert np.allclose(product, a @ b, atol=1e-4)
