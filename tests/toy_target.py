"""A target of a few lines: weights in a safetensors file, run by PyTorch. Shows what a target needs.

``export/to_NAME/`` has the same: one literal, and the four functions of ``Converter``. Run as a program
it is the ``pocketsam`` command with ``--target toy``.
"""

import sys

import torch
from safetensors.torch import load, save

from pocketsam.export.target import Converted, Precision, Target
from pocketsam.export.targets import TARGETS
from pocketsam.export.traced import REFERENCE_TYPES, Decoder, run
from pocketsam.export.verification.tolerances import DRIFT, FP32, ROUGH
from pocketsam.models.sam import build
from pocketsam.runtime.manifest_files import TensorInfo


def traced_networks(model, options):
    return {name: kind(model) for name, kind in REFERENCE_TYPES.items()}


def convert(network, path, options, calibration, about, progress):
    state = {key: value.contiguous() for key, value in network.model.state_dict().items()}
    if options.precision == "rounded":
        state = {key: value.bfloat16().float() for key, value in state.items()}
    kind = "decoder" if isinstance(network, Decoder) else "encoder"
    metadata = {"image_size": f"{network.model.image_size} {kind}"}  # a second key would move about
    path.write_bytes(save(state, metadata))
    example = network.example()
    shapes = {name: tuple(x.shape) for name, x in example.items()} | {
        "point_coords": ("B", options.max_points, 2)
    }
    inputs = tuple(TensorInfo(name, shapes[name], "float32") for name in example)
    outputs = tuple(TensorInfo(name, (), "float32") for name in network.outputs)
    details = {"image_size": network.model.image_size, "kind": kind}
    return Converted(
        inputs=inputs,
        outputs=outputs,
        intermediates=tuple(network.intermediates()),
        max_points=options.max_points,
        details=details,
    )


def load_network(source, name, intermediates=(), providers="cpu", threads=None):
    state = load(source)
    embedded = source[8 : 8 + int.from_bytes(source[:8], "little")]
    size, kind = embedded.split(b'"image_size":"')[1].split(b'"')[0].decode().split()
    model = build(image_size=int(size))
    model.load_state_dict(state)
    network = REFERENCE_TYPES[kind](model.eval())

    def call(feeds):
        outputs, inside = run(network, feeds)
        return outputs | {key: inside[key] for key in intermediates}

    return call


class Converter:
    traced_networks = staticmethod(traced_networks)
    convert = staticmethod(convert)
    load = staticmethod(load_network)
    runtime_name = staticmethod(lambda: f"torch {torch.__version__}")


TARGET = Target(
    name="toy",
    extra="export",
    suffix=".safetensors",
    packages=("safetensors",),
    precisions=(
        Precision(name="fp32", tolerance=FP32, grade="equivalent"),
        Precision(
            name="rounded",
            tolerance=ROUGH,
            grade="lossy",
            drift=DRIFT,
            options=("min_miou",),
        ),
    ),
    options=("max_points",),
    next_step="smile",
    open_converter=Converter,
)

if __name__ == "__main__":
    from pocketsam.cli import main

    TARGETS["toy"] = TARGET
    sys.exit(main())
