"""One network in one engine, in a process of its own: ``python engine_worker.py SPEC.json``.

A program rather than a module of the package: it runs in whatever environment has the engine, and needs
numpy beside it. So each engine has its own memory, threads and start-up time. It answers
lines on stdin with lines of JSON: ``time`` runs the network once, ``answer IN.npz OUT.npz`` keeps what
it gives.

SPEC: ``kind``; ``file``; ``feeds``, an ``.npz`` to time with; ``threads``; what a kind needs more; and
``before``, a SPEC that is run before each run that is timed, in the same process.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Spec = dict[str, Any]
Arrays = dict[str, Any]
Opened = tuple[Callable[[Arrays], tuple[Any, ...]], Callable[..., Arrays]]
"""What turns arrays into an engine's own, and what runs on those: only the second is timed."""


def open_onnxruntime(spec: Spec) -> Opened:
    """Inputs and outputs by name; where there is one of each, whatever they are called."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = spec.get("arena", True)
    for key, value in spec.get("config", {}).items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(spec["file"], options, providers=["CPUExecutionProvider"])
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda feeds: (by_name(inputs, feeds),), lambda fed: dict(
        zip(outputs, session.run(None, fed), strict=True)
    )


def open_openvino(spec: Spec) -> Opened:
    """Opens a file in OpenVINO: one stream, as a phone app would (the LATENCY hint).

    ``precision`` of the spec is what it computes in, float32 by default.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it reports imports
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": spec["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": spec.get("precision", "f32"),
    }
    compiled = core.compile_model(core.read_model(spec["file"]), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [entry.any_name for entry in compiled.inputs]
    outputs = [entry.any_name for entry in compiled.outputs]

    def call(fed: Arrays) -> Arrays:
        found = request.infer(fed)
        return {name: found[number] for number, name in enumerate(outputs)}

    return lambda feeds: (by_name(inputs, feeds),), call


def open_litert(spec: Spec) -> Opened:
    """By the signature; ``layouts`` of the spec says which tensors are NHWC in the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=spec["file"], num_threads=spec["threads"])
    runtime_name = interpreter.get_signature_runner()
    last = spec["channels_last"]

    def prepare(feeds: Arrays) -> tuple[Any, ...]:
        turned = {k: v.transpose(0, 2, 3, 1) if k in last else v for k, v in feeds.items()}
        return ({k: np.ascontiguousarray(v) for k, v in turned.items()},)

    def call(fed: Arrays) -> Arrays:
        found = runtime_name(**fed)
        return {k: v.transpose(0, 3, 1, 2) if k in last else v for k, v in found.items()}

    return prepare, call


def open_mnn(spec: Spec) -> Opened:
    """One input, one output, named as ``Encoder`` names them."""
    import MNN  # type: ignore[import-not-found]

    config = {"backend": 0, "numThread": spec["threads"], "precision": "high"}
    manager = MNN.nn.create_runtime_manager((config,))
    net = MNN.nn.load_module_from_file(
        spec["file"], ["pixel_values"], ["image_embeddings"], runtime_manager=manager
    )

    def prepare(feeds: Arrays) -> tuple[Any, ...]:
        (value,) = feeds.values()
        return (MNN.expr.convert(MNN.expr.const(value, value.shape), MNN.expr.NCHW),)

    def call(value: Any) -> Arrays:
        (found,) = net.onForward([value])
        return {"image_embeddings": np.array(MNN.expr.convert(found, MNN.expr.NCHW).read())}

    return prepare, call


def open_ncnn(spec: Spec) -> Opened:
    """One input ``in0``, one output ``out0``, as pnnx calls them; no batch."""
    import ncnn  # type: ignore[import-not-found]

    net = ncnn.Net()
    net.opt.num_threads = spec["threads"]
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(spec["file"]) or net.load_model(spec["file"].replace(".param", ".bin")):
        raise RuntimeError("ncnn does not load it")

    def prepare(feeds: Arrays) -> tuple[Any, ...]:
        (value,) = feeds.values()
        return (ncnn.Mat(np.ascontiguousarray(value[0])).clone(),)

    def call(value: Any) -> Arrays:
        extractor = net.create_extractor()
        extractor.input("in0", value)
        code, found = extractor.extract("out0")
        if code:
            raise RuntimeError(f"ncnn: extract gives {code}")
        return {"out0": np.array(found)[None]}

    return prepare, call


def open_torch(spec: Spec) -> Opened:
    """pocketsam's own network in PyTorch: the only kind that needs pocketsam."""
    import torch

    from pocketsam.export.traced import REFERENCE_TYPES
    from pocketsam.models.checkpoint import load_model

    torch.set_num_threads(spec["threads"])
    network = REFERENCE_TYPES[spec["network"]](
        load_model(spec["file"], spec["image_size"]).model
    ).eval()
    form = torch.compile(network) if spec["compile"] else network

    def call(*tensors: Any) -> Arrays:
        with torch.inference_mode():
            return dict(zip(network.outputs, (x.numpy() for x in form(*tensors)), strict=True))

    return lambda feeds: tuple(torch.from_numpy(feeds[name]) for name in network.inputs), call


KINDS = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "litert": open_litert,
    "mnn": open_mnn,
    "ncnn": open_ncnn,
    "torch": open_torch,
}


def by_name(names: list[str], feeds: Arrays) -> Arrays:
    """What a network asks for; a single input takes the single array."""
    if len(names) == len(feeds) == 1:
        return {names[0]: next(iter(feeds.values()))}
    return {name: feeds[name] for name in names}


def read(path: str) -> Arrays:
    """The arrays of an ``.npz``."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def peak_bytes() -> int:
    """Of this program alone: on Linux ``getrusage`` counts what the process was before it, too."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def ready(spec: Spec) -> Callable[[], Arrays]:
    """A network opened, with its inputs prepared."""
    prepare, call = KINDS[spec["kind"]](spec)
    fed = prepare(read(spec["feeds"]))
    return lambda: call(*fed)


def main(path: str) -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print; only answers may come on stdout
    spec = json.loads(Path(path).read_text())
    before = ready(spec["before"]) if "before" in spec else None
    start = time.perf_counter()
    prepare, call = KINDS[spec["kind"]](spec)
    loaded = time.perf_counter() - start
    fed = prepare(read(spec["feeds"]))

    def seconds() -> float:
        if before:
            before()
        start = time.perf_counter()
        call(*fed)
        return time.perf_counter() - start

    opened = {"load_s": loaded, "first_s": seconds(), "peak_bytes": peak_bytes()}
    print(json.dumps(opened), file=answers)
    for line in sys.stdin:
        word, *files = line.split()
        if word == "answer":
            np.savez(files[1], **call(*prepare(read(files[0]))))
            print(json.dumps({}), file=answers)
        else:
            print(json.dumps({"seconds": seconds()}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
