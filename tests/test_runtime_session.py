from importlib.resources import files

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pocketsam.errors import BundleError, ProviderError, UsageError
from pocketsam.runtime import Segmenter
from pocketsam.runtime.backends.bound import CPU, Recorded
from pocketsam.runtime.backends.ort import (
    GPUS,
    GRAPHS,
    MAX_THREADS,
    PROVIDERS,
    check_threads,
    gpu_memory,
    onnx_network,
    open_session,
    provider_names,
    provider_options,
    run_session,
)
from pocketsam.runtime.benchmarks.timing import onnx_task
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.compare.fastsam import FastSam

GEMM = files("pocketsam.runtime.benchmarks").joinpath("gemm.onnx").read_bytes()


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_names_of_a_provider(name):
    assert provider_names(name) == provider_names([name]) == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("short", "full"), PROVIDERS.items())
def test_each_name_is_known_in_any_case(short, full):
    for name in (short, short.upper(), full, full.upper(), full.lower()):
        if full in ort.get_available_providers():
            assert provider_names((name,)) == [full]
        else:
            with pytest.raises(ProviderError, match=f"{name}.*not in this onnxruntime"):
                provider_names(name)


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
    for empty in ([], ()):
        with pytest.raises(ProviderError, match="empty"):
            provider_names(empty)
    for unknown in ("", "Provider"):
        with pytest.raises(ProviderError, match=f"unknown provider {unknown!r}; known are cpu"):
            provider_names(["cpu", unknown])


def test_what_is_listed_as_present_can_be_asked_for():
    with pytest.raises(ProviderError, match="present are: ") as caught:
        provider_names([name for name in PROVIDERS if name != "cpu"])
    for name in str(caught.value).split("present are: ")[1].split(", "):
        assert provider_names(name)


def test_threads():
    assert check_threads(None) == 0
    assert [check_threads(count) for count in (1, 3, MAX_THREADS)] == [1, 3, MAX_THREADS]
    for bad in (0, -1, MAX_THREADS + 1, 10_000, 1.5, True, "2"):
        with pytest.raises(UsageError, match=f"threads must be .* 1 to {MAX_THREADS}, not {bad}"):
            check_threads(bad)


@pytest.mark.parametrize("data", [b"", b"nonsense", GEMM[:-10]])
def test_a_model_that_does_not_load(data):
    with pytest.raises(BundleError, match="the model: onnxruntime cannot load it") as caught:
        open_session(data, "the model")
    assert "\n" not in str(caught.value)


def test_the_arguments_are_judged_before_the_model():
    with pytest.raises(ProviderError, match="unknown provider 'gpu'"):
        open_session(b"nonsense", "the model", "gpu")
    with pytest.raises(UsageError, match="threads"):
        open_session(b"nonsense", "the model", threads=0)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_a_session_has_the_threads_and_the_provider_asked_for(threads):
    session = open_session(GEMM, "gemm", ["cpu"], threads)
    assert session.get_session_options().intra_op_num_threads == (threads or 0)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_options_of_a_provider():
    name, options = provider_options("cpu:arena_extend_strategy=kSameAsRequested,a=b=c")[0]
    assert name == "CPUExecutionProvider"
    assert options == {"arena_extend_strategy": "kSameAsRequested", "a": "b=c"}
    for bad in ("cpu:a", "cpu:=1", "cpu:a=1,"):
        with pytest.raises(ProviderError, match=f"{bad!r}: options are KEY=VALUE"):
            provider_options(bad)


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_our_defaults_for_gpus(name, monkeypatch, tmp_path):
    """As far as it goes without one: float32 means float32, and engines are kept."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDERS[name]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ((full, options),) = provider_options([name])
    assert full in GPUS
    exact = {"cuda": ("use_tf32", "0"), "tensorrt": ("trt_fp16_enable", "0")}
    assert exact[name] in options.items()
    assert (options.get("trt_engine_cache_enable") == "1") == (name == "tensorrt")
    ((_, options),) = provider_options([f"{name}:use_tf32=1,trt_fp16_enable=1"])
    assert (options["use_tf32"], options["trt_fp16_enable"]) == ("1", "1")
    cached = name == "tensorrt"
    assert (options.get("trt_engine_cache_path") == str(tmp_path / "pocketsam/tensorrt")) == cached


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_the_embedding_stays_on_the_gpu_that_is_named(name, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDERS[name], PROVIDERS["cpu"]])
    for options, device in (("", 0), (":device_id=1", 1)):
        assert gpu_memory(*provider_options(name + options)[0]) == ("cuda", device)
    assert gpu_memory(*provider_options("cpu")[0]) is None


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_gpu(name, bundle, photo):
    """The whole way on a GPU, recorded as a graph too; only where there is one."""
    if PROVIDERS[name] not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has no {name}")
    wanted = Segmenter(bundle)
    wanted.set_image(photo)
    masks, scores, _ = wanted.predict([[200, 150]], [1])
    for options in ("", f":{GRAPHS[PROVIDERS[name]]}=1"):
        segmenter = Segmenter(bundle, providers=name + options)
        for _ in range(2):
            segmenter.set_image(photo)
        found, its, _ = segmenter.predict([[200, 150]], [1])
        assert np.allclose(its, scores, atol=1e-3)
        assert (found != masks).mean() < 1e-3


def test_binding_gives_what_running_gives(bundle, photo):
    """On the CPU, where binding copies nothing; the same code keeps a GPU's embedding on the GPU."""
    opened = open_bundle(bundle)
    plain, bound = {}, {}
    for part in ("encoder", "decoder"):
        session = open_session(opened.read(part), part, static=True)
        plain[part] = onnx_network(session, part, part, None)
        bound[part] = onnx_network(session, part, part, CPU)
        if part == "encoder":
            recorded = Recorded(session, CPU)
    segmenter = Segmenter(bundle)
    feeds = segmenter.encoder_feeds(photo)
    wanted = plain["encoder"](feeds)["image_embeddings"]
    kept = bound["encoder"](feeds)["image_embeddings"]
    assert isinstance(kept, ort.OrtValue)
    assert np.array_equal(kept.numpy(), wanted)
    for pixels in (photo[::-1], photo):  # the second run overwrites the first
        replayed = recorded(segmenter.encoder_feeds(np.ascontiguousarray(pixels)))
    assert np.array_equal(replayed.numpy(), wanted)

    segmenter.set_image(photo)
    scores, low_res = segmenter.predict_low_res([[[200, 150]]], [[1]])
    segmenter._embedding, segmenter._decoder = kept, bound["decoder"]
    again = segmenter.predict_low_res([[[200, 150]]], [[1]])
    assert np.array_equal(again[0], scores)
    assert np.array_equal(again[1], low_res)
    assert np.array_equal(segmenter.get_image_embedding(), wanted)
    with pytest.raises(BundleError, match="decoder: onnxruntime failed: "):
        bound["decoder"]({})


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (1, 300, 7), (64, 1, 64)])
def test_gemm_multiplies_like_numpy(shape):
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    (product,) = run_session(open_session(GEMM, "gemm"), "gemm", ["c"], {"a": a, "b": b})
    assert product.dtype == np.float32
    assert product.shape == (m, n)
    assert np.allclose(product, a @ b, atol=1e-4)


@pytest.mark.parametrize(
    ("outputs", "feeds"),
    [
        (["c"], {"a": np.ones((2, 2), np.float32)}),
        (["c"], {"a": np.ones((2, 2), np.float32), "b": np.ones((3, 2), np.float32)}),
        (["c"], {"a": np.ones((2, 2)), "b": np.ones((2, 2))}),
        (["c"], {"a": np.ones(2, np.float32), "b": np.ones((2, 2, 2, 2), np.float32)}),
        (["d"], {"a": np.ones((2, 2), np.float32), "b": np.ones((2, 2), np.float32)}),
    ],
    ids=["missing", "unequal", "float64", "rank", "output"],
)
def test_a_model_that_does_not_run(outputs, feeds):
    with pytest.raises(BundleError, match=r"^the model: onnxruntime failed: .") as caught:
        run_session(open_session(GEMM, "gemm"), "the model", outputs, feeds)
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


def test_files_of_others_keep_their_integer_kernels(monkeypatch, tmp_path):
    """What makes float32 of our weights would make float32 products of a rival's 8-bit ones."""
    path = tmp_path / "rival.onnx"
    path.write_bytes(GEMM)
    opened = []

    def spy(model, options, providers):
        opened.append(options)
        return session(model, options, providers=providers)

    session = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", spy)
    open_session(GEMM, "ours")
    with pytest.raises(BundleError, match="static shapes"):
        onnx_task(str(path), "cpu", None)
    with pytest.raises(BundleError, match="needs a single input"):
        FastSam(path)
    key = "session.disable_quant_qdq"
    assert opened.pop(0).get_session_config_entry(key) == "1"
    for options in opened:
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)
    assert len(opened) == 2
