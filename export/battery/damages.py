"""Damages that a certificate must find: to outputs, to preprocessing, to the manifest."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam import constants
from pocketsam.export.target import Arrays, Call
from pocketsam.runtime import contract as c
from pocketsam.runtime.bundle import Bundle
from pocketsam.traits import Normalisation

Values = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """A bundle's networks, healthy or damaged.

    Attributes:
        bundle: what they were opened from.
        encoder, decoder: they run.
        is_encoder_healthy: whether the embedding of an image is the healthy one.
        preprocessing: a context in which photographs are prepared wrongly; None: rightly.
    """

    bundle: Bundle
    encoder: Call
    decoder: Call
    is_encoder_healthy: bool = True
    preprocessing: Callable[[], contextlib.AbstractContextManager[None]] | None = None


@dataclass(frozen=True)
class Damage:
    """A damage.

    Attributes:
        name: what is done to what.
        apply: returns the damaged subject, or None where the file has no such thing.
    """

    name: str
    apply: Callable[[Subject], Subject | None]


# the graph: what a wrong operation at the end of a network would do


def _output(name: str, change: Callable[[Values], Values], feeds: Arrays, network: Call) -> Arrays:
    found = dict(network(feeds))
    for key in (name, c.MASKS) if name == c.LOW_RES_MASKS else (name,):
        if key in found:
            found[key] = change(np.asarray(found[key])).astype(np.float32)
    return found


def _damaged_output(name: str, change: Callable[[Values], Values]) -> Callable[[Subject], Subject]:
    def apply(subject: Subject) -> Subject:
        if name == c.IMAGE_EMBEDDINGS:
            healthy = subject.encoder
            wrong = lambda feeds: _output(name, change, feeds, healthy)  # noqa: E731
            return replace(subject, encoder=wrong, is_encoder_healthy=False)
        healthy = subject.decoder
        return replace(subject, decoder=lambda feeds: _output(name, change, feeds, healthy))

    return apply


GRAPH_DAMAGES = [
    Damage(f"{tensor}: {name}", _damaged_output(tensor, change))
    for tensor, name, change in (
        (c.LOW_RES_MASKS, "another sign", lambda x: -x),
        (c.LOW_RES_MASKS, "zeros", lambda x: 0 * x),
        (c.LOW_RES_MASKS, "NaN", lambda x: np.nan * x),
        (c.LOW_RES_MASKS, "× 0.6", lambda x: 0.6 * x),
        (c.LOW_RES_MASKS, "threshold shifted by 2", lambda x: x + 2),
        (c.LOW_RES_MASKS, "masks swapped", lambda x: x[:, [0, 2, 1, 3]]),
        (c.LOW_RES_MASKS, "upside down", lambda x: np.ascontiguousarray(x[..., ::-1, :])),
        (c.IOU_PREDICTIONS, "scores swapped", lambda x: x[:, [0, 3, 2, 1]]),
        (c.IOU_PREDICTIONS, "zeros", lambda x: 0 * x),
        (c.IOU_PREDICTIONS, "NaN", lambda x: np.nan * x),
        (c.IMAGE_EMBEDDINGS, "rows and columns swapped", lambda x: x.swapaxes(2, 3)),
        (
            c.IMAGE_EMBEDDINGS,
            "of no image",
            lambda x: np.broadcast_to(x.mean((2, 3), keepdims=True), x.shape),
        ),
        (c.IMAGE_EMBEDDINGS, "two channels swapped", lambda x: x[:, [1, 0, *range(2, x.shape[1])]]),
    )
]


# preprocessing


def _resized(
    filter: Image.Resampling, scale: float, gap: float | None, image: Values, size: int
) -> Any:
    height, width = constants.resized_shape(image.shape[0], image.shape[1], size)
    height, width = max(1, int(height * scale)), max(1, int(width * scale))
    resized = Image.fromarray(image).resize((width, height), filter, reducing_gap=gap)
    return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)


def _half_a_pixel(image: Values, size: int) -> Any:
    height, width = constants.resized_shape(image.shape[0], image.shape[1], size)
    x, y = 0.5 * image.shape[1] / width, 0.5 * image.shape[0] / height
    moved = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, box=(x, y, image.shape[1], image.shape[0])
    )
    return np.asarray(moved, dtype=np.float32).transpose(2, 0, 1)


def _bgr(image: Values, size: int) -> Any:
    return _resized(Image.Resampling.BILINEAR, 1.0, None, image[..., ::-1].copy(), size)


def _padded_before(image: Values, size: int) -> Any:
    """The canvas full of black pixels: normalised, they are not zero."""
    values = _resized(Image.Resampling.BILINEAR, 1.0, None, image, size)
    canvas = np.zeros((3, size, size), np.float32)
    canvas[:, : values.shape[1], : values.shape[2]] = values
    return canvas


@contextlib.contextmanager
def _patched(
    resize: Callable[[Values, int], Any] | None, mean: Sequence[float] | None
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if resize is not None:
            stack.enter_context(mock.patch("pocketsam.runtime.image._resized", resize))
        if mean is not None:
            wrong = mean, constants.PIXEL_STD
            stack.enter_context(mock.patch.object(Normalisation, "statistics", return_value=wrong))
        yield


def _prepared_wrongly(
    resize: Callable[[Values, int], Any] | None = None, mean: Sequence[float] | None = None
) -> Callable[[Subject], Subject]:
    context = partial(_patched, resize, mean)
    return lambda subject: replace(subject, preprocessing=context, is_encoder_healthy=False)


PREPROCESSING_DAMAGES = [
    Damage(f"preprocessing: {name}", apply)
    for name, apply in (
        ("BGR", _prepared_wrongly(_bgr)),
        ("mean of 127.5", _prepared_wrongly(mean=(127.5, 127.5, 127.5))),
        ("half a pixel", _prepared_wrongly(_half_a_pixel)),
        ("nearest pixel", _prepared_wrongly(partial(_resized, Image.Resampling.NEAREST, 1.0, None))),
        ("bicubic", _prepared_wrongly(partial(_resized, Image.Resampling.BICUBIC, 1.0, None))),
        (
            "scale off by 1 %",
            _prepared_wrongly(partial(_resized, Image.Resampling.BILINEAR, 0.99, None)),
        ),
        ("padded before normalising", _prepared_wrongly(_padded_before)),
    )
]


# the manifest

MANIFEST_DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another mean": lambda m: m["preprocessing"].update(mean=[127.5, 127.5, 127.5]),
    "another deviation": lambda m: m["preprocessing"].update(std=[1.0, 1.0, 1.0]),
    "another layout": lambda m: m["preprocessing"].update(
        layout="NCHW" if m["preprocessing"]["layout"] == "NHWC" else "NHWC"
    ),
    "BGR": lambda m: m["preprocessing"].update(color="BGR"),
    "another image size": lambda m: m.update(image_size=m["image_size"] + 64),
    "another threshold": lambda m: m.update(mask_threshold=1.0),
    "labels swapped": lambda m: m["prompt_labels"].update(background=1, foreground=0),
    "another point count": lambda m: m["decoder"].update(points=m["decoder"].get("points", 0) + 1),
}
"""Changes to the parsed ``manifest.json``."""
