"""Draws masks and prompts on a photograph, and label maps."""

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketsam.constants import LABEL_BACKGROUND, LABEL_FOREGROUND
from pocketsam.errors import MaskError
from pocketsam.runtime.image import check_pixels
from pocketsam.runtime.rle import mask_bounds

MOST_NUMBERED = 60
"""Masks in a picture that get numbers; more would hide it."""
POINT_COLOURS = {LABEL_FOREGROUND: (60, 220, 60), LABEL_BACKGROUND: (230, 50, 50)}


def colour_of(number: int) -> tuple[int, int, int]:
    """Returns the colour of a mask: bright, and unlike those of the masks before it."""
    hue = (0.58 + number * 0.618034) % 1  # steps of the golden ratio never come near an earlier hue
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 - 0.15 * (number % 2), 1 - 0.2 * (number % 3))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_overlay(
    image: NDArray[np.uint8],
    masks: Iterable[NDArray[np.bool_]],
    points: Sequence[tuple[float, float, int]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
    numbers: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """Returns the photograph with masks tinted and outlined, points as dots, boxes as frames.

    Foreground points are green, background points red.

    Args:
        image: ``[H, W, 3]`` uint8.
        masks: ``[H, W]`` bool each.
        points: (x, y, label) in pixels.
        boxes: (x0, y0, x1, y1) in pixels.
        numbers: where each mask's number is written, (x, y) in pixels.

    Raises:
        ImageError: the image is no uint8 array ``[H, W, 3]``.
        MaskError: a mask is no bool array of the image's height and width.
    """
    check_pixels(image)
    result = Image.fromarray(image)
    for number, mask in enumerate(masks):
        found, size = np.asarray(mask), list(image.shape[:2])
        if list(found.shape) != size or found.dtype != bool:
            what = f"{found.dtype} {list(found.shape)}"
            raise MaskError(f"masks must be a list of bool arrays {size}, as the image is, not {what}")
        _tint(result, found, colour_of(number))
    draw = ImageDraw.Draw(result)
    unit = max(1, round(max(image.shape[:2]) / 400))
    height, width = image.shape[:2]
    for box in boxes:  # cut off: what is far outside takes minutes to draw
        x0, y0, x1, y1 = np.clip(box, -2 * unit, [width + 2 * unit, height + 2 * unit] * 2)
        draw.rectangle((x0, y0, x1, y1), outline=(255, 220, 0), width=unit)
    for x, y, label in points:
        if label in POINT_COLOURS:
            radius = 3 * unit
            around = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(around, fill=POINT_COLOURS[label], outline="white", width=unit)
    font = ImageFont.load_default(10 * unit)
    for number, place in enumerate(numbers, start=1):
        style = {"anchor": "mm", "stroke_width": unit, "stroke_fill": "black"}
        draw.text(place, str(number), "white", font, **style)  # type: ignore[arg-type]
    return result


def _tint(picture: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Mixes a colour into the pixels of a mask, and outlines it, but for the picture's own edges."""
    bounds = mask_bounds(mask)
    if bounds is None:
        return
    left, top = max(0, bounds[0] - 1), max(0, bounds[1] - 1)
    mask = mask[top : bounds[3] + 2, left : bounds[2] + 2]
    inside = mask.copy()
    inside[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    outline = mask & ~inside
    part = np.array(picture.crop((left, top, left + mask.shape[1], top + mask.shape[0])))
    for channel, value in enumerate(
        colour
    ):  # by a table, as floats of a large picture take much memory
        plane = part[..., channel]
        mixed = (0.55 * np.arange(256) + 0.45 * value).astype(np.uint8)
        plane[mask] = mixed[plane[mask]]
        plane[outline] = value
    picture.paste(Image.fromarray(part), (left, top))


def label_map(masks: Iterable[NDArray[np.bool_]], count: int, size: tuple[int, int]) -> Image.Image:
    """Returns a picture of a single mask in black and white, or of several as numbers 1, 2, … on 0.

    Up to 255 masks, the numbers have a palette of colours for people to see.

    Args:
        masks: ``[H, W]`` bool each; where they overlap, the later one is on top.
        count: how many.
        size: (H, W).
    """
    labels = np.zeros(size, np.uint8 if count < 256 else np.uint16)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = 255 if count == 1 else number
    picture = Image.fromarray(labels)
    if 1 < count < 256:
        picture.putpalette([0, 0, 0, *(value for n in range(255) for value in colour_of(n))])
    return picture
