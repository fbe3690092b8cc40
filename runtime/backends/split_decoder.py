"""An ONNX decoder as three networks, so that clicks share work and bad ones cost no masks.

Where the decoder's form is known, the image's cells are factors, see ``factored``.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pocketsam.errors import BundleError, PocketSamError, first_line
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.ort import (
    OUTPUTS,
    Arrays,
    Network,
    asks_for_gpu,
    open_session,
    run_session,
)
from pocketsam.runtime.backends.providers import OPENVINO, Providers, is_provider
from pocketsam.runtime.bundle import Bundle
from pocketsam.traits import UPSCALING

MOST_POINTS = 8
"""Points of a prompt, padding included, up to which the split decoder takes less time."""
ROUNDING = 1e-3
"""Of a standard deviation, what rounding may change at most; see ``SplitDecoder.check``."""


class SplitDecoder:
    """An ONNX decoder as three networks: for what all prompts share, for scores, and for masks.

    Args:
        model: the decoder's file.
        name: used in error messages.
        providers, threads: as for ``open_network``.

    Attributes:
        name: as given.
        between: names of the tensors of each prompt from which its masks follow, with the prompt and
            what all share.

    Raises:
        ModuleNotFoundError: protobuf is not installed.
        BundleError: onnxruntime cannot load a part of the file.
    """

    SHARED = (c.IMAGE_EMBEDDINGS, c.MASK_INPUT, c.HAS_MASK_INPUT)
    """Inputs that are the same for all prompts."""

    def __init__(self, model: bytes, name: str, providers: Providers, threads: int | None) -> None:
        from pocketsam.runtime.backends import factored, subgraph  # which need protobuf

        def session(*arguments: Any) -> ort.InferenceSession:
            return open_session(subgraph.extract(*arguments), name, providers, threads)

        self.name = name
        self.between: tuple[str, ...] = c.SPLIT_TENSORS
        if faster := factored.factor(model):
            model, self.between = faster, (c.SPLIT_TENSORS[0], *factored.FACTORS)
        ends = (c.IOU_PREDICTIONS, *self.between)
        whole = subgraph.extract(model, (*ends, c.LOW_RES_MASKS))
        self._shared = session(whole, subgraph.frontier(whole, self.SHARED))
        shared = self._shared.get_outputs()
        self._scores = session(whole, ends, shared)
        between = [tensor for tensor in self._scores.get_outputs() if tensor.name in self.between]
        self._masks = session(whole, (c.LOW_RES_MASKS,), [*shared, *between])

    def _run(self, session: ort.InferenceSession, feeds: Arrays) -> Arrays:
        outputs = [tensor.name for tensor in session.get_outputs()]
        names = [tensor.name for tensor in session.get_inputs()]
        if absent := set(names).difference(feeds):
            raise BundleError(
                f"{self.name}: wants inputs that no decoder has: {', '.join(sorted(absent))}"
            )
        used = {name: feeds[name] for name in names}
        return dict(zip(outputs, run_session(session, self.name, outputs, used), strict=True))

    def __call__(self, feeds: Arrays) -> Arrays:
        """Returns what the whole decoder returns."""
        shared = self.share(feeds)
        outputs = self.scores(shared, feeds)
        return outputs | {c.LOW_RES_MASKS: self.masks(feeds | shared | outputs)}

    def share(self, feeds: Arrays) -> Arrays:
        """Returns the tensors that all prompts share, from the decoder's inputs ``SHARED``."""
        return self._run(self._shared, feeds)

    def check(self, decoder: Network, feeds: Arrays, shared: Arrays) -> None:
        """Compares the first prompt's answer with the whole decoder's.

        Raises:
            BundleError: they differ by more than rounding, or hold values that are no finite numbers.
        """
        prompts = (c.POINT_COORDS, c.POINT_LABELS)
        feeds = feeds | {name: feeds[name][:1] for name in prompts}
        side = feeds[c.MASK_INPUT].shape[-1]
        wanted = {name: decoder(feeds)[name] for name in OUTPUTS["decoder"]}
        _check(wanted, side, 1, self)
        outputs = self.scores(shared, feeds)
        outputs = outputs | {c.LOW_RES_MASKS: self.masks(feeds | shared | outputs)}
        for name, array in wanted.items():
            if not np.abs(outputs[name] - array).max() <= ROUNDING * max(array.std(), 1):
                raise BundleError(
                    f"{self.name}: {name} of a click differs where the decoder runs in parts; "
                    "export the bundle again"
                )

    def scores(self, shared: Arrays, feeds: Arrays) -> Arrays:
        """Returns ``iou_predictions`` ``[B, 4]`` and the tensors ``between`` of B prompts."""
        outputs = self._run(self._scores, feeds | shared)
        batch = len(feeds[c.POINT_LABELS])
        for name in self.between:  # of which prompts are picked
            if not isinstance(outputs[name], np.ndarray) or outputs[name].shape[:1] != (batch,):
                raise BundleError(f"{self.name}: {name} has no entry for each prompt")
        return outputs

    def masks(self, feeds: Arrays) -> Any:
        """Returns ``low_res_masks`` ``[B, 4, S/4, S/4]`` of B prompts.

        Args:
            feeds: the prompts, their tensors ``between``, and what all share.
        """
        return self._run(self._masks, feeds)[c.LOW_RES_MASKS]


def open_split_decoder(
    bundle: Bundle, providers: Providers = "cpu", threads: int | None = None
) -> SplitDecoder | None:
    """Returns the decoder of an ONNX bundle as a ``SplitDecoder``, where that gains time.

    Returns:
        The decoder; None on a GPU, where splitting gains nothing, for another target, for a file
        without ``SPLIT_TENSORS``, and without protobuf.

    Raises:
        BundleError, IntegrityError, ProviderError: as ``open_network``.
    """
    has_tensors = set(c.SPLIT_TENSORS).issubset(bundle.manifest.decoder.intermediates)
    if not has_tensors or bundle.manifest.target not in c.ONNX_TARGETS or asks_for_gpu(providers):
        return None
    if is_provider(providers, OPENVINO):  # which runs the encoder
        providers = "cpu"
    name = f"{bundle.path}: decoder"
    try:
        return SplitDecoder(bundle.read("decoder"), name, providers, threads)
    except ModuleNotFoundError as error:
        if error.name not in ("google", "google.protobuf"):
            raise
        return None  # an onnxruntime that came without protobuf
    except PocketSamError:
        raise
    except Exception as error:  # of a graph that is none; protobuf has classes of its own
        raise BundleError(f"{name}: cannot be split: {first_line(error)}") from None


def decode_above(
    batches: Iterable[Arrays],
    decoder: Network,
    split: SplitDecoder | None,
    min_score: float,
    shared: Arrays,
) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]:
    """Returns the scores of prompts, and the masks of those that score above a threshold.

    ``Segmenter.predict_above`` describes the three arrays.

    Raises BundleError for outputs of other shapes or types than ``contract`` says, and for NaN.

    Args:
        batches: the decoder's inputs, without mask inputs.
        decoder: computes scores and masks of all prompts.
        split: does the same in less time, if there is one, for prompts of ``MOST_POINTS`` at most.
        min_score: predicted IoU that at least one of a prompt's masks must exceed.
        shared: what all prompts on the image share; empty at first, filled by the first call.
    """
    scores, kept, low_res = [], [], []
    done, queue = 0, None
    for feeds in batches:
        (batch, points), side = feeds[c.POINT_LABELS].shape, feeds[c.MASK_INPUT].shape[-1]
        split = split if points <= MOST_POINTS else None
        if split:
            if not shared:
                found = split.share(feeds)
                split.check(decoder, feeds, found)
                shared.update(found)
            queue = queue or _MaskQueue(split, feeds | shared)
            outputs = split.scores(shared, feeds)
        else:
            outputs = decoder(feeds)
        _check({c.IOU_PREDICTIONS: outputs[c.IOU_PREDICTIONS]}, side, batch, split)
        scores.append(outputs[c.IOU_PREDICTIONS][:, 1:])
        good = np.flatnonzero((scores[-1].astype(np.float64) > min_score).any(axis=1))
        kept.append(done + good)
        done += batch
        low_res += queue.put(feeds | outputs, good) if queue else [outputs[c.LOW_RES_MASKS][good]]
    low_res += queue.rest() if queue else []
    for masks in low_res:
        _check({c.LOW_RES_MASKS: masks}, side, len(masks), split)
    found_masks = [np.zeros((0, 3, side, side), np.float32), *(masks[:, 1:] for masks in low_res)]
    return np.concatenate(scores), np.concatenate(kept), np.concatenate(found_masks)


class _MaskQueue:
    """Good prompts, whose masks are computed in batches as large as those of the scores.

    Args:
        split: the decoder.
        feeds: the inputs of the first batch, and what all prompts share.
    """

    def __init__(self, split: SplitDecoder, feeds: Arrays) -> None:
        self.split, self.feeds, self._size = split, feeds, len(feeds[c.POINT_LABELS])
        self._names = (c.POINT_COORDS, c.POINT_LABELS, *split.between)
        self._waiting: list[Arrays] = []

    def put(self, of_prompts: Arrays, good: NDArray[np.intp]) -> list[Any]:
        """Adds prompts, and returns the masks of each full batch."""
        self._waiting.append({name: of_prompts[name][good] for name in self._names})
        return self._masks(self._size)

    def rest(self) -> list[Any]:
        """Returns the masks of the prompts that wait."""
        return self._masks(1)

    def _masks(self, least: int) -> list[Any]:
        done = []
        while sum(len(prompts[c.POINT_LABELS]) for prompts in self._waiting) >= least:
            waiting = {
                name: np.concatenate([prompts[name] for prompts in self._waiting])
                for name in self._names
            }
            now = {name: array[: self._size] for name, array in waiting.items()}
            self._waiting = [{name: array[self._size :] for name, array in waiting.items()}]
            done.append(self.split.masks(self.feeds | now))
        return done


def _check(outputs: Arrays, mask_side: int, batch: int, split: SplitDecoder | None) -> None:
    name = split.name if split else "decoder"
    c.check_outputs(outputs, mask_side // UPSCALING, batch, name)
    c.check_finite(outputs, name)
