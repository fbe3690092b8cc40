"""What grounds and objects of generated scenes are filled with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam.models.training.scenes.shapes import Rng

Pixels = NDArray[np.float32]
"""``[S, S, 3]`` RGB, about 0..255."""


def draw_filling(rng: Rng, size: int, textures: Sequence[NDArray[np.uint8]]) -> Pixels:
    """Returns ``[S, S, 3]`` in 0..255: a crop of a photograph, noise or one colour, perhaps striped.

    Args:
        rng: decides everything.
        size: S.
        textures: photographs ``[H, W, 3]`` to cut crops from; without any, there are none.
    """
    draw = rng.random()
    if draw < 0.6 and textures:
        filling = _crop(rng, size, textures[int(rng.integers(len(textures)))])
    elif draw < 0.8:
        filling = _noise(rng, size)
    else:
        filling = np.broadcast_to(rng.uniform(0, 255, 3), (size, size, 3)).astype(np.float32)
    if rng.random() < 0.25:
        filling = filling + _stripes(rng, size)
    gain, offset = rng.uniform(0.6, 1.3, 3), rng.uniform(-40, 40)
    return np.clip(filling * gain.astype(np.float32) + np.float32(offset), 0, 255)


def _crop(rng: Rng, size: int, texture: NDArray[np.uint8]) -> Pixels:
    """Returns ``[S, S, 3]``: a square of a photograph, rotated, scaled and perhaps mirrored."""
    height, width = texture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.12, 0.9))
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    image = Image.fromarray(texture[y : y + side, x : x + side])
    image = image.rotate(90 * int(rng.integers(4))).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _noise(rng: Rng, size: int) -> Pixels:
    """Returns ``[S, S, 3]``: smooth noise of several scales around one colour."""
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
    """Returns ``[S, S, 3]`` to add: parallel stripes, soft or hard, from -60 to 60."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), size * rng.uniform(0.02, 0.15)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return (wave[..., None] * rng.uniform(-60, 60, 3)).astype(np.float32)
