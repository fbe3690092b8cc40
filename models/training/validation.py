"""Generated scenes that no training run sees."""

from collections.abc import Iterator

from pocketsam.models.training.scenes import Scene, generate
from pocketsam.models.training.textures import HELD_OUT, load_textures

_FIRST_SEED = 10_000_000
"""Scenes with this seed and larger ones are never trained on."""


def held_out_scenes(count: int, size: int) -> Iterator[Scene]:
    """Yields scenes of textures that are never trained on.

    Args:
        count: number of scenes; they are the same in every call.
        size: side of the scenes in pixels.
    """
    textures = load_textures(HELD_OUT)
    for number in range(count):
        yield generate(_FIRST_SEED + number, size, textures)
