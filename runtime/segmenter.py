"""Masks from a bundle: encode an image once, prompt it many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketsam.errors import PromptError
from pocketsam.images import Pixels, StrPath
from pocketsam.runtime import contract, prompts
from pocketsam.runtime.backends.networks import decoder_batch, finite, open_for_device, open_network
from pocketsam.runtime.backends.ort import Arrays
from pocketsam.runtime.backends.providers import Providers, find_arithmetic
from pocketsam.runtime.backends.split_decoder import decode_above, open_split_decoder
from pocketsam.runtime.bundle import DEFAULT_BUNDLE, NETWORKS
from pocketsam.runtime.embedding import Embedding, as_array, hash_pixels, read_matching
from pocketsam.runtime.image import ImageLike, as_pixels, encoder_feeds
from pocketsam.runtime.manifest import Manifest
from pocketsam.runtime.upscale import Upscaler

FloatArray = NDArray[np.float32]
Masks = NDArray[Any]  # bool, or float32 logits


@dataclass(frozen=True)
class _ImageState:
    """The image that is set: an array, or on a GPU an ``OrtValue``, and what belongs to it."""

    embedding: Any
    upscaler: Upscaler
    original_size: tuple[int, int]
    sha256: Callable[[], str]
    arithmetic: str
    shared: Arrays = field(default_factory=dict)  # what ``decode_above`` computes once


class Segmenter:
    """The runtime's counterpart of segment-anything's ``SamPredictor``.

    ONNX runs in onnxruntime or OpenVINO (extra ``openvino``), TFLite in LiteRT (``litert``), Core ML
    on macOS (``coreml``). Threads take a ``copy.copy`` each: it shares the networks, not the image.

    Args:
        bundle_dir: a directory that ``pocketsam export`` wrote; by default the one in this package.
        providers: names, best first: cpu, cuda, tensorrt, coreml, xnnpack; or alone ``openvino``, or
            ``auto``, which is what ``pocketsam bench --engines`` recorded (``cpu`` without a record).
        threads: threads per operator; None: one per core.
        precision: which one of a bundle that holds several; None: the most precise, fp16 on a GPU.

    Attributes:
        manifest: what the bundle's ``manifest.json`` says.
        image_size: side S of the square canvas, in pixels.
        encoder_sha256: hash of the encoder's file.

    Raises:
        BundleError, IntegrityError: the bundle cannot be used.
        ProviderError: a provider is missing here.
        MissingExtraError: the runtime of the bundle's target is not installed.

    Example:
        >>> segmenter = Segmenter()
        >>> segmenter.set_image("photo.jpg")
        >>> masks, scores, low_res_masks = segmenter.predict([[220, 120]], [1])
    """

    def __init__(
        self,
        bundle_dir: StrPath = DEFAULT_BUNDLE,
        *,
        providers: Providers = "cpu",
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        bundle, providers = open_for_device(bundle_dir, providers, precision, threads)
        self.manifest: Manifest = bundle.manifest
        self.image_size: int = bundle.image_size
        self.encoder_sha256: str = bundle.manifest.encoder.sha256
        self.arithmetic: str = find_arithmetic(providers)
        self._encoder, self._decoder = (
            finite(open_network(bundle, network, providers, threads), f"{bundle.path}: {network}")
            for network in NETWORKS
        )
        self._batch = decoder_batch(bundle)
        self._split_decoder = cache(partial(open_split_decoder, bundle, providers, threads))
        self._image: _ImageState | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether ``predict`` can be called."""
        return self._image is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image that is set."""
        return self._require_image().original_size

    @property
    def upscaler(self) -> Upscaler:
        """Scales low-resolution logits to the size of the image that is set."""
        return self._require_image().upscaler

    def set_image(self, image: ImageLike, image_format: str = "RGB") -> None:
        """Encodes an image; until the next call, prompts refer to it.

        Args:
            image: a uint8 array ``[H, W, C]``, or a PIL image or a path (see ``load_image``).
            image_format: channels of an array: RGB, BGR, RGBA, BGRA or GRAY.

        Raises:
            ImageError: the image cannot be read or used. The image set before stays set.
        """
        pixels = as_pixels(image, image_format)
        size = (pixels.shape[0], pixels.shape[1])
        upscaler = Upscaler(self.image_size, size, self.manifest.mask_side)
        embedding = self._encoder(self.encoder_feeds(pixels))[contract.IMAGE_EMBEDDINGS]
        # hashed when needed; a caller's array is copied if it may change until then
        may_change = isinstance(image, np.ndarray) and (image.flags.writeable or image.base is not None)
        sha256 = partial(hash_pixels, pixels.copy() if may_change else pixels)
        self._image = _ImageState(embedding, upscaler, size, sha256, self.arithmetic)

    def reset_image(self) -> None:
        """Forgets the image and frees its memory."""
        self._image = None

    def get_image_embedding(self) -> FloatArray:
        """Returns a float32 copy of the embedding ``[1, 256, S/16, S/16]``; see also ``embedding``."""
        return as_array(self._require_image().embedding).copy()

    def embedding(self) -> Embedding:
        """Returns the current image's embedding with the hashes of the image and the encoder.

        ``.save(path)`` of it writes a file for ``set_embedding``; see also ``get_image_embedding``.
        """
        image = self._require_image()
        about = image.original_size, image.sha256(), self.encoder_sha256, image.arithmetic
        return Embedding(self.get_image_embedding(), *about)

    def set_embedding(self, path: StrPath, image: Pixels | None = None) -> None:
        """Sets an image without the encoder, from a file that ``embedding().save`` wrote.

        Args:
            path: the file, in NumPy's ``.npz`` format.
            image: ``[H, W, 3]`` uint8; if given, the embedding must be of this image.

        Raises:
            ImageError: another kind of file, or an embedding of another image or by another encoder.
                The image set before stays set.
        """
        side = self.manifest.embedding_side
        file = read_matching(path, self.encoder_sha256, (1, 256, side, side), image)
        scaled = Upscaler(self.image_size, file.original_size, self.manifest.mask_side)
        about = file.original_size, lambda: file.image_sha256, file.arithmetic
        self._image = _ImageState(file.values, scaled, *about)

    def encoder_feeds(self, pixels: Pixels) -> dict[str, FloatArray]:
        """Returns the encoder's inputs by name, from ``[H, W, 3]`` uint8 RGB."""
        return encoder_feeds(pixels, self.manifest)

    def encode(self, feeds: dict[str, FloatArray]) -> FloatArray:
        """Returns the embedding ``[1, 256, S/16, S/16]`` float32 of what ``encoder_feeds`` returned.

        The image that is set stays set.
        """
        return as_array(self._encoder(feeds)[contract.IMAGE_EMBEDDINGS])

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Masks, FloatArray, FloatArray]:
        """Returns masks for one prompt, like segment-anything's ``SamPredictor.predict``.

        Args:
            point_coords: ``[N, 2]`` (x, y) in pixels of the original image.
            point_labels: ``[N]``: 1 foreground, 0 background (2, 3: a box's corners; -1: not a point).
            box: ``[4]`` or ``[1, 4]`` (x0, y0, x1, y1); what lies outside the image is cut off.
            mask_input: ``[1, S/4, S/4]`` logits, usually of an earlier call.
            multimask_output: three masks for an ambiguous prompt, or the single one.
            return_logits: logits instead of booleans.

        Returns:
            masks ``[C, H, W]`` bool (or float32 logits) at the original image's size, scores ``[C]``
            float32 (predicted IoU), low_res_masks ``[C, S/4, S/4]`` float32 logits; C is 3 or 1.

        Raises:
            PromptError: a prompt that cannot be used, or no image is set.
        """
        points, labels, boxes, mask_inputs = (
            cast(ArrayLike, None if values is None else [values])
            for values in (point_coords, point_labels, box, mask_input)
        )
        masks, scores, low_res = self.predict_batch(
            points, labels, boxes, mask_inputs, multimask_output, return_logits
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
    ) -> tuple[Masks, FloatArray, FloatArray]:
        """Returns masks for B independent prompts on one image, each the same as by ``predict``.

        Args:
            point_coords: ``[B, N, 2]``. Prompts of different lengths need separate calls: SAM's
                not-a-point (-1) is a token that the others attend to, so it would change their masks.
            point_labels: ``[B, N]``.
            boxes: ``[B, 4]``.
            mask_inputs: ``[B, 1, S/4, S/4]``.
            multimask_output, return_logits: as for ``predict``.

        Returns:
            masks ``[B, C, H, W]``, scores ``[B, C]``, low_res_masks ``[B, C, S/4, S/4]``.

        Raises:
            PromptError: a prompt that cannot be used, or no image is set.
        """
        scores, low_res = self.predict_low_res(
            point_coords, point_labels, boxes, mask_inputs, multimask_output
        )
        dtype = np.float32 if return_logits else np.bool_
        masks = np.empty((*scores.shape, *self.original_size), dtype)
        for index in np.ndindex(scores.shape):
            scale = self.upscaler.logits if return_logits else self.upscaler.mask
            masks[index] = scale(low_res[index])
        return masks, scores, low_res

    def predict_low_res(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[FloatArray, FloatArray]:
        """Returns scores and low_res_masks of ``predict_batch``, without the full-size masks."""
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        scores, low_res = [], []
        for feeds in self._decoder_feeds(point_coords, point_labels, boxes, mask_inputs):
            outputs = self._decoder(feeds)
            scores.append(outputs[contract.IOU_PREDICTIONS][:, chosen])
            low_res.append(outputs[contract.LOW_RES_MASKS][:, chosen])
        return np.concatenate(scores), np.concatenate(low_res)

    def predict_above(
        self, point_coords: ArrayLike, point_labels: ArrayLike, min_score: float
    ) -> tuple[FloatArray, NDArray[np.intp], FloatArray]:
        """Returns the scores of all prompts, and low-resolution masks of those above a score.

        In an ONNX bundle on a CPU, the other prompts are dropped before their masks are computed.

        Args:
            point_coords, point_labels: ``[B, N, 2]`` and ``[B, N]``, as for ``predict_batch``.
            min_score: predicted IoU that at least one of a prompt's masks must exceed.

        Returns:
            scores ``[B, 3]``; kept ``[K]``, indices of the prompts that exceed ``min_score``; the
            low_res_masks of these, ``[K, 3, S/4, S/4]``.

        Raises:
            PromptError: a prompt that cannot be used, or no image is set.
        """
        batches, shared = self._decoder_feeds(point_coords, point_labels), self._require_image().shared
        return decode_above(batches, self._decoder, self._split_decoder(), min_score, shared)

    def _decoder_feeds(
        self,
        point_coords: ArrayLike | None,
        point_labels: ArrayLike | None,
        boxes: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
    ) -> Iterator[Arrays]:
        """Yields the decoder's inputs, as many prompts at a time as ``decoder_batch`` says."""
        image = self._require_image()
        side = self.manifest.mask_side
        masks = None if mask_inputs is None else prompts.check_mask_input(mask_inputs, None, side)
        batch = None if masks is None else len(masks)
        coords, labels = prompts.assemble(
            point_coords, point_labels, boxes, image.original_size, self.image_size, batch=batch
        )
        for feeds in prompts.batches(coords, labels, masks, side, self._batch):
            yield feeds | {contract.IMAGE_EMBEDDINGS: image.embedding}

    def _require_image(self) -> _ImageState:
        if self._image is None:
            raise PromptError("no image is set; call set_image first")
        return self._image
