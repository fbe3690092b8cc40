"""Draws the gallery of an evaluation: a row for each click, the image and the masks side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pocketsam.files import write_file
from pocketsam.models.evaluation.evaluate import Panel
from pocketsam.models.prompted import Mask

TILE = 256
"""Longest side of an image in the gallery, in pixels."""
_CAPTION = 16
"""Height of a title in pixels."""
_COLOUR = (30, 144, 255)
"""Of a mask."""


def draw_tile(panel: Panel, title: str, mask: Mask | None) -> Image.Image:
    """Returns the panel's image with its click, a title above, and the mask ``[h, w]``, if any."""
    pixels = panel.example.pixels.copy()
    if mask is not None:
        pixels[mask] = (0.45 * pixels[mask] + 0.55 * np.array(_COLOUR)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = Image.new("RGB", (TILE, size[1] + _CAPTION), "white")
    tile.paste(picture.resize(size, Image.Resampling.LANCZOS), (0, _CAPTION))
    draw = ImageDraw.Draw(tile)
    draw.text((3, 2), title, fill="black")
    x, y = panel.click[0] * scale, panel.click[1] * scale + _CAPTION
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(60, 220, 60), outline="white")
    return tile


def draw_rows(panels: Sequence[Panel]) -> Image.Image:
    """Returns a picture with a row for each panel: the image, then each of the panel's masks."""
    rows = []
    for panel in panels:
        name = panel.example.name
        tiles = [draw_tile(panel, name, None)]
        tiles += [draw_tile(panel, title, mask) for title, mask in panel.masks.items()]
        rows.append(tiles)
    return paste_grid(rows)


def paste_grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Returns tiles in rows, as a single picture; each row is as high as its highest tile."""
    heights = [max(tile.height for tile in row) for row in rows]
    grid = Image.new("RGB", (TILE * max(map(len, rows)), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            grid.paste(tile, (column * TILE, sum(heights[:number])))
    return grid


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture, complete or not at all.

    Args:
        picture: RGB.
        path: a ``.png`` or ``.jpg``.

    Raises:
        PocketSamError: the file cannot be written.
    """
    write_file(path, lambda work: picture.save(work, quality=85))
