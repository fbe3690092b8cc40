"""PyTorch to ONNX, and back to something that runs.

``convert`` writes one network, ``load`` opens one. Opset 20 is the first with a Gelu operator.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketsam.errors import ConversionError
from pocketsam.export.cases import Case, samples_of
from pocketsam.export.options import Options
from pocketsam.export.quantization import smallest
from pocketsam.export.quantization.plan import Plan
from pocketsam.export.target import Call, Converted, Progress
from pocketsam.export.to_onnx import int8, weights
from pocketsam.export.to_onnx.large import count_bytes, fits
from pocketsam.export.to_onnx.opset import OPSET, lower_opset
from pocketsam.export.to_onnx.passes import FastDecoder, optimise
from pocketsam.export.to_onnx.rounded import prepare
from pocketsam.export.to_onnx.simplify import simplify
from pocketsam.export.to_onnx.static import quantize_static
from pocketsam.export.to_onnx.upscaling import append_upscaling
from pocketsam.export.traced import Decoder, Encoder, Tapped, TracedNetwork
from pocketsam.models.sam import EMBED_DIM, Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.open_vino import check_openvino, open_openvino
from pocketsam.runtime.backends.ort import open_session
from pocketsam.runtime.backends.providers import OPENVINO, is_provider
from pocketsam.runtime.manifest_files import TensorInfo

Arrays = dict[str, NDArray[Any]]
OPTIONS = Options()


def traced_networks(model: Sam, options: Options) -> dict[str, TracedNetwork]:
    """Returns both networks in the form that is fast in ONNX, for any number of prompts and points."""
    model = optimise(model, options.disabled_passes)
    return {"encoder": Encoder(model), "decoder": FastDecoder(model)}


def runtime_name() -> str:
    """Returns the name and version of what runs the files, for the parity report."""
    return f"onnxruntime {ort.__version__}"


def convert(
    network: TracedNetwork,
    path: Path,
    options: Options = OPTIONS,
    calibration: Sequence[Case] = (),
    about: dict[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> Converted:
    """Writes one network as a self-contained ONNX file.

    Args:
        network: the encoder or the decoder.
        path: the file to write.
        options: precision, and what int8 must reach.
        calibration: photographs with PyTorch's answers, for fp16 and int8.
        about: unused; an ONNX file carries no metadata of ours, the manifest does.
        progress: called with a line about each step.

    Returns:
        What the manifest says of it; its details are the opset, whether it was simplified, and what was
        measured for the precision.

    Raises:
        ConversionError: the exporter failed, its result does not run, or int8 is too slow.
        ParityError: int8 does not reach ``options.min_miou``.
    """
    network, planned = prepare(network, options, calibration, progress)
    whole, simplified = _trace_float(network)
    model, measured = _in_precision(whole, network, options, calibration, planned, progress)
    if options.opset is not None:
        model = lower_opset(model, options.opset)
    if not fits(model):
        raise ConversionError(
            f"{path.name}: {count_bytes(model) / 1e9:.1f} GB of weights in {options.precision}, and an "
            "ONNX file ends at 2 GiB; choose a smaller --precision"
        )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return Converted(
        inputs=tuple(_describe(value) for value in model.graph.input),
        outputs=tuple(_describe(value) for value in model.graph.output),
        intermediates=tuple(network.intermediates()),
        weight_bits=options.weight_bits
        if options.precision == "int8" and isinstance(network, Encoder)
        else None,
        details=measured | {"opset": model.opset_import[0].version, "simplified": simplified},
    )


_STATIC: WeakKeyDictionary[TracedNetwork, onnx.ModelProto] = WeakKeyDictionary()
_TRACED: WeakKeyDictionary[TracedNetwork, tuple[onnx.ModelProto, bool]] = WeakKeyDictionary()
"""Networks that were traced, in float32: tracing takes longer than all that a precision adds."""


def _trace_float(network: TracedNetwork) -> tuple[onnx.ModelProto, bool]:
    """Returns a network's float32 model, and whether it was simplified; traces it the first time."""
    if network not in _TRACED:
        exported = _trace(network)
        if isinstance(network, Decoder):
            _free_mask_batch(exported, network)
            append_upscaling(exported, network.model.image_size)
        model, simplified = simplify(exported, network)
        _strip(model, network)
        weights.share_bias_tables(model)
        _TRACED[network] = model, simplified
    return _TRACED[network]


def _in_precision(
    model: onnx.ModelProto,
    network: TracedNetwork,
    options: Options,
    calibration: Sequence[Case],
    planned: Plan | None,
    progress: Progress,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Returns the model in the precision of the options, and what the manifest says of that.

    The model that is given stays as it is: other precisions start from it.
    """
    if options.precision == "fp32":
        return model, {}
    if options.precision == "fp16":
        smaller, measured = weights.to_float16(model, samples_of(network, calibration))
        return smaller, {"float16": measured}
    if options.precision == "int8" and isinstance(network, Encoder):
        mixed, measured = int8.quantize_encoder(model, network, calibration, options, progress)
        return weights.store_weights(mixed, 8), {"int8": measured}
    if planned is not None:
        mixed = quantize_static(model, planned)
        return weights.store_weights(mixed, 8, smallest.ENCODER), {"int8": planned.to_json()}
    # The decoder's few tokens do not bear 8-bit activations; its weights do.
    if options.precision == "int8-static":
        return weights.store_weights(model, 8, smallest.DECODER), {}
    bits = 4 if options.precision == "int4-weights" else 8
    return weights.store_weights(model, bits), {}


def load(
    source: bytes,
    name: str,
    intermediates: Sequence[str] = (),
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> Call:
    """Opens a file in onnxruntime, or an encoder in OpenVINO, which has no intermediate outputs.

    Args:
        source: an ONNX file.
        name: the file, in error messages.
        intermediates: names of tensors inside the graph to return besides the outputs; those that it
            does not have are left out.
        providers, threads: as for the runtime's ``Segmenter``.
    """
    if intermediates:
        model = onnx.load_from_string(source)
        there = {output for node in model.graph.node for output in node.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=intermediate)  # onnxruntime knows its type
            for intermediate in intermediates
            if intermediate in there
        )
        source = model.SerializeToString()
    in_openvino = is_provider(providers, OPENVINO) and bool(check_openvino(providers))
    session = open_session(source, name, "cpu" if in_openvino else providers, threads)
    outputs = [output.name for output in session.get_outputs()]
    if in_openvino and c.IMAGE_EMBEDDINGS in outputs:
        return open_openvino(source, name, providers, threads)
    inputs = {entry.name for entry in session.get_inputs()}

    def call(feeds: Arrays) -> Arrays:
        used = {name: array for name, array in feeds.items() if name in inputs}
        found = dict(zip(outputs, session.run(None, used), strict=True))
        return {name: array.astype(np.float32, copy=False) for name, array in found.items()}

    return call


def trace_static(network: TracedNetwork) -> onnx.ModelProto:
    """Returns a network as ONNX with its example's shapes, for converters that start from ONNX."""
    if network not in _STATIC:
        model, _ = simplify(_trace(network, static=True), network)
        del model.graph.output[len(network.outputs) :]
        _STATIC[network] = model
    return _STATIC[network]


def trace_plain(network: TracedNetwork, path: Path) -> None:
    """Writes a network as ``torch.onnx.export`` leaves it, to compare with."""
    example = network.example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), tuple(example[name] for name in network.inputs), path,
            input_names=list(network.inputs), output_names=list(network.outputs), dynamo=True,
            verbose=False, external_data=False,
        )  # fmt: skip


def _trace(network: TracedNetwork, static: bool = False) -> onnx.ModelProto:
    example = network.example()
    shapes: tuple[dict[int, Any], ...] | None = None
    if isinstance(network, Decoder) and not static:
        prompts, points = torch.export.Dim("B"), torch.export.Dim("N")
        dims = {
            c.POINT_COORDS: {0: prompts, 1: points},
            c.POINT_LABELS: {0: prompts, 1: points},
        }
        shapes = (tuple(dims.get(name, {}) for name in network.inputs),)  # type: ignore[assignment]
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
            program = torch.onnx.export(
                Tapped(network).eval(),
                tuple(example[name] for name in network.inputs),
                input_names=list(network.inputs),
                output_names=[*network.outputs, *network.intermediates()],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
            )
    except Exception as error:  # the exporter raises whatever the op at fault raised
        raise ConversionError(f"torch.onnx.export failed: {str(error).splitlines()[0]}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None  # it is None only where a path is given
    model: onnx.ModelProto = program.model_proto
    return model


def _free_mask_batch(model: onnx.ModelProto, network: Decoder) -> None:
    """Lets ``mask_input`` and ``has_mask_input`` have a batch M of 1, for all prompts, or of B.

    torch.export knows no axis that may be 1 or B, so they are traced with 1. All that follows
    broadcasts, but for one reshape, whose constant batch becomes "what is left".
    """
    for value in model.graph.input:
        if value.name in (c.MASK_INPUT, c.HAS_MASK_INPUT):
            value.type.tensor_type.shape.dim[0].dim_param = "M"
    cells = network.model.embedding_side**2
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64 and tensor.dims == [3]:
            shape = numpy_helper.to_array(tensor)
            if tuple(shape) == (1, EMBED_DIM, cells):
                free = np.array([-1, *shape[1:]], np.int64)
                tensor.CopyFrom(numpy_helper.from_array(free, tensor.name))
    del model.graph.value_info[:]


def _strip(model: onnx.ModelProto, network: TracedNetwork) -> None:
    """Makes intermediate outputs internal, and removes what tells of this machine or moment."""
    wanted = [*((c.MASKS,) if isinstance(network, Decoder) else ()), *network.outputs]
    outputs = {value.name: value for value in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(outputs[name] for name in wanted)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version = "pocketsam", ""
    model.graph.name = type(network).__name__.lower()
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


def _describe(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorInfo(value.name, shape, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
