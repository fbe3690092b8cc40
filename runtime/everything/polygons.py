"""Masks as polygons along the edges of their pixels, for readers of COCO that refuse run lengths.

Nothing is smoothed or dropped: filled again, the polygons are the mask. COCO's polygons have no holes,
so a mask with a hole is cut through the hole into two, and each of these has polygons of its own.
"""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Vertex = tuple[int, int]


def mask_polygons(mask: Mask) -> list[list[int]]:
    """Returns COCO's polygons ``[[x0, y0, x1, y1, …], …]`` of a mask ``[H, W]``, in corners of pixels.

    Regions that touch at a corner only have polygons of their own. An empty mask has none.

    Example:
        >>> mask_polygons(np.array([[False, True], [False, True]]))
        [[1, 0, 2, 0, 2, 2, 1, 2]]
    """
    polygons: list[list[int]] = []
    waiting = [(0, mask)]
    while waiting:
        left, part = waiting.pop()
        loops = _loops(part)
        holes = [loop for loop in loops if _area(loop) < 0]
        if not holes:
            polygons += [[n for x, y in loop for n in (x + left, y)] for loop in loops]
            continue
        middle = sorted(x for loop in holes for x, _ in loop)[sum(map(len, holes)) // 2]
        waiting += [(left + middle, part[:, middle:]), (left, part[:, :middle])]
    return polygons


def _area(loop: list[Vertex]) -> float:
    """Returns the area inside a loop; negative where it goes around a hole."""
    x, y = np.array(loop, np.int64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _loops(mask: Mask) -> list[list[Vertex]]:
    """Returns the corners (x, y) of each loop of pixel edges, with the mask on its right-hand side."""
    steps = _steps(mask)
    loops = []
    while steps:
        start = next(iter(steps))
        loop, here, came = [], start, (0, 0)
        while True:
            ways = steps[here]
            # where two pixels touch at a corner, the right turn stays with the same pixel
            turn = next((way for way in ways if way == (-came[1], came[0])), ways[0])
            ways.remove(turn)
            if not ways:
                del steps[here]
            if turn != came:
                loop.append(here)
            here, came = (here[0] + turn[0], here[1] + turn[1]), turn
            if here == start and (here not in steps or (-came[1], came[0]) not in steps[here]):
                break
        if came == (loop[1][0] - loop[0][0], loop[1][1] - loop[0][1]):
            del loop[0]
        loops.append(loop)
    return loops


def _steps(mask: Mask) -> dict[Vertex, list[Vertex]]:
    """Returns, for each corner of pixels on an edge of the mask, the steps of one pixel from there."""
    steps: dict[Vertex, list[Vertex]] = {}
    framed = np.pad(mask, 1).astype(np.int8)
    down, right = np.diff(framed, axis=0), np.diff(framed, axis=1)
    for change, sign, offset, step in (
        (down, 1, (-1, 0), (1, 0)),  # the upper edge of a pixel
        (down, -1, (0, 0), (-1, 0)),
        (right, -1, (0, -1), (0, 1)),  # its right edge
        (right, 1, (0, 0), (0, -1)),
    ):
        for y, x in np.argwhere(change == sign):
            corner = (int(x) + offset[0], int(y) + offset[1])
            steps.setdefault(corner, []).append(step)
    return steps
