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

from pocketsam.constants import PIXEL_MEAN
from pocketsam.models.training.scenes.fillings import Pixels, draw_filling
from pocketsam.models.training.scenes.shapes import (
    Mask,
    Rng,
    draw_half_plane,
    draw_shape,
    draw_silhouette,
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


@dataclass(frozen=True)
class Photo:
    """A photograph ``[H, W, 3]`` uint8 and its regions ``[levels, H, W]``, unsigned, fine to coarse."""

    image: NDArray[np.uint8]
    regions: NDArray[np.uint16]


def generate(
    seed: int, size: int, textures: Sequence[NDArray[np.uint8]], photos: Sequence[Photo] = ()
) -> Scene:
    """Returns a painted scene with at least one mask.

    Args:
        seed: the same seed, size, textures and photographs give the same scene.
        size: side of the image in pixels.
        textures: photographs ``[H, W, 3]`` uint8 to cut fillings from.
        photos: if any, 7 of 10 scenes have one of them as the ground, with its regions as masks; half
            of these scenes have no other object. Half of all painted objects have a region's outline.
    """
    rng = np.random.default_rng(seed)
    objects = int(rng.integers(2, 11))
    if photos and rng.random() < 0.7:
        canvas, masks = _photo_ground(rng, size, _one_of(rng, photos))
        objects = 0 if rng.random() < 0.5 else objects // 2 + 1
    else:
        canvas, masks = _painted_ground(rng, size, textures)
    for _ in range(objects):
        if photos and rng.random() < 0.5:
            shape = draw_silhouette(rng, size, _one_of(rng, photos).regions)
        else:
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


def _one_of(rng: Rng, photos: Sequence[Photo]) -> Photo:
    """Returns a random photograph."""
    return photos[int(rng.integers(len(photos)))]


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


def _photo_ground(rng: Rng, size: int, photo: Photo) -> tuple[Pixels, list[Mask]]:
    """Returns a canvas with a photograph on it, and the masks of a few regions of every level.

    The photograph, or a crop of it, is scaled to the longest side ``size`` and padded as SAM pads.
    """
    height, width = photo.image.shape[:2]
    part = rng.uniform(0.4, 1.0, 2) if rng.random() < 0.6 else np.ones(2)
    h, w = np.maximum(32, (part * (height, width)).astype(int))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    scale = size / max(h, w)
    shape = (max(1, round(w * scale)), max(1, round(h * scale)))
    crop = Image.fromarray(photo.image[y : y + h, x : x + w]).resize(shape, Image.Resampling.BILINEAR)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = PIXEL_MEAN  # zero once normalised, as SAM's padding is
    gain, offset = rng.uniform(0.75, 1.25, 3), rng.uniform(-25, 25)
    pixels = np.clip(
        np.asarray(crop, np.float32) * gain.astype(np.float32) + np.float32(offset), 0, 255
    )
    canvas[: shape[1], : shape[0]] = pixels
    rows = np.minimum((np.arange(shape[1]) / scale).astype(int), h - 1) + y
    columns = np.minimum((np.arange(shape[0]) / scale).astype(int), w - 1) + x
    masks = []
    for regions in photo.regions:
        labels = regions[rows[:, None], columns]
        areas = np.bincount(labels.ravel())
        areas[areas < MIN_AREA * size * size] = 0
        wanted = min(3, int(np.count_nonzero(areas)))
        if wanted:
            chances = np.sqrt(areas) / np.sqrt(areas).sum()
            for label in rng.choice(len(areas), wanted, replace=False, p=chances):
                mask = np.zeros((size, size), bool)
                mask[: shape[1], : shape[0]] = labels == label
                masks.append(mask)
    return canvas, masks


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
