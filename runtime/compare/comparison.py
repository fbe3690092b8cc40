"""Compares the masks and the speed of systems with a reference system's, at the same prompts.

MobileSAM's paper (Zhang et al. 2023, arXiv:2306.14289, section 4) has these prompts: two foreground
points at growing distance, and the boxes around the reference's masks of single points.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from pocketsam.constants import POINT_DISTANCES
from pocketsam.images import Pixels
from pocketsam.runtime.compare.fastsam import FastSam
from pocketsam.runtime.prompts import is_ambiguous
from pocketsam.runtime.rle import mask_bounds, mask_iou
from pocketsam.runtime.segmenter import Segmenter

Mask = NDArray[np.bool_]
PROMPTS = 5
"""Prompts of each kind per image."""


@dataclass(frozen=True)
class Prompt:
    """Foreground points ``[N, 2]``, or a box ``[4]``; ``kind`` is the row of the table it counts in."""

    kind: str
    points: NDArray[np.float64] | None = None
    box: NDArray[np.float64] | None = None


Answers = tuple[Prompt, list[Mask]]
"""A prompt, and the masks of all systems, the reference's first."""
Report = Callable[[str, Pixels, list[Answers]], None]
"""Receives an image's name, its pixels, and the answers to all prompts."""


class System(Protocol):
    """A system that can be compared; ``precision`` is the number format that it runs in."""

    name: str
    precision: str

    def set_image(self, pixels: Pixels) -> None:
        """Does all that does not depend on a prompt."""

    def segment(self, prompt: Prompt) -> Mask:
        """Returns the mask ``[H, W]`` of a prompt on the image that is set."""


class SamSystem:
    """A bundle, whose answer is the mask that ``pocketsam segment`` gives; see ``is_ambiguous``."""

    def __init__(self, name: str, segmenter: Segmenter) -> None:
        self.name, self._segmenter = name, segmenter
        self.precision = segmenter.manifest.precision

    def set_image(self, pixels: Pixels) -> None:
        """Runs the encoder."""
        self._segmenter.set_image(pixels)

    def segment(self, prompt: Prompt) -> Mask:
        """Returns the mask ``[H, W]`` of a prompt."""
        points = prompt.points
        labels = None if points is None else np.ones(len(points))
        count = 0 if points is None else len(points)
        multimask = self._segmenter.manifest.multimask and is_ambiguous(count, prompt.box is not None)
        scores, low_res = self._segmenter.predict_low_res(
            None if points is None else points[None],
            None if labels is None else labels[None],
            None if prompt.box is None else prompt.box[None],
            multimask_output=multimask,
        )
        return self._segmenter.upscaler.mask(low_res[0, int(scores[0].argmax())])


class FastSamSystem:
    """FastSAM, whose answer is chosen among the masks that it found."""

    def __init__(self, name: str, network: FastSam) -> None:
        self.name, self._network = name, network
        self.precision = "as in its file"

    def set_image(self, pixels: Pixels) -> None:
        """Runs the network, and finds all masks."""
        self._network.set_image(pixels)

    def segment(self, prompt: Prompt) -> Mask:
        """Returns the mask ``[H, W]`` that FastSAM chooses for a prompt."""
        return self._network.predict(prompt.points, None, prompt.box)


class Summary(TypedDict):
    """The precision that ran, mean IoU with the reference by kind of prompt, median seconds."""

    precision: str
    miou: dict[str, float]
    image_s: float
    prompt_s: float


@dataclass
class Tally:
    """What was measured of a system: IoU by kind of prompt, seconds per image and per prompt.

    Attributes:
        precision: that ran.
        ious: by kind of prompt.
        image_s, prompt_s: seconds of each image and of each prompt.
    """

    precision: str
    ious: dict[str, list[float]] = field(default_factory=dict)
    image_s: list[float] = field(default_factory=list)
    prompt_s: list[float] = field(default_factory=list)

    def summary(self) -> Summary:
        """Returns means of the IoU and medians of the seconds."""
        return {
            "precision": self.precision,
            "miou": {kind: float(np.mean(values)) for kind, values in self.ious.items()},
            "image_s": float(np.median(self.image_s)),
            "prompt_s": float(np.median(self.prompt_s)),
        }


def draw_prompts(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[Prompt]:
    """Returns pairs of points at each distance; a distance that does not fit the image is left out.

    Args:
        rng: chooses the points.
        size: (height, width) of the image.
        count: pairs at each distance.
    """
    height, width = size
    found = []
    for distance in POINT_DISTANCES:
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


def draw_boxes(
    reference: System, rng: np.random.Generator, size: tuple[int, int], count: int
) -> list[Prompt]:
    """Returns at most ``count`` boxes, around the reference's masks of single points.

    Args:
        reference: the image is set.
        rng: chooses the points.
        size: (height, width) of the image.
        count: how many points.
    """
    found = []
    for _ in range(count):
        point = rng.uniform((0, 0), (size[1], size[0]))
        bounds = mask_bounds(reference.segment(Prompt("point", point[None])))
        if bounds is not None and bounds[2] > bounds[0] and bounds[3] > bounds[1]:
            x0, y0, x1, y1 = bounds
            found.append(Prompt("box", box=np.array([x0, y0, x1 + 1, y1 + 1], np.float64)))
    return found


def compare(
    reference: System,
    systems: Sequence[System],
    images: Iterable[tuple[str, Pixels]],
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
    report: Report = lambda name, pixels, answers: None,
) -> dict[str, Tally]:
    """Returns what was measured of each system, by its name.

    All systems get the same prompts, image by image, so that a machine that slows down slows all.

    Args:
        reference: its masks count as right.
        systems: the others.
        images: names and ``[H, W, 3]`` uint8; one is held at a time.
        prompts: prompts of each kind per image.
        seed: of the prompts.
        report: called after each image; without answers, no prompt fits in the image, and it does not
            count.
    """
    everyone = (reference, *systems)
    tallies = {system.name: Tally(system.precision) for system in everyone}
    for number, (name, pixels) in enumerate(images):
        rng = np.random.default_rng([seed, number])
        size = (pixels.shape[0], pixels.shape[1])
        seconds = []
        for system in everyone:
            start = time.perf_counter()
            system.set_image(pixels)
            seconds.append(time.perf_counter() - start)
        drawn = [*draw_prompts(rng, size, prompts), *draw_boxes(reference, rng, size, prompts)]
        if not drawn:  # of an image a few pixels wide
            report(name, pixels, [])
            continue
        for system, taken in zip(everyone, seconds, strict=True):
            tallies[system.name].image_s.append(taken)
        answers: list[Answers] = []
        for prompt in drawn:
            masks = []
            for system in everyone:
                start = time.perf_counter()
                masks.append(system.segment(prompt))
                tallies[system.name].prompt_s.append(time.perf_counter() - start)
            for system, mask in zip(everyone, masks, strict=True):
                tallies[system.name].ious.setdefault(prompt.kind, []).append(mask_iou(masks[0], mask))
            answers.append((prompt, masks))
        report(name, pixels, answers)
    return tallies
