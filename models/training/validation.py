"""Measures a network on generated scenes that no training run sees."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from pocketsam.models import prompted
from pocketsam.models.sam import Sam
from pocketsam.models.training.scenes import Photo, Scene, generate
from pocketsam.models.training.textures import HELD_OUT, load_textures

_FIRST_SEED = 10_000_000
"""Scenes with this seed and larger ones are never trained on."""


def held_out_scenes(count: int, size: int, photos: Sequence[Photo] = ()) -> Iterator[Scene]:
    """Yields scenes of textures, and photographs if any, that are never trained on.

    Args:
        count: number of scenes; they are the same in every call.
        size: side of the scenes in pixels.
        photos: grounds and outlines, as in ``scenes.generate``.
    """
    textures = load_textures(HELD_OUT)
    for number in range(count):
        yield generate(_FIRST_SEED + number, size, textures, photos)


def miou_with_truth(model: Sam, scenes: Iterable[Scene]) -> dict[str, float]:
    """Returns the mean IoU with the true masks at a ``point`` in each, and at its ``box``.

    Args:
        model: the network, for the scenes' size.
        scenes: at least one.
    """
    found: dict[str, list[float]] = {"point": [], "box": []}
    for scene in scenes:
        clicks = np.array([prompted.deepest_pixel(mask) for mask in scene.masks], np.float64)
        prompts = {
            "point": prompted.point_prompts(clicks[:, None]),
            "box": prompted.bounding_box_prompts(scene.masks),
        }
        embedding = prompted.embed(model, scene.image)
        for name in found:
            masks = prompted.predict(model, embedding, prompts[name], scene.image.shape)
            found[name] += prompted.iou(torch.from_numpy(masks), torch.from_numpy(scene.masks)).tolist()
    return {name: float(np.mean(values)) for name, values in found.items()}
