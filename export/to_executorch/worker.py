"""ExecuTorch's converter, in its own environment: ``python -m … JOB.json``.

``convert`` writes the job, see ``_write_job`` there.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.pass_base import ExportPass
from executorch.runtime import Runtime
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from pocketsam.export.to_executorch.runner import read_shapes

MACHINERY = ("executorch_call_delegate", "alloc", "getitem")
"""Nodes of a lowered graph that compute nothing."""


class DropExpand(ExportPass):  # type: ignore[misc]
    """Takes out the ``expand`` in front of each matrix product that keeps its shape: XNNPACK has none,
    and each would cut a delegate in two."""

    def call(self, graph_module: GraphModule) -> PassResult:
        """Returns the graph without them."""
        graph, found = graph_module.graph, False
        for node in graph.find_nodes(op="call_function", target=exir_ops.edge.aten.expand_copy.default):
            if node.args[0].meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
                found = True
        graph_module.recompile()
        return PassResult(graph_module, found)


def main(file: str) -> None:
    """Does a job: writes the ``.pte`` and a report."""
    job = json.loads(Path(file).read_text())
    program = torch.export.load(job["program"])
    if job["static_layers"]:
        program = quantized(program, job["static_layers"], job["samples"], job["inputs"])
    lowered = to_edge_transform_and_lower(
        program, transform_passes=[DropExpand()], partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    Path(job["output"]).write_bytes(lowered.buffer)
    method = Runtime.get().load_program(lowered.buffer).load_method("forward")
    report = outside_delegates(lowered.exported_program().graph_module) | {
        "inputs": [list(shape) for shape in read_shapes(method.metadata, "input")],
        "outputs": [list(shape) for shape in read_shapes(method.metadata, "output")],
    }
    Path(job["report"]).write_text(json.dumps(report))


def quantized(program: Any, layers: list[str], samples: str, inputs: list[str]) -> Any:
    """Returns a program whose given linear layers compute in 8 bits, with ranges of the samples."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config: Any = get_symmetric_quantization_config(is_per_channel=True)
    # as the plan has them: from the least to the greatest value; the default clips what is rare
    spec = replace(config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
    config = replace(config, input_activation=spec, output_activation=spec)
    quantizer = XNNPACKQuantizer()
    for layer in layers:
        quantizer.set_module_name(layer, config)
    prepared = prepare_pt2e(program.module(), quantizer)
    arguments = [tuple(sample[name] for name in inputs) for sample in read_samples(samples)]
    with torch.no_grad():
        for sample in arguments:
            prepared(*sample)
        converted = convert_pt2e(prepared)
    weight = torch.ops.quantized_decomposed.dequantize_per_channel.default
    found = len(converted.graph.find_nodes(op="call_function", target=weight))
    if found != len(layers):
        raise ValueError(f"{len(layers)} linear layers are to have 8 bits, the program has {found}")
    with torch.no_grad():
        return torch.export.export(converted, arguments[0], strict=False)


def read_samples(path: str) -> list[dict[str, torch.Tensor]]:
    """Returns the inputs of each sample that ``convert`` saved."""
    samples: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, name = key.split("/")
            samples.setdefault(number, {})[name] = torch.from_numpy(arrays[key])
    return list(samples.values())


def outside_delegates(graph_module: GraphModule) -> dict[str, Any]:
    """Returns the number of ``delegates``, and of each operation that no delegate computes."""
    found: Counter[str] = Counter()
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            found[getattr(node.target, "__name__", str(node.target))] += 1
    outside = sorted(
        ((name, count) for name, count in found.items() if name not in MACHINERY),
        key=lambda entry: (-entry[1], entry[0]),
    )
    return {
        "delegates": found["executorch_call_delegate"],
        "outside_delegates": [{"operation": name, "count": count} for name, count in outside],
    }


if __name__ == "__main__":
    main(sys.argv[1])
