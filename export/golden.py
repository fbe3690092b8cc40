"""A bundle's golden vectors: a drawn scene, a point and a box on it, the reference's answers."""

from typing import Any

import numpy as np

from pocketsam.export.cases import Photo, Prompt, compute_cases
from pocketsam.export.target import Arrays
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime import golden

WIDTH, HEIGHT = 128, 96
POINT = (50, 40)
BOX = (24, 14, 76, 66)


def draw_scene() -> Photo:
    """Draws a red disk on a ground of changing colour, ``[96, 128, 3]``."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    disk = ((x - POINT[0]) ** 2 + (y - POINT[1]) ** 2 < 600)[..., None]
    ground = np.stack([2 * x, 2 * y, 255 - x - y / 2], axis=-1)
    return np.where(disk, np.array([230, 60, 40], np.float32), ground).astype(np.uint8)


def golden_arrays(model: Sam) -> Arrays:
    """Runs PyTorch on the scene; returns what ``golden.npz`` holds, see ``runtime.golden``."""
    image = draw_scene()
    x0, y0, x1, y1 = BOX
    prompts = (
        Prompt(golden.POINT_PROMPT, [[(POINT[0] / WIDTH, POINT[1] / HEIGHT, 1)]]),
        Prompt(golden.BOX_PROMPT, boxes=[(x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT)]),
    )
    arrays: dict[str, Any] = {
        "image": image,
        "point_coords": np.array([[POINT]], np.float32),
        "point_labels": np.array([[1]], np.float32),
        "boxes": np.array([BOX], np.float32),
    }
    (case,) = compute_cases(model, [("scene", image)], prompts=prompts, detailed=0)
    for prompt, answer in zip(prompts, case.prompts, strict=True):
        low_res = answer.outputs[c.LOW_RES_MASKS]
        arrays[f"{prompt.name}_low_res_masks"] = low_res[:, 1:, :: golden.STRIDE, :: golden.STRIDE]
        arrays[f"{prompt.name}_scores"] = answer.outputs[c.IOU_PREDICTIONS][:, 1:]
    return arrays
