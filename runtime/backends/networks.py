"""The two halves of a bundle as callables, whatever its target: dict of arrays in, dict of arrays out.

ONNX runs in onnxruntime, TFLite in LiteRT (extra ``litert``), Core ML on macOS (extra ``coreml``).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from pocketsam import constants
from pocketsam.errors import BundleError, PromptError
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.ort import (
    GPUS,
    GRAPHS,
    Recorded,
    asks_for_gpu,
    open_session,
    provider_options,
    run_bound,
    run_session,
)
from pocketsam.runtime.bundle import Bundle

Arrays = dict[str, Any]
"""Arrays by name; on a GPU the embedding is an ``OrtValue`` in its memory."""
Network = Callable[[Arrays], Arrays]

OUTPUTS = {"encoder": (c.IMAGE_EMBEDDINGS,), "decoder": (c.IOU_PREDICTIONS, c.LOW_RES_MASKS)}


def open_network(
    bundle: Bundle, network: str, providers: str | Sequence[str] = "cpu", threads: int | None = None
) -> Network:
    """Opens ``encoder`` or ``decoder`` of a bundle, after checking its hash.

    The decoder takes B prompts of N points whatever the file's shapes are; see ``prompt_by_prompt``.

    Raises:
        BundleError, IntegrityError: the file cannot be used, or not on this machine.
        ProviderError: a provider is missing here, or the target has no such provider.
        MissingExtraError: the target's runtime is not installed.
    """
    target = bundle.manifest.target
    if target == "onnx":
        return _open_onnx(bundle, network, providers, threads)
    name = f"{bundle.path}: {network}"
    if target == "tflite":
        from pocketsam.runtime.backends.litert import open_tflite

        half = open_tflite(bundle.read(network), name, providers, threads)
    elif target == "coreml":
        from pocketsam.runtime.backends.coreml import open_coreml

        half = open_coreml(bundle.locate(network), name, providers)
    else:
        raise BundleError(
            f"{bundle.path}: a bundle for {target}; this runtime runs onnx, tflite and coreml"
        )
    return prompt_by_prompt(half, bundle.points) if network == "decoder" else half


def _open_onnx(
    bundle: Bundle, network: str, providers: str | Sequence[str], threads: int | None
) -> Network:
    name = f"{bundle.path}: {network}"
    session = open_session(bundle.read(network), name, providers, threads, static=network == "encoder")
    first, options = provider_options(providers)[0]
    device = "cuda" if first in GPUS else None
    if device and network == "encoder" and options.get(GRAPHS[first], "0").lower() in ("1", "true"):
        recorded = Recorded(session, device)
        return lambda feeds: {c.IMAGE_EMBEDDINGS: recorded(feeds)}
    return onnx_network(session, network, name, device)


class SplitDecoder:
    """An ONNX decoder in three parts: what all prompts share, their scores, and the masks of some.

    Args:
        model: the file.
        name: what errors call it.
        providers, threads: as for ``open_network``.
    """

    SHARED = (c.IMAGE_EMBEDDINGS, c.MASK_INPUT, c.HAS_MASK_INPUT)

    def __init__(
        self, model: bytes, name: str, providers: str | Sequence[str], threads: int | None
    ) -> None:
        from pocketsam.runtime.backends import subgraph

        def session(*arguments: Any) -> ort.InferenceSession:
            return open_session(subgraph.extract(*arguments), name, providers, threads)

        self._name = name
        until_scores = subgraph.extract(model, (c.IOU_PREDICTIONS, *c.SPLIT_TENSORS))
        self._shared = session(until_scores, subgraph.frontier(until_scores, self.SHARED))
        given = self._shared.get_outputs()
        self._scores = session(until_scores, (c.IOU_PREDICTIONS, *c.SPLIT_TENSORS), given)
        given = [one for one in self._scores.get_outputs() if one.name in c.SPLIT_TENSORS]
        self._masks = session(model, (c.LOW_RES_MASKS,), given)

    def _run(self, session: ort.InferenceSession, feeds: Arrays) -> Arrays:
        names = [one.name for one in session.get_outputs()]
        used = {one.name: feeds[one.name] for one in session.get_inputs()}
        return dict(zip(names, run_session(session, self._name, names, used), strict=True))

    def share(self, feeds: Arrays) -> Arrays:
        """What follows from ``SHARED`` alone, of a mask input that serves all prompts."""
        return self._run(self._shared, feeds)

    def scores(self, shared: Arrays, feeds: Arrays) -> Arrays:
        """``IOU_PREDICTIONS``, and ``SPLIT_TENSORS``."""
        return self._run(self._scores, feeds | shared)

    def masks(self, found: Arrays) -> Any:
        """``LOW_RES_MASKS`` of as many prompts as ``SPLIT_TENSORS`` is of."""
        return self._run(self._masks, found)[c.LOW_RES_MASKS]


def open_split_decoder(
    bundle: Bundle, providers: str | Sequence[str] = "cpu", threads: int | None = None
) -> SplitDecoder | None:
    """A bundle's decoder in parts; None where that does not pay or cannot be: on a GPU, of another
    target, of a file that does not hold ``SPLIT_TENSORS``, or without protobuf.

    Raises:
        as ``open_network``.
    """
    can = set(c.SPLIT_TENSORS).issubset(bundle.manifest.decoder.intermediates)
    if not can or bundle.manifest.target != "onnx" or asks_for_gpu(providers):
        return None
    try:
        return SplitDecoder(bundle.read("decoder"), f"{bundle.path}: decoder", providers, threads)
    except ImportError:  # an onnxruntime that came without protobuf
        return None


def onnx_network(session: ort.InferenceSession, network: str, name: str, device: str | None) -> Network:
    """A half in an open session.

    Args:
        device: where the embedding stays between the halves; None: in numpy's memory.
    """

    def call(feeds: Arrays) -> Arrays:
        if network == "decoder":  # (0, 0): no full-size masks; ``Upscaler`` is exact and cheaper
            feeds = feeds | {c.ORIG_IM_SIZE: np.zeros(2, np.float32)}
        outputs = OUTPUTS[network]
        if device:
            kept = (c.IMAGE_EMBEDDINGS,)
            return dict(
                zip(outputs, run_bound(session, name, outputs, feeds, device, kept), strict=True)
            )
        return dict(zip(outputs, run_session(session, name, outputs, feeds), strict=True))

    return call


def pad_points(feeds: Arrays, points: int) -> Arrays:
    """A decoder's inputs with each prompt's points filled up to ``points`` by ``LABEL_PADDING``.

    Raises:
        PromptError: a prompt has more points than there are places.
    """
    coords, labels = feeds[c.POINT_COORDS], feeds[c.POINT_LABELS]
    batch, count = labels.shape
    if count > points:
        raise PromptError(
            f"a prompt of {count} points (a box is two, and points without a box get one more); "
            f"this bundle's decoder has places for {points}; export it with more: --points"
        )
    wide = np.zeros((batch, points, 2), np.float32)
    kinds = np.full((batch, points), constants.LABEL_PADDING, np.float32)
    wide[:, :count], kinds[:, :count] = coords, labels
    return feeds | {c.POINT_COORDS: wide, c.POINT_LABELS: kinds}


def prompt_by_prompt(decoder: Network, points: int) -> Network:
    """A decoder of static shapes (one prompt, ``points`` points) as one of B prompts of N points.

    Places that a prompt does not use are filled up, see ``pad_points``, and the graph leaves them out
    of its attention: the masks are those of N points. One mask input may serve all prompts.
    """
    per_prompt = (c.POINT_COORDS, c.POINT_LABELS, c.MASK_INPUT, c.HAS_MASK_INPUT)

    def call(feeds: Arrays) -> Arrays:
        filled = pad_points(feeds, points)
        batch = len(filled[c.POINT_LABELS])
        lists = {
            key: np.broadcast_to(filled[key], (batch, *filled[key].shape[1:])) for key in per_prompt
        }
        rows = [  # copies, because what was broadcast is not writable, and torch warns of that
            decoder(filled | {key: array[i : i + 1].copy() for key, array in lists.items()})
            for i in range(batch)
        ]
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

    return call
