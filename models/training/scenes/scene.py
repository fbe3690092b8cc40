"""Generated scenes: images whose objects' masks are known, to train and to evaluate on.

A scene is painted from back to front. Grounds and objects are filled with crops of photographs, with
noise, stripes or flat colour; objects are blobs, polygons, ellipses, boxes, rings, curves and leaves,
some with parts of their own; they cast shadows, are shaded, and hide each other. At the end the picture
is blurred, gets noise and another exposure, as from a camera. A seed decides everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pocketsam.models.training.scenes.fillings import Pixels, draw_filling
from pocketsam.models.training.scenes.shapes import (
    Mask,
    Rng,
    draw_half_plane,
    draw_shape,
    point_in,
)

MIN_AREA = 0.0015
"""Share of the image that must be visible of an object; smaller ones have no mask."""


@dataclass(frozen=True)
class Scene:
    """An image ``[S, S, 3]`` uint8 and the visible masks of its objects and parts ``[N, S, S]`` bool.

    A part's mask lies inside the mask of the object that it belongs to.
    """

    image: NDArray[np.uint8]
    masks: Mask


def generate(seed: int, size: int, textures: Sequence[NDArray[np.uint8]]) -> Scene:
    """Returns a painted scene with at least one mask.

    Args:
        seed: the same seed, size and textures give the same scene.
        size: side of the image in pixels.
        textures: photographs ``[H, W, 3]`` uint8 to cut fillings from.
    """
    rng = np.random.default_rng(seed)
    objects = int(rng.integers(2, 11))
    canvas, masks = _painted_ground(rng, size, textures)
    for _ in range(objects):
        shape = draw_shape(rng, size)
        if not shape.any():
            continue
        canvas = _paint(rng, canvas, shape, draw_filling(rng, size, textures), rng.random() < 0.4)
        masks = [mask & ~shape for mask in masks]
        masks.append(shape)
        if rng.random() < 0.3:  # a part: painted on the object, and inside its mask
            part = shape & draw_shape(rng, size, point_in(rng, shape), shrink=0.5)
            canvas = _paint(rng, canvas, part, draw_filling(rng, size, textures), shadow=False)
            masks.append(part)
    kept = [mask for mask in masks if mask.sum() >= MIN_AREA * size * size]
    if not kept:
        return generate(seed + 1_000_003, size, textures)
    return Scene(_camera(rng, canvas), np.stack(kept))


def _painted_ground(
    rng: Rng, size: int, textures: Sequence[NDArray[np.uint8]]
) -> tuple[Pixels, list[Mask]]:
    """Returns a canvas and the masks of one ground, or of two: sky and earth, wall and floor."""
    canvas = draw_filling(rng, size, textures)
    if rng.random() < 0.6:
        return canvas, [np.ones((size, size), bool)]
    ground = draw_half_plane(rng, size)
    return _paint(rng, canvas, ground, draw_filling(rng, size, textures), shadow=False), [
        ~ground,
        ground,
    ]


def _paint(rng: Rng, canvas: Pixels, shape: Mask, filling: Pixels, shadow: bool) -> Pixels:
    """Returns the canvas with the shape on it: shaded, with a soft edge, with or without a shadow."""
    size = len(canvas)
    if shadow:
        blurred = Image.fromarray(shape.astype(np.uint8) * 255)
        blurred = blurred.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.005, 0.03)))
        moved = np.roll(np.asarray(blurred), rng.integers(-size // 24, size // 24 + 1, 2), (0, 1))
        depth = np.float32(rng.uniform(0.2, 0.7) / 255)
        canvas = canvas * (1 - moved[..., None].astype(np.float32) * depth)
    if rng.random() < 0.6:
        y, x = np.mgrid[0:size, 0:size] / size - 0.5
        slope = rng.normal(0, 0.7, 2)
        light = 1 + np.clip(x * slope[0] + y * slope[1], -0.5, 0.5)
        filling = filling * light[..., None].astype(np.float32)
    edge = Image.fromarray(shape.astype(np.uint8) * 255)
    soft = edge.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    alpha = np.asarray(soft, np.float32)[..., None] / np.float32(255)
    painted: Pixels = canvas * (1 - alpha) + filling * alpha
    return painted


def _camera(rng: Rng, canvas: Pixels) -> NDArray[np.uint8]:
    """Returns the canvas ``[S, S, 3]`` uint8, blurred, exposed and noisy as from a camera."""
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    pixels = np.asarray(image, np.float32)
    exposed = 255 * (pixels / 255) ** rng.uniform(0.7, 1.4)
    if rng.random() < 0.5:
        exposed = exposed + rng.normal(0, rng.uniform(1, 12), pixels.shape)
    if rng.random() < 0.1:
        exposed = np.repeat(exposed.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.clip(exposed, 0, 255).astype(np.uint8)
