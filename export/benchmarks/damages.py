"""Damages that a certificate must find: to weights, to outputs, to preprocessing, to the manifest."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam import constants
from pocketsam.export.benchmarks.weight_files import MIN_SIZE, WeightFile, open_weights
from pocketsam.export.target import Arrays, Call, Converter
from pocketsam.runtime import contract as c
from pocketsam.runtime.bundle import NETWORKS, Bundle

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


# weights


def one_element(values: Values) -> Values:
    """The largest element moves by twice the tensor's range, as by a bit that flipped."""
    flat = values.reshape(-1)
    place = int(np.abs(flat.astype(np.float32)).argmax())
    if values.dtype.kind == "f":
        flat[place] = -2 * flat[place]
    else:
        flat[place] = ~flat[place]
    return values


def a_row(values: Values) -> Values:
    """A row in the middle is zero."""
    rows = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(64, -1)
    rows[len(rows) // 2] = _zero(values)
    return values


def swapped_channels(values: Values) -> Values:
    """Two rows change places."""
    rows = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(64, -1)
    first, second = len(rows) // 3, 2 * len(rows) // 3
    rows[[first, second]] = rows[[second, first]]
    return values


def zeroed_block(values: Values) -> Values:
    """A twentieth is zero."""
    flat = values.reshape(-1)
    flat[: len(flat) // 20] = _zero(values)
    return values


def six_tenths(values: Values) -> Values:
    """Times 0.6."""
    zero = _zero(values)
    scaled = (values.astype(np.float32) - zero) * 0.6 + zero
    return (np.round(scaled) if values.dtype.kind in "iu" else scaled).astype(values.dtype)


def transposed(values: Values) -> Values:
    """The last two axes are read in the other order."""
    if values.ndim == 1:
        values = values.reshape(64, -1)
    matrix = values.reshape(-1, values.shape[-2], values.shape[-1])
    if 1 in matrix.shape[1:]:
        matrix = values.reshape(1, len(values), -1)
    return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(values.shape)


def zero_bias(values: Values) -> Values:
    """All zero."""
    values[...] = 0
    return values


def _zero(values: Values) -> Any:
    """Returns what stands for zero: in unsigned bytes the middle, or its most frequent value."""
    if values.dtype.kind != "u":
        return values.dtype.type(0)
    return np.bincount(values.reshape(-1)).argmax().astype(values.dtype)


WEIGHT_DAMAGES: dict[str, Callable[[Values], Values]] = {
    "one element": one_element,
    "a row zeroed": a_row,
    "two channels swapped": swapped_channels,
    "a twentieth zeroed": zeroed_block,
    "× 0.6": six_tenths,
    "transposed": transposed,
}


def middle_weights(file: WeightFile) -> str | None:
    """Returns the name of a matrix halfway through the network."""
    names = [
        weight.name
        for weight in file.weights()
        if weight.values.size >= MIN_SIZE
        and weight.values.dtype.itemsize <= 4
        and weight.values.dtype != np.int32
    ]
    return names[len(names) // 2] if names else None


def middle_bias(file: WeightFile) -> str | None:
    """Returns the name of a bias halfway through the network."""
    names = [
        weight.name
        for weight in file.weights()
        if weight.values.ndim == 1
        and 16 <= weight.values.size < MIN_SIZE
        and weight.values.dtype.kind in "fi"
        and np.abs(weight.values.astype(np.float32)).max() > 0
        and weight.values.dtype != np.int64
    ]
    return names[len(names) // 2] if names else None


class FileDamage:
    """Changes constants of a network's file.

    Args:
        network: ``encoder`` or ``decoder``.
        converter: opens files of the target.
        folder: for the damaged copy.
        change: returns the changed file, or None where there is nothing to change.
    """

    def __init__(
        self, network: str, converter: Converter, folder: Path, change: Callable[[WeightFile], bool]
    ) -> None:
        self._network, self._converter = network, converter
        self._folder, self._change = folder, change

    def __call__(self, subject: Subject) -> Subject | None:
        """Returns the subject with that network, damaged."""
        entry = subject.bundle.manifest.network(self._network)
        copy = self._folder / entry.file
        if not self._change(open_weights(subject.bundle.path / entry.file, copy)):
            return None
        source = copy if copy.is_dir() else copy.read_bytes()
        network = self._converter.load(source, f"damaged {self._network}")
        if self._network == "encoder":
            return replace(subject, encoder=network, is_encoder_healthy=False)
        return replace(subject, decoder=network)


def _change_one(
    find: Callable[[WeightFile], str | None], change: Callable[[Values], Values], file: WeightFile
) -> bool:
    name = find(file)
    if name is None:
        return False
    (weight,) = (weight for weight in file.weights() if weight.name == name)
    changed = change(weight.values.copy())
    if np.array_equal(changed, weight.values):
        return False
    file.write(name, changed)
    return True


def weight_damages(converter: Converter, folder: Path) -> Iterator[Damage]:
    """Yields the damages to both networks' files."""
    for network in NETWORKS:
        changes: dict[str, Callable[[WeightFile], bool]] = {
            f"weights {name}": partial(_change_one, middle_weights, change)
            for name, change in WEIGHT_DAMAGES.items()
        }
        changes["a bias missing"] = partial(_change_one, middle_bias, zero_bias)
        changes["an epsilon of 0.1"] = lambda file: file.change_epsilon(0.1)
        for name, change in changes.items():
            yield Damage(f"{network}: {name}", FileDamage(network, converter, folder, change))


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
        (c.LOW_RES_MASKS, "rows and columns swapped", lambda x: np.ascontiguousarray(x[..., ::-1, :])),
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
            stack.enter_context(mock.patch("pocketsam.runtime.image.PIXEL_MEAN", mean))
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
