"""Golden vectors: an image, prompts and the answers to them, shipped inside each bundle.

With them, a device checks itself without torch and without the checkpoint. ``golden.npz`` holds
``image`` ``[H, W, 3]`` uint8, and for each prompt of ``PROMPTS``, after its name and an underscore:

- the prompt, as ``Segmenter.predict_batch`` takes it: ``point_coords``, ``point_labels``, ``boxes``,
  ``mask_inputs``, those that it has;
- PyTorch's answer: ``scores`` ``[1, 4]``, and ``low_res_masks`` ``[1, 4, h, w]``, float32 logits,
  thinned to every n-th row and column so that ``h`` is at most ``SIDE``;
- in a precision of fewer bits than float16, the answer of its own files where they were made:
  ``own_scores``, and ``own_low_res_masks`` in float16.

The manifest has the tolerances: of the difference from PyTorch, and, much narrower, of the difference
from the files' own answer (``drift``), so that damage is found that a lossy precision would hide.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.archives import read_npz
from pocketsam.constants import MASK_THRESHOLD
from pocketsam.errors import BundleError, ImageError, IntegrityError, ParityError, PromptError
from pocketsam.images import StrPath
from pocketsam.runtime import contract as c
from pocketsam.runtime import prompts
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.backends.ort import Network, check_threads
from pocketsam.runtime.backends.providers import Providers, find_arithmetic
from pocketsam.runtime.backends.recorded import resolve_auto
from pocketsam.runtime.backends.split_decoder import open_split_decoder
from pocketsam.runtime.bundle import NETWORKS, Bundle, choose_bundles
from pocketsam.runtime.embedding import as_array
from pocketsam.runtime.image import check_pixels, encoder_feeds
from pocketsam.runtime.manifest import Manifest
from pocketsam.runtime.verification.golden_result import GoldenResult
from pocketsam.runtime.verification.metrics import mask_figures, score_figures, tensor_figures
from pocketsam.runtime.verification.tolerance import Tolerance

PROMPTS = ("point", "box", "points", "refine")
"""A click; a box; a click and a background click; the click again with a mask input."""
ARITHMETIC = Tolerance(
    error=0.5,
    snr_db=30.0,
    cosine=0.999,
    score=0.02,
    mask_iou=0.93,
    mask_iou_mean=0.975,
    best_kept=1.0,
)
"""What an encoder computed in bfloat16 or float16 may differ by at least, whatever its file's precision
keeps. PyTorch's in bfloat16 differs by 0.1, 36 dB, 0.9999, 0.0033, 0.984 and 0.993."""
SIDE = 64
"""Rows and columns of a mask that are kept: small enough to ship."""
SMALL = 0.02
"""Share of a thinned mask's pixels below which it is judged by its pixels changed."""
PYTORCH, EXPORT = "PyTorch", "its own answer at export"
MAX_PROMPT = 2**12
"""Numbers of a golden prompt: without a bound, a decoder would want memory for millions of points."""
INPUTS = ("point_coords", "point_labels", "boxes", "mask_inputs")

Arrays = dict[str, NDArray[Any]]
Open = Callable[[Bundle], tuple[Network, Network]]
"""Opens the encoder and the decoder of a bundle."""


def check_golden(
    bundle_dir: StrPath,
    *,
    providers: Providers = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    open_networks: Open | None = None,
) -> list[GoldenResult]:
    """Returns the results of a bundle's golden prompts, computed on this machine.

    Args:
        bundle_dir: the bundle.
        providers, threads: as for ``Segmenter``.
        precision: which one of a bundle that holds several; None: each of them.
        open_networks: opens a bundle's networks; None: as ``Segmenter`` does.

    Raises:
        IntegrityError: the golden file is damaged.
        BundleError, ProviderError: as for ``Segmenter``.
    """
    check_threads(threads)

    providers, precision = resolve_auto(bundle_dir, providers, precision, threads)
    arithmetic, results = find_arithmetic(providers), []
    for bundle in choose_bundles(bundle_dir, precision):
        split = None
        if open_networks:
            encoder, decoder = open_networks(bundle)
        else:
            encoder, decoder = (open_network(bundle, name, providers, threads) for name in NETWORKS)
            split = open_split_decoder(bundle, providers, threads)
        results += check_networks(bundle, encoder, decoder, arithmetic=arithmetic, split=split)
    return results


def check_networks(
    bundle: Bundle,
    encoder: Network,
    decoder: Network,
    *,
    arithmetic: str = "f32",
    split: Network | None = None,
) -> list[GoldenResult]:
    """Returns the results of golden prompts with given networks.

    Args:
        bundle: holds the golden vectors; of one precision.
        encoder, decoder: its networks, open.
        arithmetic: what the encoder is computed in, if not as its file says; see ``ARITHMETIC``.
        split: the decoder in the parts that ``everything`` runs, which must give the same answers.

    Raises:
        IntegrityError: the golden file is damaged.
        BundleError: it was written before golden vectors had masks to compare.
    """
    manifest = bundle.manifest
    tolerance, drift = manifest.golden.tolerance, manifest.golden.drift
    if tolerance is None:
        raise BundleError(
            f"{bundle.path}: written by an older pocketsam, whose golden vectors say too little; "
            "export it again, or give --checkpoint"
        )
    if arithmetic != "f32":
        tolerance, drift = tolerance.or_looser(ARITHMETIC), drift and drift.or_looser(ARITHMETIC)
    arrays = load_golden(bundle)
    encoder = once(among_others(encoder))
    decoders = {"whole": decoder} | ({"split": split} if split else {})
    results = []
    try:
        for kind, network in decoders.items():
            answers = answer_prompts(arrays, manifest, encoder, network)
            for name, answer in answers.items():
                expected = {key: arrays[f"{name}_{key}"] for key in answer}
                judged = [(PYTORCH, expected, tolerance)]
                if drift is not None:
                    own = {key: arrays[f"{name}_own_{key}"] for key in answer}
                    judged.append((EXPORT, own, drift))
                for against, wanted, limits in judged:
                    figures = compare(wanted, answer)
                    about = manifest.precision, name, against, figures, limits.violations(figures)
                    results.append(GoldenResult(*about, arithmetic, kind))
    except (ImageError, PromptError, LookupError, TypeError, ValueError) as error:
        raise IntegrityError(f"{bundle.path}: damaged golden vectors: {error}") from None
    return results


def once(network: Network) -> Network:
    """Returns a network that runs once, and gives the same answer to all calls."""
    outputs: dict[str, Any] = {}

    def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if not outputs:
            outputs.update(network(dict(feeds)))
        return outputs

    return call


def among_others(encoder: Network) -> Network:
    """Returns an encoder that encodes the mirrored picture before and after each picture.

    An engine that returns one embedding for all images, or the last image's, or that lets a later image
    overwrite what it has returned, gives the embedding of another picture here, and so other masks than
    PyTorch's. (An ``OrtValue`` on a GPU may be overwritten, as CUDA graphs do.)
    """

    def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
        others = {
            key: np.ascontiguousarray(array[..., ::-1]) if array.ndim == 4 else array
            for key, array in feeds.items()
        }
        encoder(others)
        outputs = encoder(dict(feeds))
        if isinstance(outputs[c.IMAGE_EMBEDDINGS], np.ndarray):
            encoder(others)
        return outputs

    return call


def load_golden(bundle: Bundle) -> Arrays:
    """Returns the arrays of a bundle's golden vectors by name.

    Raises:
        IntegrityError: the file is damaged.
    """
    data = bundle.read("golden")
    try:
        arrays = read_npz(data)
        for name, array in arrays.items():
            if name.endswith(INPUTS[:3]) and array.size > MAX_PROMPT:
                raise ValueError(f"{name} has {array.size} numbers, more than {MAX_PROMPT}")
        return arrays
    except (ValueError, MemoryError) as error:
        raise IntegrityError(f"{bundle.path}: damaged golden vectors: {error}") from None


def answer_prompts(
    arrays: Mapping[str, NDArray[Any]], manifest: Manifest, encoder: Network, decoder: Network
) -> dict[str, Arrays]:
    """Returns ``scores`` and ``low_res_masks`` of each golden prompt, as ``golden.npz`` holds them.

    Args:
        arrays: ``image`` and the prompts.
        manifest: of the bundle.
        encoder, decoder: its networks.
    """
    image = check_pixels(arrays["image"])
    side = manifest.mask_side
    embedding = encoder(encoder_feeds(image, manifest))[c.IMAGE_EMBEDDINGS]
    answers = {}
    for name in PROMPTS:
        coords, labels, boxes, mask = (arrays.get(f"{name}_{key}") for key in INPUTS)
        if mask is not None:
            mask = prompts.check_mask_input(mask, 1, side)
        size = (image.shape[0], image.shape[1])
        coords, labels = prompts.assemble(coords, labels, boxes, size, manifest.image_size)
        (batch,) = prompts.batches(coords, labels, mask, side, 1)
        extra = {c.IMAGE_EMBEDDINGS: embedding, c.ORIG_IM_SIZE: np.zeros(2, np.float32)}
        outputs = decoder(batch | extra)
        answers[name] = {
            "scores": as_array(outputs[c.IOU_PREDICTIONS]),
            "low_res_masks": thin(as_array(outputs[c.LOW_RES_MASKS])),
        }
    return answers


def thin(masks: NDArray[Any]) -> NDArray[Any]:
    """Returns every n-th row and column of masks ``[..., S/4, S/4]``, at most ``SIDE`` of them."""
    stride = -(-masks.shape[-1] // SIDE)
    return masks[..., ::stride, ::stride]


def compare(expected: Arrays, found: Arrays) -> dict[str, float]:
    """Returns the figures of ``GoldenResult`` for one prompt's scores and masks."""
    wanted, got = expected["low_res_masks"], found["low_res_masks"]
    scores = score_figures(expected["scores"], found["scores"])
    tensor = tensor_figures(wanted, got)
    if got.shape != wanted.shape:  # the tensor's figures say so
        got = np.full(wanted.shape, -np.inf)
    masks = mask_figures(wanted > MASK_THRESHOLD, got > MASK_THRESHOLD, SMALL)
    return {
        **{key: tensor[key] for key in ("error", "snr_db", "cosine")},
        **{key: masks[key] for key in ("mask_iou", "small_changed")},
        "mask_iou_mean": masks["iou_sum"] / masks["masks"] if masks["masks"] else 1.0,
        "score": scores["score"],
        "best_kept": scores["kept"] / scores["prompts"] if scores["prompts"] else 1.0,
    }


def raise_if_failed(results: Sequence[GoldenResult]) -> None:
    """Raises ParityError with the first figure outside its tolerance, or if there are no results."""
    if not results:
        raise ParityError("nothing was compared: no golden prompt")
    if failed := [result for result in results if not result.ok]:
        first = failed[0]
        values = "; ".join(map(str, first.violations))
        raise ParityError(
            f"{len(failed)} of {len(results)} golden comparisons fail on this machine; the first: "
            f"{first.precision}, prompt {first.where}, beside {first.against}: {values}"
        )
