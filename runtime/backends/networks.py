"""The encoder and the decoder of a bundle as callables, whatever the target: arrays in, arrays out.

ONNX runs in onnxruntime or OpenVINO (extra ``openvino``), TFLite in LiteRT (``litert``), Core ML on
macOS (``coreml``).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketsam import constants
from pocketsam.errors import BundleError, PromptError
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.coreml import available, open_coreml
from pocketsam.runtime.backends.litert import open_tflite
from pocketsam.runtime.backends.open_vino import check_openvino, open_openvino
from pocketsam.runtime.backends.ort import Arrays, Network, asks_for_gpu, open_onnx
from pocketsam.runtime.backends.providers import OPENVINO, Providers, is_provider
from pocketsam.runtime.backends.recorded import resolve_auto
from pocketsam.runtime.backends.saturation import check_weight_bits
from pocketsam.runtime.bundle import Bundle, choose_bundle


@dataclass(frozen=True)
class Backend:
    """What runs the networks of a target.

    Attributes:
        open: opens a network: its file's bytes (or its directory), its name in error messages,
            ``encoder`` or ``decoder``, providers, threads.
        is_static: whether the decoder takes a single prompt with a fixed number of points.
        is_directory: whether a network is a directory instead of a file.
    """

    open: Callable[[Any, str, str, Providers, int | None], Network]
    is_static: bool = False
    is_directory: bool = False


def _open_onnx(
    data: bytes, name: str, network: str, providers: Providers, threads: int | None
) -> Network:
    """Returns a network in onnxruntime; for ``openvino`` the encoder there, the decoder here."""
    if not is_provider(providers, OPENVINO):
        return open_onnx(data, name, network, providers, threads)
    if network == "encoder":
        return open_openvino(data, name, providers, threads)
    check_openvino(providers)
    return open_onnx(data, name, network, "cpu", threads)


BACKENDS = {
    "onnx": Backend(_open_onnx),
    "web": Backend(_open_onnx),
    "tflite": Backend(
        lambda data, name, network, providers, threads: open_tflite(
            data, name, providers, threads, network=network
        ),
        is_static=True,
    ),
    "coreml": Backend(
        lambda path, name, _, providers, threads: open_coreml(path, name, providers),
        is_static=True,
        is_directory=True,
    ),
}
"""By the manifest's target."""


def runs_here(target: str) -> bool:
    """Returns whether this runtime runs a target's networks on this system."""
    return target in BACKENDS and (target != "coreml" or available())


def open_for_device(
    directory: str | os.PathLike[str],
    providers: Providers = "cpu",
    precision: str | None = None,
    threads: int | None = None,
) -> tuple[Bundle, Providers]:
    """Returns the bundle of a directory in one of its precisions, and what is to run it.

    Args:
        directory: the bundle's directory.
        providers: as for ``Segmenter``; in place of ``auto`` the recorded ones are returned.
        precision: which precision of a bundle that holds several; None: as ``choose_bundle`` says.
        threads: which record ``auto`` takes.

    Raises:
        BundleError, IntegrityError: not a bundle, a damaged one, or one without the precision.
        ProviderError: see ``resolve_auto``.
    """
    providers, precision = resolve_auto(directory, providers, precision, threads)
    return choose_bundle(directory, precision, asks_for_gpu(providers)), providers


def open_network(
    bundle: Bundle, network: str, providers: Providers = "cpu", threads: int | None = None
) -> Network:
    """Returns ``encoder`` or ``decoder`` of a bundle as a callable, after checking the file's hash.

    The decoder takes B prompts of N points whatever the file's shapes are; see ``call_by_call``.
    A call raises BundleError for outputs of other shapes or types than ``contract`` says.

    Raises:
        BundleError, IntegrityError: the file cannot be used, or not on this machine.
        ProviderError: a provider is missing here, or the target has no such provider.
        MissingExtraError: the target's runtime is not installed.
    """
    target, name = bundle.manifest.target, f"{bundle.path}: {network}"
    if target not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise BundleError(f"{bundle.path}: a bundle for {target}; this runtime runs {known}")
    check_weight_bits(getattr(bundle.manifest, network).weight_bits, name)
    backend, shape = BACKENDS[target], {}
    if backend.is_static:
        shape = {"max_points": bundle.max_points, "prompts": bundle.prompts_per_call}
    source = bundle.locate(network) if backend.is_directory else bundle.read(network)
    opened = backend.open(source, name, network, providers, threads)
    opened = _checked(opened, bundle.manifest.embedding_side, name)
    return call_by_call(opened, **shape) if shape and network == "decoder" else opened


def decoder_batch(bundle: Bundle) -> int:
    """Returns how many prompts to give to a bundle's decoder at a time.

    Raises:
        IntegrityError: see ``Bundle.prompts_per_call``.
    """
    if not BACKENDS[bundle.manifest.target].is_static:
        return DECODER_BATCH
    return bundle.prompts_per_call * max(1, DECODER_BATCH // bundle.prompts_per_call)


def _checked(network: Network, cells: int, name: str) -> Network:
    def call(feeds: Arrays) -> Arrays:
        outputs = network(feeds)
        c.check_outputs(outputs, cells, len(feeds.get(c.POINT_LABELS, [0])), name)
        return outputs

    return call


def finite(network: Network, name: str) -> Network:
    """Returns a network that raises BundleError instead of returning NaN or infinity."""

    def call(feeds: Arrays) -> Arrays:
        outputs = network(feeds)
        c.check_finite(outputs, name)
        return outputs

    return call


DECODER_BATCH = 8
"""Prompts per call, unless the file has a number of its own: more are no faster on a CPU, and each
takes 60 to 100 MB at 1024.
"""
PER_PROMPT = (c.POINT_COORDS, c.POINT_LABELS, c.MASK_INPUT, c.HAS_MASK_INPUT)
"""The decoder's inputs with an entry for each prompt; the mask inputs may have one for all."""


def fill_up(feeds: Arrays, prompts: int, max_points: int) -> Arrays:
    """Returns a decoder's inputs with the shapes of a decoder of static shapes.

    Args:
        feeds: the inputs, ``point_coords`` ``[B, N, 2]`` and ``point_labels`` ``[B, N]`` among them.
        prompts: the number of prompts that the decoder takes, at least B; the last one is repeated.
        max_points: the number of points that it takes; the others have ``LABEL_PADDING``.

    Raises:
        PromptError: a prompt has more points.
    """
    coords, labels = feeds[c.POINT_COORDS], feeds[c.POINT_LABELS]
    batch, count = labels.shape
    if count > max_points:
        raise PromptError(
            f"a prompt of {count} points (a box is two, and points without a box get one more); this "
            f"bundle's decoder takes at most {max_points}; export it with more: --max-points"
        )
    order = np.minimum(np.arange(prompts), batch - 1)
    padded_coords = np.zeros((prompts, max_points, 2), np.float32)
    padded_labels = np.full((prompts, max_points), constants.LABEL_PADDING, np.float32)
    padded_coords[:, :count], padded_labels[:, :count] = coords[order], labels[order]
    return feeds | {c.POINT_COORDS: padded_coords, c.POINT_LABELS: padded_labels}


def call_by_call(decoder: Network, prompts: int, max_points: int) -> Network:
    """Returns a decoder of B prompts that calls a decoder of fixed shapes as often as it takes.

    A mask input of batch 1 serves all prompts; where each prompt has its own, each has its own call.
    See ``fill_up``: the decoder leaves padding out of its attention, so the masks are the same as
    without it.

    Args:
        decoder: takes ``prompts`` prompts of ``max_points`` points, and one mask input.
        prompts: number of prompts that ``decoder`` takes.
        max_points: number of points that ``decoder`` takes.
    """

    def call(feeds: Arrays) -> Arrays:
        batch, rows = len(feeds[c.POINT_LABELS]), []
        step = prompts if len(feeds[c.MASK_INPUT]) == 1 else 1
        for start in range(0, batch, step):
            stop = min(start + step, batch)
            part = {
                key: feeds[key][start:stop] if len(feeds[key]) == batch else feeds[key]
                for key in PER_PROMPT
            }
            found = decoder(fill_up(feeds | part, prompts, max_points))
            rows.append({key: array[: stop - start] for key, array in found.items()})
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

    return call
