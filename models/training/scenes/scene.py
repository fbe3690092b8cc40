"""Generated scenes: images whose objects' masks are known, to train and to evaluate on.

A scene is painted from back to front. Grounds and objects are filled with crops of photographs, with
noise, stripes or flat colour; objects are blobs, polygons, ellipses, boxes, rings, curves and leaves,
some with parts of their own; they cast shadows, are shaded, and hide each other. At the end the picture
is blurred, gets noise and another exposure, as a camera would do it. Everything follows from a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

MIN_AREA = 0.0015
"""Objects of which less than this fraction of the image stays visible are no longer objects."""

PADDING = (123.675, 116.28, 103.53)
"""The colour that is zero once normalised, as SAM's padding is."""


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
    """Paints one scene.

    Args:
        seed: the same seed, size, textures and photographs give the same scene.
        size: side of the image in pixels.
        textures: photographs ``[H, W, 3]`` to cut fillings from.
        photos: photographs that lend a part of the scenes their ground, with its regions as masks, and
            some objects their outline; a part of those scenes are the photograph alone.
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
            shape = _silhouette(rng, size, _one_of(rng, photos))
        else:
            shape = _shape(rng, size)
        if not shape.any():
            continue
        canvas = _paint(rng, canvas, shape, _filling(rng, size, textures), rng.random() < 0.4)
        masks = [mask & ~shape for mask in masks]
        masks.append(shape)
        if rng.random() < 0.3:  # a part: painted on the object, and inside its mask
            part = shape & _shape(rng, size, _centre_of(rng, shape), shrink=0.5)
            canvas = _paint(rng, canvas, part, _filling(rng, size, textures), shadow=False)
            masks.append(part)
    kept = [mask for mask in masks if mask.sum() >= MIN_AREA * size * size]
    if not kept:
        return generate(seed + 1_000_003, size, textures)
    return Scene(_camera(rng, canvas), np.stack(kept))


def _one_of(rng: Rng, photos: Sequence[Photo]) -> Photo:
    return photos[int(rng.integers(len(photos)))]


def _painted_ground(
    rng: Rng, size: int, textures: Sequence[NDArray[np.uint8]]
) -> tuple[Pixels, list[Mask]]:
    canvas = _filling(rng, size, textures)
    if rng.random() < 0.6:
        return canvas, [np.ones((size, size), bool)]
    ground = _half_plane(rng, size)  # a second ground: sky and earth, wall and floor
    return _paint(rng, canvas, ground, _filling(rng, size, textures), shadow=False), [~ground, ground]


def _photo_ground(rng: Rng, size: int, photo: Photo) -> tuple[Pixels, list[Mask]]:
    """A part of a photograph, its longer side as long as the canvas and the rest as padding is, and
    masks of a few of its regions of every level.
    """
    height, width = photo.image.shape[:2]
    part = rng.uniform(0.4, 1.0, 2) if rng.random() < 0.6 else np.ones(2)
    h, w = np.maximum(32, (part * (height, width)).astype(int))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    scale = size / max(h, w)
    shape = (max(1, round(w * scale)), max(1, round(h * scale)))
    crop = Image.fromarray(photo.image[y : y + h, x : x + w]).resize(shape, Image.Resampling.BILINEAR)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = PADDING
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


def _silhouette(rng: Rng, size: int, photo: Photo) -> Mask:
    """``[S, S]`` bool: the outline of a photograph's region, turned, scaled and moved."""
    regions = photo.regions[int(rng.integers(len(photo.regions)))]
    mask = regions == regions[int(rng.integers(len(regions))), int(rng.integers(regions.shape[1]))]
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = Image.fromarray(mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].astype(np.uint8) * 255)
    side = size * np.exp(rng.uniform(np.log(0.1), np.log(0.7)))
    scale = side / max(cut.size)
    cut = cut.resize((max(2, int(cut.width * scale)), max(2, int(cut.height * scale))))
    cut = cut.rotate(rng.uniform(-180, 180) if rng.random() < 0.5 else 0, expand=True)
    image = Image.new("L", (size, size))
    image.paste(cut, (int(rng.uniform(-0.3, 0.9) * size), int(rng.uniform(-0.3, 0.9) * size)))
    return np.asarray(image) > 127


def _filling(rng: Rng, size: int, textures: Sequence[NDArray[np.uint8]]) -> Pixels:
    """``[S, S, 3]`` in 0..255."""
    kind = rng.random()
    if kind < 0.6 and textures:
        filling = _crop(rng, size, textures[int(rng.integers(len(textures)))])
    elif kind < 0.8:
        filling = _noise(rng, size)
    else:
        filling = np.broadcast_to(rng.uniform(0, 255, 3), (size, size, 3)).astype(np.float32)
    if rng.random() < 0.25:
        filling = filling + _stripes(rng, size)
    gain, offset = rng.uniform(0.6, 1.3, 3), rng.uniform(-40, 40)
    return np.clip(filling * gain.astype(np.float32) + np.float32(offset), 0, 255)


def _crop(rng: Rng, size: int, texture: NDArray[np.uint8]) -> Pixels:
    """A turned and scaled square of a photograph."""
    height, width = texture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.12, 0.9))
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    image = Image.fromarray(texture[y : y + side, x : x + side])
    image = image.rotate(90 * int(rng.integers(4))).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _noise(rng: Rng, size: int) -> Pixels:
    """Smooth noise of several scales around one colour."""
    field = np.zeros((size, size, 3), np.float32)
    for cells in (3, 8, 24, 64):
        grain = rng.normal(0, 1, (cells, cells, 3 if rng.random() < 0.3 else 1)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(grain[..., i]).resize((size, size), Image.Resampling.BICUBIC))
            for i in range(grain.shape[2])
        ]
        field += np.stack(layers, axis=-1) * rng.uniform(0, 30)
    return rng.uniform(20, 235, 3).astype(np.float32) + field


def _stripes(rng: Rng, size: int) -> Pixels:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), size * rng.uniform(0.02, 0.15)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return (wave[..., None] * rng.uniform(-60, 60, 3)).astype(np.float32)


def _half_plane(rng: Rng, size: int) -> Mask:
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.normal(np.pi / 2, 0.3)
    waves = 0.03 * np.sin(x * rng.uniform(2, 20) + rng.uniform(0, 6)) * rng.integers(0, 2)
    half: Mask = (x - 0.5) * np.cos(angle) + (y + waves - rng.uniform(0.25, 0.75)) * np.sin(angle) > 0
    return half


def _centre_of(rng: Rng, mask: Mask) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    i = rng.integers(len(ys))
    return float(xs[i]), float(ys[i])


def _shape(rng: Rng, size: int, centre: tuple[float, float] | None = None, shrink: float = 1.0) -> Mask:
    """``[S, S]`` bool: one of the kinds below, around a centre, of a size drawn at random."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    x, y = centre or (rng.uniform(0.05, 0.95) * size, rng.uniform(0.05, 0.95) * size)
    radius = size * shrink * np.exp(rng.uniform(np.log(0.04), np.log(0.38)))
    kinds = (_blob, _blob, _polygon, _ellipse, _box, _ring, _curve, _leaf, _cluster)
    kinds[rng.integers(len(kinds))](rng, draw, x, y, float(radius))
    return np.asarray(image) > 0


def _around(
    x: float, y: float, radii: NDArray[np.float64], angles: NDArray[np.float64]
) -> list[tuple[float, float]]:
    return list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True))


def _blob(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radii = np.ones(72)
    for k in range(1, 7):
        radii += rng.normal(0, 0.35 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    stretch, turn = rng.uniform(0.5, 1.0), rng.uniform(0, np.pi)
    radii = radius * np.clip(radii, 0.2, 2) * (1 - (1 - stretch) * np.cos(angles - turn) ** 2)
    draw.polygon(_around(x, y, radii, angles), 255)


def _polygon(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    count = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    draw.polygon(_around(x, y, radius * rng.uniform(0.4, 1.2, count), angles), 255)


def _ellipse(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.25, 1)
    u, v = radius * np.cos(angles), radius * flat * np.sin(angles)
    points = zip(
        x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), strict=True
    )
    draw.polygon(list(points), 255)


def _box(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    u, v, turn = radius, radius * rng.uniform(0.15, 1), rng.normal(0, 0.4)
    corners = [(-u, -v), (u, -v), (u, v), (-u, v)]
    cos, sin = np.cos(turn), np.sin(turn)
    draw.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners], 255)


def _ring(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    inner, flat = radius * rng.uniform(0.4, 0.85), rng.uniform(0.6, 1)
    draw.ellipse((x - radius, y - radius * flat, x + radius, y + radius * flat), fill=255)
    draw.ellipse((x - inner, y - inner * flat, x + inner, y + inner * flat), fill=0)


def _curve(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A thin part: a stem, a cable, a leg."""
    steps = np.linspace(-1, 1, 24)
    turn, bend = rng.uniform(0, np.pi), rng.normal(0, 0.5, 2)
    u, v = 1.6 * radius * steps, radius * (bend[0] * steps**2 + bend[1] * steps**3)
    points = zip(
        x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), strict=True
    )
    draw.line(list(points), fill=255, width=max(2, int(radius * rng.uniform(0.06, 0.3))), joint="curve")


def _leaf(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    steps = np.linspace(0, 1, 20)
    width = radius * rng.uniform(0.2, 0.7) * np.sin(np.pi * steps) ** rng.uniform(0.6, 1.5)
    u = np.r_[steps, steps[::-1]] * 2 * radius - radius
    v, turn = np.r_[width, -width[::-1]], rng.uniform(0, 2 * np.pi)
    points = zip(
        x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), strict=True
    )
    draw.polygon(list(points), 255)


def _cluster(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Body, head and limbs: one object of several lobes."""
    for _ in range(rng.integers(2, 6)):
        dx, dy = rng.normal(0, 0.5 * radius, 2)
        lobe = (_ellipse, _blob, _curve)[rng.integers(3)]
        lobe(rng, draw, x + dx, y + dy, radius * rng.uniform(0.3, 0.7))


def _paint(rng: Rng, canvas: Pixels, shape: Mask, filling: Pixels, shadow: bool) -> Pixels:
    """The canvas with the shape on it: shaded, softened at its edge, with or without a shadow."""
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
