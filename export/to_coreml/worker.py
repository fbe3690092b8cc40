"""From a traced network to an ``.mlpackage``, in a process of its own: ``python -m … JOB.json``.

``convert`` writes the job and starts this; see ``_describe_job`` there for its fields.
"""

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import torch
from coremltools.converters.mil.mil.passes.graph_pass import PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.models.utils import _apply_graph_pass

from pocketsam.export.quantization import smallest
from pocketsam.export.to_coreml.interpreter import flat_inputs, number_operations


def main(path: str) -> None:
    """Converts, compresses, takes the intermediate outputs out of the outputs, saves."""
    job = json.loads(Path(path).read_text())
    model = compress(convert(job), job)
    save(model, job)


def convert(job: dict[str, Any]) -> Any:
    """Returns the traced network as an ML program, fp32 or fp16, with its intermediate outputs."""
    skipped = {tuple(number) for number in job["fp32_operations"]}
    numbers: dict[int, tuple[str, int]] = {}

    def in_float16(op: Any) -> bool:
        if not numbers:  # before the pass changes anything; names change after it, the order does not
            numbers.update(number_operations(op.enclosing_block.operations))
            skipped.update(positions(op.enclosing_block.operations, numbers))
        return numbers.get(id(op)) not in skipped

    float16 = ct.transform.FP16ComputePrecision(op_selector=in_float16)
    inputs = [
        ct.ImageType(name=name, shape=shape, color_layout=ct.colorlayout.RGB)
        if name == job["image_input"]
        else ct.TensorType(name=name, shape=shape, dtype=np.float32)
        for name, shape in job["inputs"].items()
    ]
    load: Any = torch.jit.load
    names = [*job["outputs"], *job["intermediates"].values()]
    return ct.convert(
        load(job["traced"]),
        inputs=inputs,
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in names],
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32 if job["precision"] == "fp32" else float16,
        minimum_deployment_target=ct.target[job["deployment_target"]],
        skip_model_load=True,
    )


def positions(operations: Any, numbers: dict[int, tuple[str, int]]) -> set[tuple[str, int]]:
    """Returns the operations that encode positions of points: sines, cosines and all before them.

    float16 has steps of half a pixel from 512 on, and angles grow to 2 pi times the frequencies.
    """
    found: set[tuple[str, int]] = set()
    waiting = [op for op in operations if op.op_type in ("sin", "cos")]
    while waiting:
        op = waiting.pop()
        if op is not None and id(op) in numbers and numbers[id(op)] not in found:
            found.add(numbers[id(op)])
            waiting += [var.op for var in flat_inputs(op.inputs.values())]
    return found


def compress(model: Any, job: dict[str, Any]) -> Any:
    """Weights and activations as the job's precision says."""
    precision = job["precision"]
    if precision in ("int8-weights", "int8"):
        if job["static_layers"]:
            model = quantize_inputs(model, job["static_layers"], job["ranges"])
        config: Any = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            weight_threshold=smallest.DECODER if job["network"] == "decoder" else smallest.COREML,
        )
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(config))
    if precision.startswith("palette"):
        bits = int(precision.removeprefix("palette"))
        if bits < 8:  # the weights that have so few bits have no more values than that already
            config = cto.OpPalettizerConfig(mode="unique", weight_threshold=smallest.COREML)
            with exact_unique():
                model = cto.palettize_weights(model, cto.OptimizationConfig(config))
        modern = job["deployment_target"] not in ("iOS16", "iOS17")
        groups = {"granularity": "per_grouped_channel", "group_size": 16} if modern else {}
        config = cto.OpPalettizerConfig(
            mode="kmeans", nbits=8, weight_threshold=smallest.COREML, **groups
        )
        return cto.palettize_weights(model, cto.OptimizationConfig(config))
    return model


@contextmanager
def exact_unique() -> Iterator[None]:
    """Lets ``np.unique`` sort float16 as float32, by which coremltools counts a palette's values.

    numpy 2.3 sorts large float16 arrays wrongly on CPUs with AVX-512 for 16 bits (Ice Lake, Zen 4):
    some values are found several times, and a palette of 64 values would take 8 bits.
    """
    unique = np.unique

    def found(values: Any, **options: Any) -> Any:
        if getattr(values, "dtype", None) != np.float16:
            return unique(values, **options)
        result = unique(values.astype(np.float32), **options)
        if isinstance(result, tuple):
            return (result[0].astype(np.float16), *result[1:])
        return result.astype(np.float16)

    with patch.object(np, "unique", found):
        yield


def quantize_inputs(model: Any, layers: list[str], ranges: dict[str, dict[str, float]]) -> Any:
    """Returns a model in which the inputs of layers have 8 bits, on an asymmetric grid.

    coremltools' own function also rounds outputs, which residual branches do not bear, and gathers the
    ranges by predicting, which only a Mac can; ours come from the interpreter.

    Args:
        model: a float16 program.
        layers: starts of the names of their biases.
        ranges: tensor to ``rmin`` and ``rmax``.
    """
    insert: Any = PASS_REGISTRY["compression::insert_prefix_quantize_dequantize_pair"]
    program = model._mil_program
    found = {
        layer: op.name
        for op in program.functions["main"].operations
        if op.op_type == "conv" and op.inputs.get("bias") is not None
        for layer in layers
        if op.bias.name.startswith(layer)
    }
    if len(found) < len(layers):
        raise ValueError(f"no convolution of {min(set(layers) - set(found))}")
    config = cto.OptimizationConfig(
        op_name_configs=dict.fromkeys(found.values(), cto.OpLinearQuantizerConfig(mode="linear"))
    )
    options = {"config": config, "activation_stats": ranges}
    insert.set_options([PassOption(name, value) for name, value in options.items()])
    return _apply_graph_pass(model, insert, spec_version=ct.target.iOS17, skip_model_load=True)


def save(model: Any, job: dict[str, Any]) -> None:
    """Writes the package: the same job gives the same bytes."""
    spec = model.get_spec()
    intermediates = strip_intermediates(spec, job["outputs"], job["intermediates"])
    description = spec.description
    metadata = description.metadata
    metadata.author, metadata.license = job["author"], job["license"]
    metadata.shortDescription, metadata.versionString = job["description"], job["version"]
    metadata.userDefined.clear()
    metadata.userDefined.update(job["metadata"] | {job["intermediates_key"]: json.dumps(intermediates)})
    for feature in (*description.input, *description.output):
        feature.shortDescription = job["feature_descriptions"][feature.name]
    package = Path(job["output"])
    finished = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    finished.save(str(package))
    (model_file,) = package.glob("Data/*/*.mlmodel")
    model_file.write_bytes(spec.SerializeToString(deterministic=True))
    _fix_identifiers(package / "Manifest.json")


def strip_intermediates(spec: Any, outputs: list[str], intermediates: dict[str, str]) -> dict[str, str]:
    """Takes the intermediate outputs out of a program's outputs, with what only served them.

    Returns:
        Stage to the name of the tensor that holds it.
    """
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    makers = {value.name: op for op in block.operations for value in op.outputs}
    holders = {}
    for intermediate, name in intermediates.items():
        op = makers[name]
        while op.type == "cast":  # to float32, for the output's sake
            name = op.inputs["x"].arguments[0].name
            op = makers[name]
        holders[intermediate] = name
    block.outputs[:] = [name for name in block.outputs if name in outputs]
    kept = [feature for feature in spec.description.output if feature.name in outputs]
    del spec.description.output[:]
    spec.description.output.extend(sorted(kept, key=lambda feature: outputs.index(feature.name)))
    while dead := _dead_operations(block):
        alive = [op for op in block.operations if op.outputs[0].name not in dead]
        del block.operations[:]
        block.operations.extend(alive)
    return {intermediate: name for intermediate, name in holders.items() if _is_made(block, name)}


def _dead_operations(block: Any) -> set[str]:
    """Names of the first outputs of operations that nothing uses."""
    used = set(block.outputs)
    for op in block.operations:
        for argument in op.inputs.values():
            used.update(binding.name for binding in argument.arguments if binding.name)
    return {
        op.outputs[0].name for op in block.operations if not any(o.name in used for o in op.outputs)
    }


def _is_made(block: Any, name: str) -> bool:
    return any(value.name == name for op in block.operations for value in op.outputs)


def _fix_identifiers(path: Path) -> None:
    """A package names its files by random identifiers; ours follow from the files' paths."""
    manifest = json.loads(path.read_text())
    fixed = {}
    for identifier, item in manifest["itemInfoEntries"].items():
        new = str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper()
        fixed[new] = item
        if manifest["rootModelIdentifier"] == identifier:
            manifest["rootModelIdentifier"] = new
    manifest["itemInfoEntries"] = dict(sorted(fixed.items()))
    path.write_text(json.dumps(manifest, indent=4) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
