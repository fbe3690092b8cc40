"""Draws a checkpoint's masks at a fixed set of clicks on scikit-image's photographs: ``make clicks``.

The clicks were chosen by looking at the photographs, before any mask was seen, and all are shown.
"""

import argparse
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from pocketsam import terminal
from pocketsam.models.checkpoint import DEFAULT, default_image_size, load_model
from pocketsam.models.evaluation.evaluate import Panel
from pocketsam.models.evaluation.examples import Example
from pocketsam.models.evaluation.gallery import draw_tile, paste_grid, save_picture
from pocketsam.models.images import scaled
from pocketsam.models.prompted import embed, point_prompts, predict

CLICKS = (
    ("astronaut", 220, 110, "head"),
    ("astronaut", 110, 330, "suit"),
    ("astronaut", 165, 385, "round patch"),
    ("astronaut", 390, 420, "helmet"),
    ("astronaut", 375, 130, "shuttle"),
    ("astronaut", 415, 90, "brown tank"),
    ("astronaut", 30, 120, "flag"),
    ("astronaut", 300, 360, "name tag"),
    ("chelsea", 175, 110, "left eye"),
    ("chelsea", 325, 135, "right eye"),
    ("chelsea", 262, 240, "nose"),
    ("chelsea", 250, 60, "cat"),
    ("coffee", 280, 140, "coffee"),
    ("coffee", 220, 80, "cup"),
    ("coffee", 120, 240, "saucer"),
    ("coffee", 365, 275, "spoon"),
    ("coffee", 230, 260, "handle"),
    ("coffee", 520, 80, "table"),
    ("rocket", 323, 250, "rocket"),
    ("rocket", 450, 100, "sky"),
    ("rocket", 45, 150, "tower"),
    ("camera", 120, 300, "coat"),
    ("camera", 225, 120, "head"),
    ("camera", 420, 400, "grass"),
    ("camera", 425, 135, "tower"),
    ("camera", 380, 60, "sky"),
    ("coins", 331, 45, "coin"),
    ("coins", 40, 55, "coin"),
    ("coins", 270, 120, "coin"),
    ("coins", 345, 185, "coin"),
    ("coins", 42, 255, "coin"),
    ("clock", 200, 150, "clock"),
    ("moon", 120, 85, "crater"),
)
"""Photograph, x and y in pixels, and what a person would mean by the click."""
_COLUMNS = 6


def _panels(source: str) -> list[Panel]:
    """Returns a panel for each click, with a checkpoint's mask under the name of what was meant."""
    size = default_image_size(source)
    model = load_model(source, size, terminal.say).model
    panels: list[Panel] = []
    for name, clicks in groupby(CLICKS, key=lambda click: click[0]):
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        scale = size / max(photo.size)
        pixels = scaled(photo, size)
        example = Example(name, pixels, np.zeros((0, *pixels.shape[:2]), bool))
        embedding = embed(model, example.pixels)
        for _, x, y, meant in clicks:
            click = (x * scale, y * scale)
            prompts = point_prompts(np.array([[click]]))
            mask = predict(model, embedding, prompts, example.pixels.shape)[0]
            panels.append(Panel(example, click, {meant: mask}))
    return panels


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Draw the answers to a fixed set of clicks.")
    parser.add_argument("output", type=Path, help="a .jpg or .png file")
    parser.add_argument("--checkpoint", default=DEFAULT, help="default: %(default)s")
    args = parser.parse_args()
    tiles = [
        draw_tile(panel, f"{number} {meant}", mask)
        for number, panel in enumerate(_panels(args.checkpoint), start=1)
        for meant, mask in panel.masks.items()
    ]
    rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
    save_picture(paste_grid(rows), args.output)
    print(f"wrote {args.output}: {len(tiles)} clicks")


if __name__ == "__main__":
    main()
