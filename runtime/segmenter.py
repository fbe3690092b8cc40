"""Masks from a bundle: encode an image once, prompt it many times."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pocketsam import constants
from pocketsam.errors import PromptError
from pocketsam.runtime import contract, prompts
from pocketsam.runtime.backends.networks import SplitDecoder, open_network, open_split_decoder
from pocketsam.runtime.backends.ort import asks_for_gpu
from pocketsam.runtime.bundle import NETWORKS, choose_bundle
from pocketsam.runtime.embedding import (
    Embedding,
    check_belongs,
    check_image,
    hash_pixels,
    read_embedding,
)
from pocketsam.runtime.everything.generator import everything
from pocketsam.runtime.everything.grid import Parameters
from pocketsam.runtime.image import as_pixels, encoder_feeds
from pocketsam.runtime.machine import cpu_flags
from pocketsam.runtime.manifest import Manifest
from pocketsam.runtime.masks import Upscaler

DECODER_BATCH = 8
"""Prompts per call of the decoder: more are no faster, and each takes 60 to 100 MB at 1024."""


class Segmenter:
    """The runtime's counterpart of the reference's ``SamPredictor``.

    It runs ONNX bundles in onnxruntime, TFLite bundles in LiteRT (extra ``litert``), and Core ML
    bundles on macOS (extra ``coreml``), with the same results.

    Args:
        bundle_dir: a directory that ``pocketsam export`` wrote.
        providers: execution providers by name, best first: cpu, cuda, tensorrt, coreml, xnnpack.
        threads: threads per operator; None leaves it to onnxruntime (one per physical core).
        precision: of a bundle that holds several; None: what suits the device, see ``choose_bundle``.

    Raises:
        BundleError, IntegrityError: the bundle cannot be used.
        ProviderError: a provider is missing here.
        MissingExtraError: the runtime of the bundle's target is not installed.
    """

    def __init__(
        self,
        bundle_dir: str | os.PathLike[str],
        providers: str | Sequence[str] = "cpu",
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        bundle = choose_bundle(bundle_dir, precision, asks_for_gpu(providers), cpu_flags())
        self.manifest: Manifest = bundle.manifest
        self.image_size: int = bundle.image_size
        self._inputs = bundle.inputs("encoder")
        self._encoder, self._decoder = (
            open_network(bundle, network, providers, threads) for network in NETWORKS
        )
        self._open_split_decoder = partial(open_split_decoder, bundle, providers, threads)
        self.encoder_sha256: str = bundle.manifest.encoder.sha256
        self._embedding: Any = None  # an array, or on a GPU an OrtValue in its memory
        self._image_sha256: Callable[[], str] = str
        self._upscaler: Upscaler | None = None
        self._original_size = (0, 0)

    @property
    def is_image_set(self) -> bool:
        """Whether ``predict`` can be called."""
        return self._embedding is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image that is set."""
        self._require_image()
        return self._original_size

    def set_image(
        self,
        image: NDArray[np.uint8] | Image.Image | str | os.PathLike[str],
        image_format: str = "RGB",
    ) -> None:
        """Encodes an image; until the next call, prompts refer to it.

        Args:
            image: ``[H, W, 3]`` uint8, or a PIL image or a path (see ``load_image``).
            image_format: channel order of an array, RGB or BGR.

        Raises:
            ImageError: the image cannot be read or used. The image set before stays set.
        """
        pixels = as_pixels(image, image_format)
        self._embedding = self._encoder(self.encoder_feeds(pixels))[contract.IMAGE_EMBEDDINGS]
        # hashed only if asked for; a caller's array, which may change until then, is copied
        kept = pixels.copy() if isinstance(image, np.ndarray) else pixels
        self._image_sha256 = partial(hash_pixels, kept)
        self._original_size = (pixels.shape[0], pixels.shape[1])
        self._upscaler = Upscaler(self.image_size, self._original_size)

    def embedding(self) -> Embedding:
        """That of the image that is set, with what it is of: ``embedding().save(path)``."""
        values, _ = self._require_image()
        hashes = self._image_sha256(), self.encoder_sha256
        return Embedding(as_array(values), self._original_size, *hashes)

    def set_embedding(
        self, path: str | os.PathLike[str], image: NDArray[np.uint8] | None = None
    ) -> None:
        """``set_image`` without the encoder: from a file that ``embedding().save`` wrote.

        Args:
            path: the ``.npz``.
            image: ``[H, W, 3]`` uint8; if given, the embedding must be of it.

        Raises:
            ImageError: not such a file. The image set before stays set, in any case.
            IntegrityError: it is of another image, or another bundle's encoder.
        """
        one = read_embedding(path)
        side = self.image_size // 16
        check_belongs(one, path, (1, 256, side, side), self.encoder_sha256)
        if image is not None:
            check_image(one, path, image)
        self._embedding, self._image_sha256 = one.values, lambda: one.image_sha256
        self._original_size = one.original_size
        self._upscaler = Upscaler(self.image_size, self._original_size)

    def everything(
        self,
        image: NDArray[np.uint8] | Image.Image | str | os.PathLike[str],
        progress: Callable[[int, int], None] = lambda done, total: None,
        **parameters: Any,
    ) -> list[dict[str, Any]]:
        """All objects of an image, without a prompt: the reference's ``SamAutomaticMaskGenerator``.

        Args:
            image: as for ``set_image``. It is the image that is set afterwards, unless there are crops.
            progress: called with the number of clicks done, and of all.
            parameters: those of ``grid.Parameters``, which has the reference's names and defaults.

        Returns:
            A dict for each mask, best first: ``segmentation`` (``[H, W]`` bool, or RLE by
            ``output_mode``), ``area`` in pixels, ``bbox`` XYWH, ``predicted_iou``, ``point_coords``
            ``[[x, y]]``, ``stability_score``, ``crop_box`` XYWH.

        Raises:
            ImageError: the image cannot be read or used.
            PromptError: a parameter that makes no sense, or an image too small for its crops.
        """
        chosen = Parameters(**parameters)
        return everything(self, as_pixels(image), chosen, progress)

    @property
    def upscaler(self) -> Upscaler:
        """Low-resolution logits to the size of the image that is set."""
        return self._require_image()[1]

    def encoder_feeds(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The encoder's inputs by name, from ``[H, W, 3]`` uint8 RGB."""
        return encoder_feeds(pixels, self.image_size, self._inputs)

    def encode(self, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The encoder alone: what ``encoder_feeds`` gave, to ``[1, 256, S/16, S/16]`` float32."""
        return as_array(self._encoder(feeds)[contract.IMAGE_EMBEDDINGS])

    def reset_image(self) -> None:
        """Forgets the image."""
        self._embedding = self._upscaler = None

    def get_image_embedding(self) -> NDArray[np.float32]:
        """The embedding of the image that is set, ``[1, 256, S/16, S/16]`` float32."""
        return as_array(self._require_image()[0]).copy()

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Masks for one prompt: ``SamPredictor.predict`` of the reference.

        Args:
            point_coords: ``[N, 2]`` (x, y) in pixels of the original image.
            point_labels: ``[N]``: 1 foreground, 0 background (2, 3: a box's corners; -1: padding).
            box: ``[4]`` (x0, y0, x1, y1).
            mask_input: ``[1, S/4, S/4]`` logits, usually of an earlier call.
            multimask_output: three masks for an ambiguous prompt, or the single one.
            return_logits: logits instead of booleans.

        Returns:
            masks ``[C, H, W]`` bool (or float32 logits) at the original image's size, scores ``[C]``
            float32 (predicted IoU), low_res_masks ``[C, S/4, S/4]`` float32 logits; C is 3 or 1.

        Raises:
            PromptError: a prompt that cannot be used, or no image is set.
        """

        def one(values: ArrayLike | None) -> Any:
            return None if values is None else [values]

        masks, scores, low_res = self.predict_batch(
            one(point_coords),
            one(point_labels),
            one(box),
            one(mask_input),
            multimask_output,
            return_logits,
        )
        return masks[0], scores[0], low_res[0]

    def predict_batch(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Masks for B independent prompts on one image; each result is that of ``predict``.

        Args:
            point_coords: ``[B, N, 2]``. Prompts of different lengths need separate calls: a pad point
                is a token that the others attend to, so it would change their masks.
            point_labels: ``[B, N]``.
            boxes: ``[B, 4]``.
            mask_inputs: ``[B, 1, S/4, S/4]``.
            multimask_output, return_logits: as for ``predict``.

        Returns:
            masks ``[B, C, H, W]``, scores ``[B, C]``, low_res_masks ``[B, C, S/4, S/4]``.
        """
        scores, low_res = self.predict_low_res(
            point_coords, point_labels, boxes, mask_inputs, multimask_output
        )
        _, upscaler = self._require_image()
        masks = np.empty(
            (*scores.shape, *self._original_size), np.float32 if return_logits else np.bool_
        )
        for index in np.ndindex(scores.shape):
            logits = upscaler.logits(low_res[index])
            masks[index] = logits if return_logits else logits > constants.MASK_THRESHOLD
        return masks, scores, low_res

    def predict_low_res(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``predict_batch`` without the full-size masks: (scores ``[B, C]``, low_res_masks)."""
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        scores, low_res = [], []
        for feeds in self._decoder_feeds(point_coords, point_labels, boxes, mask_inputs):
            found = self._decoder(feeds)
            scores.append(found[contract.IOU_PREDICTIONS][:, chosen])
            low_res.append(found[contract.LOW_RES_MASKS][:, chosen])
        return np.concatenate(scores), np.concatenate(low_res)

    def predict_promising(
        self, point_coords: ArrayLike, point_labels: ArrayLike, least: float
    ) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]:
        """``predict_low_res`` for prompts of which only those that score well need masks.

        In an ONNX bundle on a CPU, the others are dropped half-way: scores come before masks.

        Args:
            point_coords, point_labels: ``[B, N, 2]`` and ``[B, N]``, as for ``predict_batch``.
            least: predicted IoU that one of a prompt's masks must exceed.

        Returns:
            scores ``[B, 3]``; kept ``[K]``, the prompts that exceed it; their low_res_masks
            ``[K, 3, S/4, S/4]``.
        """
        side = self.image_size // 4
        scores, kept, low_res = [], [np.zeros(0, np.intp)], [np.zeros((0, 3, side, side), np.float32)]
        done, shared = 0, None
        for feeds in self._decoder_feeds(point_coords, point_labels):
            if self._split_decoder:
                shared = shared or self._split_decoder.share(feeds)
                found = self._split_decoder.scores(shared, feeds)
            else:
                found = self._decoder(feeds)
            scores.append(found[contract.IOU_PREDICTIONS][:, 1:])
            good = np.flatnonzero((scores[-1].astype(np.float64) > least).any(axis=1))
            kept.append(done + good)
            done += len(scores[-1])
            if self._split_decoder and len(good):
                masks = self._split_decoder.masks(
                    {name: found[name][good] for name in contract.SPLIT_TENSORS}
                )
                low_res.append(masks[:, 1:])
            elif len(good):
                low_res.append(found[contract.LOW_RES_MASKS][good, 1:])
        return np.concatenate(scores), np.concatenate(kept), np.concatenate(low_res)

    @cached_property
    def _split_decoder(self) -> SplitDecoder | None:
        return self._open_split_decoder()

    def _decoder_feeds(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        boxes: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The decoder's inputs, ``DECODER_BATCH`` prompts at a time."""
        embedding, _ = self._require_image()
        side = self.image_size // 4
        masks = None
        if mask_inputs is not None:
            masks = prompts.check_mask_input(mask_inputs, None, side)
        coords, labels = prompts.assemble(
            point_coords,
            point_labels,
            boxes,
            self._original_size,
            self.image_size,
            batch=None if masks is None else len(masks),
        )
        if not len(coords):
            raise PromptError("a batch must hold at least one prompt")
        for start in range(0, len(coords), DECODER_BATCH):
            network = slice(start, start + DECODER_BATCH)
            given = np.zeros((1, 1, side, side), np.float32) if masks is None else masks[network]
            has_mask = np.full(len(given), masks is not None, np.float32)
            yield {
                contract.IMAGE_EMBEDDINGS: embedding,
                contract.POINT_COORDS: coords[network],
                contract.POINT_LABELS: labels[network],
                contract.MASK_INPUT: np.ascontiguousarray(given),
                contract.HAS_MASK_INPUT: has_mask,
            }

    def _require_image(self) -> tuple[Any, Upscaler]:
        if self._embedding is None or self._upscaler is None:
            raise PromptError("no image is set; call set_image first")
        return self._embedding, self._upscaler


def as_array(value: Any) -> NDArray[np.float32]:
    """An embedding in numpy's memory, wherever it was."""
    array: NDArray[np.float32] = value if isinstance(value, np.ndarray) else value.numpy()
    return array
