"""Apple's converter, in its own environment: ``python -m … JOB.json``.

``convert`` writes the job, see ``_write_job`` there.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from coreai.authoring.asset import AIModelAsset
from coreai.runtime import AIModelAssetMetadata
from coreai_torch import TorchConverter, get_decomp_table

from pocketsam.export.quantization import smallest
from pocketsam.export.to_coreai.linter import lint
from pocketsam.export.to_coreai.runner import MAIN
from pocketsam.export.traced import Tapped, TracedNetwork

INTERMEDIATES = "intermediates"
GROUP = 16
"""Output channels that share a palette."""


def main(file: str) -> None:
    """Does a job: writes the ``.aimodel`` and a report."""
    job = json.loads(Path(file).read_text())
    network = torch.load(job["network"], weights_only=False)  # of the process that started this one
    program = with_small_weights(to_program(network, job["names"]), job["precision"])
    metadata = AIModelAssetMetadata()
    metadata.author, metadata.license = "pocketsam", "Apache-2.0 (the code; the weights have their own)"
    metadata.model_description = job["description"]
    asset = program.save_asset(Path(job["output"]), metadata)
    asset.update_metadata(_same_date)
    report = {
        "shapes": asyncio.run(_read_shapes(asset)),
        "operations": count_operations(asset),
        "neural_engine_rules": lint(asset, network.inputs, network.outputs),
    }
    Path(job["report"]).write_text(json.dumps(report))


def _same_date(metadata: Any) -> None:
    """The same network, the same bytes."""
    metadata.creation_date = 0.0


def to_program(network: TracedNetwork, names: list[str]) -> Any:
    """Returns a program of two functions, which share all weights.

    Args:
        network: what to trace.
        names: of the intermediate outputs in the second function; none: there is no second.
    """
    example = network.example()
    arguments = tuple(example[name] for name in network.inputs)
    converter = TorchConverter()
    for entry, module, outputs in (
        (MAIN, network, network.outputs),
        (INTERMEDIATES, Tapped(network).eval(), (*network.outputs, *names)),
    ):
        if entry == INTERMEDIATES and not names:
            continue
        with torch.no_grad():
            exported = torch.export.export(module, arguments, strict=False)
            exported = exported.run_decompositions(get_decomp_table())
        converter.add_exported_program(
            exported, input_names=network.inputs, output_names=outputs, entrypoint_name=entry
        )
    return converter.to_coreai()


def with_small_weights(program: Any, precision: str) -> Any:
    """Returns a program whose large weights have 8 bits, a step for each output channel, or 6, a
    palette for each group of channels; in float precisions as it is."""
    from coreai_opt.coreai_utils import (
        CompressionGranularity,
        DType,
        palettize_weights,
        quantize_weights,
    )

    if precision == "int8-weights":
        return quantize_weights(program, DType.INT8, weight_num_threshold=smallest.ENCODER)
    if precision == "palette6":
        return palettize_weights(
            program,
            None,
            n_bits=6,
            granularity=CompressionGranularity.PER_GROUPED_CHANNEL,
            group_size=GROUP,
            weight_num_threshold=smallest.ENCODER,
            num_kmeans_workers=1,
        )
    return program


def count_operations(asset: AIModelAsset) -> dict[str, int]:
    """Returns how often each operation stands in ``main``."""
    found: Counter[str] = Counter()
    program = asset.program
    graph = program._get_graph(MAIN)  # the summary that is public counts both functions
    for block in graph.regions[0].blocks:
        for operation in block.operations:
            found[operation.operation.name.removeprefix("coreai.").removeprefix("decomposable.")] += 1
    return dict(sorted(found.items()))


async def _read_shapes(asset: AIModelAsset) -> dict[str, list[int]]:
    async with asset.executable() as model:
        description = model.load_function(MAIN).desc
        described = {name: description.input_descriptor(name) for name in description.input_names}
        described |= {name: description.output_descriptor(name) for name in description.output_names}
        return {name: list(descriptor.shape) for name, descriptor in described.items()}


if __name__ == "__main__":
    main(sys.argv[1])
