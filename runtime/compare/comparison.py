"""``pocketsam compare``: whose masks are a reference system's, at the same prompts, and how fast.

Prompts as in MobileSAM's paper (Zhang et al. 2023, arXiv:2306.14289, section 4): two foreground points
at growing distance; and the boxes around the reference's answers to single points. Any system that has
a bundle can be the reference or a rival, and FastSAM as an ONNX file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketsam import terminal
from pocketsam.errors import PocketSamError
from pocketsam.files import make_folder, write_file
from pocketsam.runtime.compare.fastsam import FastSam
from pocketsam.runtime.image import find_images, load_image
from pocketsam.runtime.machine import describe_machine
from pocketsam.runtime.masks import mask_bounds
from pocketsam.runtime.overlay import draw_overlay
from pocketsam.runtime.segmenter import Segmenter

DISTANCES = (100, 200, 300, 400, 500)
"""Between the two points, in pixels of an image whose longest side is 1024, as in the paper."""
TILE = 320
"""Longest side of a picture in the gallery."""


@dataclass(frozen=True)
class Prompt:
    """One question: foreground points ``[N, 2]``, or a box ``[4]``."""

    kind: str
    points: NDArray[np.float64] | None = None
    box: NDArray[np.float64] | None = None


class System(Protocol):
    """What can be compared."""

    name: str

    def set_image(self, pixels: NDArray[np.uint8]) -> None:
        """Does all that does not depend on a prompt."""

    def answer(self, prompt: Prompt) -> NDArray[np.bool_]:
        """The mask ``[H, W]``."""


class SamSystem:
    """A bundle; of three masks it gives the one that it scores best."""

    def __init__(self, name: str, segmenter: Segmenter) -> None:
        self.name, self._segmenter = name, segmenter

    def set_image(self, pixels: NDArray[np.uint8]) -> None:
        """The encoder."""
        self._segmenter.set_image(pixels)

    def answer(self, prompt: Prompt) -> NDArray[np.bool_]:
        """The decoder."""
        if prompt.box is not None:
            masks, scores, _ = self._segmenter.predict(box=prompt.box)
        else:
            assert prompt.points is not None
            masks, scores, _ = self._segmenter.predict(prompt.points, np.ones(len(prompt.points)))
        best: NDArray[np.bool_] = masks[int(scores.argmax())]
        return best


class FastSamSystem:
    """FastSAM; a prompt chooses among the masks that it found."""

    def __init__(self, name: str, network: FastSam) -> None:
        self.name, self._network = name, network

    def set_image(self, pixels: NDArray[np.uint8]) -> None:
        """The network, and all masks."""
        self._network.set_image(pixels)

    def answer(self, prompt: Prompt) -> NDArray[np.bool_]:
        """A choice."""
        return self._network.predict(prompt.points, None, prompt.box)


@dataclass
class Tally:
    """What was measured of one system: IoU by kind of prompt, seconds per image and per prompt."""

    ious: dict[str, list[float]] = field(default_factory=dict)
    image_s: list[float] = field(default_factory=list)
    prompt_s: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Means of the IoU, medians of the seconds."""
        return {
            "miou": {kind: float(np.mean(values)) for kind, values in self.ious.items()},
            "image_s": float(np.median(self.image_s)),
            "prompt_s": float(np.median(self.prompt_s)),
        }


def draw_prompts(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[Prompt]:
    """``count`` pairs of points at each distance, inside an image of (height, width).

    A distance that does not fit the image is left out.
    """
    height, width = size
    found = []
    for distance in DISTANCES:
        length = distance * max(size) / 1024
        for _ in range(count):
            for _ in range(100):  # attempts
                first = rng.uniform((0, 0), (width, height))
                angle = rng.uniform(0, 2 * np.pi)
                second = first + length * np.array([np.cos(angle), np.sin(angle)])
                if (second >= 0).all() and (second < (width, height)).all():
                    found.append(Prompt(f"two points {distance}", np.stack([first, second])))
                    break
    return found


def boxes_of(
    reference: System, rng: np.random.Generator, size: tuple[int, int], count: int
) -> list[Prompt]:
    """``count`` boxes, around what the reference answers to single points."""
    found = []
    for _ in range(count):
        point = rng.uniform((0, 0), (size[1], size[0]))
        bounds = mask_bounds(reference.answer(Prompt("point", point[None])))
        if bounds is not None and bounds[2] > bounds[0] and bounds[3] > bounds[1]:
            x0, y0, x1, y1 = bounds
            found.append(Prompt("box", box=np.array([x0, y0, x1 + 1, y1 + 1], np.float64)))
    return found


def compare(
    reference: System,
    systems: Sequence[System],
    images: Sequence[tuple[str, NDArray[np.uint8]]],
    count: int = 5,
    seed: int = 0,
    gallery: Path | None = None,
) -> dict[str, Tally]:
    """Asks all systems the same, image by image, so that a machine that slows down slows all of them.

    Args:
        reference: whose masks count as right.
        systems: their rivals.
        images: names and ``[H, W, 3]`` uint8.
        count: prompts of each kind per image.
        seed: of the prompts.
        gallery: a folder for a picture of each image: a box's and a pair's answers of all systems.
    """
    everyone = (reference, *systems)
    tallies = {one.name: Tally() for one in everyone}
    for number, (name, pixels) in enumerate(images):
        rng = np.random.default_rng([seed, number])
        size = (pixels.shape[0], pixels.shape[1])
        for one in everyone:
            start = time.perf_counter()
            one.set_image(pixels)
            tallies[one.name].image_s.append(time.perf_counter() - start)
        prompts = [*draw_prompts(rng, size, count), *boxes_of(reference, rng, size, count)]
        shown: dict[str, list[NDArray[np.bool_]]] = {}
        for prompt in prompts:
            answers = []
            for one in everyone:
                start = time.perf_counter()
                answers.append(one.answer(prompt))
                tallies[one.name].prompt_s.append(time.perf_counter() - start)
            for one, mask in zip(everyone, answers, strict=True):
                tallies[one.name].ious.setdefault(prompt.kind, []).append(iou(answers[0], mask))
            shown.setdefault(prompt.kind, answers)
        if gallery is not None:
            draw_gallery(gallery / f"{Path(name).stem}.png", pixels, prompts, shown)
        terminal.say(f"{number + 1}/{len(images)} {name}: {len(prompts)} prompts")
    return tallies


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Of two masks; 1 if both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def draw_gallery(
    path: Path,
    pixels: NDArray[np.uint8],
    prompts: Sequence[Prompt],
    shown: dict[str, list[NDArray[np.bool_]]],
) -> None:
    """A row for the first prompt of each kind, a column for each system, the reference first."""
    rows = []
    for kind, masks in shown.items():
        prompt = next(one for one in prompts if one.kind == kind)
        points = [] if prompt.points is None else [(float(x), float(y), 1) for x, y in prompt.points]
        boxes = [] if prompt.box is None else [tuple(map(float, prompt.box))]
        tiles = []
        for mask in masks:
            tile = draw_overlay(pixels, [mask], points, boxes)  # type: ignore[arg-type]
            tile.thumbnail((TILE, TILE))
            tiles.append(np.asarray(tile))
        rows.append(np.concatenate(tiles, axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    make_folder(path.parent)
    write_file(path, lambda work: picture.save(work))


def add_compare(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "compare",
        help="whose masks are a reference system's, at the same prompts, and how fast",
        description="Pairs of points at growing distance, and boxes; mean IoU with the reference.",
    )
    parser.add_argument("images", help="an image, or a folder of them")
    parser.add_argument("--reference", required=True, metavar="BUNDLE", help="such as one of SAM ViT-H")
    parser.add_argument("--bundle", action="append", default=[], metavar="[NAME=]BUNDLE")
    parser.add_argument(
        "--fastsam", action="append", default=[], metavar="[NAME=]FILE.onnx", help="FastSAM, YOLOv8-seg"
    )
    parser.add_argument("--prompts", type=int, default=5, metavar="N", help="of each kind, per image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gallery", type=Path, metavar="DIR", help="for a picture of each image")
    parser.add_argument("--json", action="store_true")
    terminal.add_device_options(parser)
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> None:
    """Runs the command."""
    if args.prompts < 1:
        raise PocketSamError(f"--prompts {args.prompts}: at least 1")
    if not args.bundle and not args.fastsam:
        raise PocketSamError("nothing to compare with the reference: give --bundle or --fastsam")
    device = terminal.providers(args), args.threads
    reference = SamSystem("reference", Segmenter(args.reference, *device))
    systems: list[System] = []
    for text in args.bundle:
        name, path = named(text)
        systems.append(SamSystem(name, Segmenter(path, *device)))
    for text in args.fastsam:
        name, path = named(text)
        systems.append(FastSamSystem(name, FastSam(path, *device)))
    names = [one.name for one in (reference, *systems)]
    if len(set(names)) < len(names):
        raise PocketSamError(f"two systems of one name ({', '.join(names)}): give NAME=PATH")
    images = [(file.name, load_image(file)) for file in find_images(args.images)]
    tallies = compare(reference, systems, images, args.prompts, args.seed, args.gallery)
    result = {name: tally.to_json() for name, tally in tallies.items()}
    if args.json:
        terminal.print_json({"machine": describe_machine(), "systems": result})
    else:
        print(table(result))


def named(text: str) -> tuple[str, str]:
    """NAME=PATH, or a path that is its own name."""
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).name or text, text)


def table(result: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each system, a column for each kind of prompt."""
    kinds = list(next(iter(result.values()))["miou"])
    lines = [f"| system | {' | '.join(kinds)} | image ms | prompt ms |"]
    lines.append("|---|" + "---|" * (len(kinds) + 2))
    for name, row in result.items():
        ious = " | ".join(f"{row['miou'][kind]:.3f}" for kind in kinds)
        lines.append(f"| {name} | {ious} | {1e3 * row['image_s']:.0f} | {1e3 * row['prompt_s']:.0f} |")
    return "\n".join(lines)
