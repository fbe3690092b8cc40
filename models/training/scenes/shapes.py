"""The outlines of objects in generated scenes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.bool_]
Rng = np.random.Generator


def draw_shape(
    rng: Rng, size: int, centre: tuple[float, float] | None = None, shrink: float = 1.0
) -> Mask:
    """Returns ``[S, S]`` bool: a shape of random type and size; it may lie outside the canvas.

    Args:
        rng: decides everything.
        size: S.
        centre: (x, y) in pixels; None draws it at random.
        shrink: factor of the size.
    """
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    x, y = centre or (rng.uniform(0.05, 0.95) * size, rng.uniform(0.05, 0.95) * size)
    radius = size * shrink * np.exp(rng.uniform(np.log(0.04), np.log(0.38)))
    drawers = (_blob, _blob, _polygon, _ellipse, _box, _ring, _curve, _leaf, _cluster)
    drawers[rng.integers(len(drawers))](rng, draw, x, y, float(radius))
    return np.asarray(image) > 0


def _around(
    x: float, y: float, radii: NDArray[np.float64], angles: NDArray[np.float64]
) -> list[tuple[float, float]]:
    """Returns the points at these radii and angles around (x, y)."""
    return list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True))


def _blob(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws a closed curve whose radius is a sum of random waves."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radii = np.ones(72)
    for k in range(1, 7):
        radii += rng.normal(0, 0.35 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    stretch, turn = rng.uniform(0.5, 1.0), rng.uniform(0, np.pi)
    radii = radius * np.clip(radii, 0.2, 2) * (1 - (1 - stretch) * np.cos(angles - turn) ** 2)
    draw.polygon(_around(x, y, radii, angles), 255)


def _polygon(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws a star-shaped polygon of a few corners."""
    count = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    draw.polygon(_around(x, y, radius * rng.uniform(0.4, 1.2, count), angles), 255)


def _ellipse(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws a rotated ellipse."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.25, 1)
    u, v = radius * np.cos(angles), radius * flat * np.sin(angles)
    points = zip(
        x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), strict=True
    )
    draw.polygon(list(points), 255)


def _box(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws a rectangle, mostly upright."""
    u, v, turn = radius, radius * rng.uniform(0.15, 1), rng.normal(0, 0.4)
    corners = [(-u, -v), (u, -v), (u, v), (-u, v)]
    cos, sin = np.cos(turn), np.sin(turn)
    draw.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners], 255)


def _ring(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws an ellipse with a hole."""
    inner, flat = radius * rng.uniform(0.4, 0.85), rng.uniform(0.6, 1)
    draw.ellipse((x - radius, y - radius * flat, x + radius, y + radius * flat), fill=255)
    draw.ellipse((x - inner, y - inner * flat, x + inner, y + inner * flat), fill=0)


def _curve(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws a thin curve: a stem, a cable, a leg."""
    steps = np.linspace(-1, 1, 24)
    turn, bend = rng.uniform(0, np.pi), rng.normal(0, 0.5, 2)
    u, v = 1.6 * radius * steps, radius * (bend[0] * steps**2 + bend[1] * steps**3)
    points = zip(
        x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), strict=True
    )
    draw.line(list(points), fill=255, width=max(2, int(radius * rng.uniform(0.06, 0.3))), joint="curve")


def _leaf(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws a leaf: pointed at both ends."""
    steps = np.linspace(0, 1, 20)
    width = radius * rng.uniform(0.2, 0.7) * np.sin(np.pi * steps) ** rng.uniform(0.6, 1.5)
    u = np.r_[steps, steps[::-1]] * 2 * radius - radius
    v, turn = np.r_[width, -width[::-1]], rng.uniform(0, 2 * np.pi)
    points = zip(
        x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn), strict=True
    )
    draw.polygon(list(points), 255)


def _cluster(rng: Rng, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draws an object of several lobes: body, head and limbs."""
    for _ in range(rng.integers(2, 6)):
        dx, dy = rng.normal(0, 0.5 * radius, 2)
        lobe = (_ellipse, _blob, _curve)[rng.integers(3)]
        lobe(rng, draw, x + dx, y + dy, radius * rng.uniform(0.3, 0.7))


def draw_half_plane(rng: Rng, size: int) -> Mask:
    """Returns ``[S, S]`` bool: what lies below a horizon that is tilted and perhaps wavy."""
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.normal(np.pi / 2, 0.3)
    waves = 0.03 * np.sin(x * rng.uniform(2, 20) + rng.uniform(0, 6)) * rng.integers(0, 2)
    below: Mask = (x - 0.5) * np.cos(angle) + (y + waves - rng.uniform(0.25, 0.75)) * np.sin(angle) > 0
    return below


def point_in(rng: Rng, mask: Mask) -> tuple[float, float]:
    """Returns (x, y) of a random pixel of a mask that is not empty."""
    ys, xs = np.nonzero(mask)
    i = rng.integers(len(ys))
    return float(xs[i]), float(ys[i])
