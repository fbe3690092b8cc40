"""Pictures of an evaluation: a row for each click, the image and everybody's masks side by side."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pocketsam.models.evaluation.evaluate import Panel
from pocketsam.models.prompted import Mask
from pocketsam.models.training.run import write_bytes_whole

TILE = 256
"""Longest side of an image in the gallery."""
CAPTION = 16
COLOUR = (30, 144, 255)


def draw_tile(panel: Panel, title: str, mask: Mask | None) -> Image.Image:
    """The image with its click, a title above and, if there is one, a mask."""
    pixels = panel.example.pixels.copy()
    if mask is not None:
        pixels[mask] = (0.45 * pixels[mask] + 0.55 * np.array(COLOUR)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = Image.new("RGB", (TILE, size[1] + CAPTION), "white")
    tile.paste(picture.resize(size, Image.Resampling.LANCZOS), (0, CAPTION))
    draw = ImageDraw.Draw(tile)
    draw.text((3, 2), title, fill="black")
    x, y = panel.click[0] * scale, panel.click[1] * scale + CAPTION
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(60, 220, 60), outline="white")
    return tile


def draw_rows(panels: Sequence[Panel]) -> Image.Image:
    """A row for each panel: the image, then each mask of it."""
    rows = []
    for panel in panels:
        name = panel.example.name
        tiles = [draw_tile(panel, name, None)]
        tiles += [draw_tile(panel, title, mask) for title, mask in panel.masks.items()]
        rows.append(tiles)
    return paste_grid(rows)


def paste_grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Tiles in rows, each as high as its highest tile."""
    heights = [max(tile.height for tile in row) for row in rows]
    grid = Image.new("RGB", (TILE * max(map(len, rows)), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            grid.paste(tile, (column * TILE, sum(heights[:number])))
    return grid


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG or JPEG, whole or not at all.

    Raises:
        PocketSamError: the file cannot be written.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=85)
    write_bytes_whole(path, buffer.getvalue())
