"""Measures the mIoU of a student's masks with its teacher's, and of both with the truth.

The protocol follows MobileSAM's paper (arXiv:2306.14289, section 4): a point, a box, and two points at
growing distance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from pocketsam.constants import POINT_DISTANCES
from pocketsam.models import prompted
from pocketsam.models.evaluation import baselines
from pocketsam.models.evaluation.examples import Example
from pocketsam.models.prompted import Mask, Masks, Prompts
from pocketsam.models.sam import Sam
from pocketsam.models.training.answers import Answers, answer_clicks

STUDENT, TEACHER, TRUTH = "student", "teacher", "truth"
POINT, BOX = "point", "box"


@dataclass(frozen=True)
class Score:
    """The IoU of a system's mask with a reference mask at a prompt.

    Attributes:
        image: name of the example.
        against: the reference, ``teacher`` or ``truth``.
        prompt: the prompt type: ``point``, ``box``, or ``N px`` for two points.
        system: ``student``, ``teacher``, or the name of a baseline.
        iou: in 0..1.
    """

    image: str
    against: str
    prompt: str
    system: str
    iou: float


class Row(TypedDict):
    """The mean IoU of a system with a reference at prompts of one type.

    ``against``, ``prompt`` and ``system`` are as in ``Score``; ``masks`` is the number of masks,
    ``miou`` their mean IoU, ``standard_error`` the standard error of the mean.
    """

    against: str
    prompt: str
    system: str
    masks: int
    miou: float
    standard_error: float


@dataclass(frozen=True)
class Panel:
    """A click for the gallery.

    Attributes:
        example: the image.
        click: (x, y) in pixels.
        masks: ``[h, w]`` by the name of the system, or ``truth``.
    """

    example: Example
    click: tuple[float, float]
    masks: dict[str, Mask]


class Clicked:
    """An image, the clicks on it, and the networks' masks at the clicks.

    Where the true masks are known, each object has a click at its deepest pixel. Elsewhere clicks are
    random.

    Args:
        example: the image.
        models: ``student``, and ``teacher`` if there is one, for the same canvas. There must be a
            teacher where the true masks are unknown.
        click_count: number of clicks where the true masks are unknown.
        rng: draws the clicks.

    Attributes:
        example: the image.
        truth: the true masks under the name ``truth``; empty where they are unknown.
        clicks: ``[P, 2]``, (x, y) in pixels.
        masks: ``[P, h, w]`` of each network at the clicks.
    """

    def __init__(
        self, example: Example, models: dict[str, Sam], click_count: int, rng: np.random.Generator
    ) -> None:
        self._models, self.example = models, example
        self._embeddings = {name: prompted.embed(m, example.pixels) for name, m in models.items()}
        has_truth = len(example.truth) > 0
        self.truth = {TRUTH: example.truth} if has_truth else {}
        self.clicks = _clicks(example, click_count, rng)
        self.masks = self.answer(prompted.point_prompts(self.clicks[:, None]))

    def by_object(self) -> Answers | None:
        """Returns the student's answers to the clicks on the true objects; None where none is known."""
        if not self.truth:
            return None
        embedding = self._embeddings[STUDENT]
        return answer_clicks(self._models[STUDENT], embedding, self.truth[TRUTH])

    def answer(self, prompts: Prompts) -> dict[str, Masks]:
        """Returns the masks ``[P, h, w]`` of each network at other prompts on the image."""
        shape = self.example.pixels.shape
        return {
            name: prompted.predict(model, self._embeddings[name], prompts, shape)
            for name, model in self._models.items()
        }


def score_image(clicked: Clicked, rng: np.random.Generator, with_baselines: bool = True) -> list[Score]:
    """Returns the scores of each network's masks, and of baselines, at all prompts of an image.

    The prompts are the clicks; boxes around the true masks, or around the teacher's masks at the clicks
    where the true masks are unknown; and, with a teacher, pairs of a click and a point at a distance.

    Args:
        clicked: the image with its clicks.
        rng: draws the second of two points.
        with_baselines: score the baselines, too.
    """
    example, truth, shape = clicked.example, clicked.truth, clicked.example.pixels.shape
    at_points = dict(clicked.masks)
    boxes = prompted.bounding_box_prompts(truth[TRUTH] if truth else _not_empty(at_points[TEACHER]))
    at_boxes = clicked.answer(boxes)
    if with_baselines:
        at_points |= baselines.at_clicks(example.pixels, clicked.clicks)
        at_boxes["the box itself"] = baselines.filled_boxes(boxes.coords.numpy(), shape)
    scores = _scores(example.name, POINT, at_points, truth)
    scores += _scores(example.name, BOX, at_boxes, truth)
    for distance in POINT_DISTANCES if TEACHER in clicked.masks else ():
        pairs = second_points(clicked.clicks, distance * max(shape) / 1024, shape, rng)
        at_pairs = clicked.answer(prompted.point_prompts(pairs))
        scores += _scores(example.name, f"{distance} px", at_pairs, {})
    return scores


def panels_of(clicked: Clicked) -> list[Panel]:
    """Returns a panel for each click: the true mask, if known, the teacher's and the student's."""
    shown = clicked.truth | {name: clicked.masks[name] for name in reversed(clicked.masks)}
    return [
        Panel(clicked.example, (x, y), {name: masks[i] for name, masks in shown.items()})
        for i, (x, y) in enumerate(clicked.clicks.tolist())
    ]


def _clicks(example: Example, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns clicks ``[P, 2]``: one in each true mask, or ``count`` random ones if there are none."""
    if len(example.truth):
        return np.array([prompted.deepest_pixel(mask) for mask in example.truth], np.float64)
    height, width = example.pixels.shape[:2]
    return rng.uniform(0, (width - 1, height - 1), (count, 2))


def _not_empty(masks: Masks) -> Masks:
    """Returns the masks that have a pixel."""
    return masks[masks.reshape(len(masks), -1).any(axis=-1)]


def _scores(image: str, prompt: str, masks: dict[str, Masks], truth: dict[str, Masks]) -> list[Score]:
    """Returns the scores of each system's masks against the teacher's and the true ones, if any."""
    references = {name: masks[name] for name in (TEACHER,) if name in masks} | truth
    return [
        Score(image, against, prompt, system, value)
        for against, wanted in references.items()
        for system, found in masks.items()
        if system != against
        for value in prompted.iou(torch.from_numpy(found), torch.from_numpy(wanted)).tolist()
    ]


def second_points(
    clicks: NDArray[np.float64], distance: float, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Returns pairs of a click and a random second point at a distance, inside the image.

    Args:
        clicks: ``[P, 2]``, (x, y) in pixels.
        distance: in pixels.
        shape: starts with (h, w).
        rng: draws directions.

    Returns:
        ``[P', 2, 2]``: the clicks that have such a point, and the point.
    """
    angles = rng.uniform(0, 2 * np.pi, (len(clicks), 64))
    steps = distance * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = clicks[:, None] + steps
    inside = np.all((points >= 0) & (points <= (shape[1] - 1, shape[0] - 1)), axis=-1)
    kept = np.any(inside, axis=1)
    chosen = points[np.arange(len(clicks)), inside.argmax(axis=1)]
    return np.stack([clicks, chosen], axis=1)[kept]


def summary(scores: Sequence[Score]) -> list[Row]:
    """Returns a row for each reference, prompt type and system, in the order of the scores."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        groups.setdefault((score.against, score.prompt, score.system), []).append(score.iou)
    return [
        Row(
            against=against,
            prompt=prompt,
            system=system,
            masks=len(values),
            miou=float(np.mean(values)),
            standard_error=float(np.std(values) / np.sqrt(len(values))),
        )
        for (against, prompt, system), values in groups.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text for people: a block for each reference, a line for each system."""
    lines = []
    for against in dict.fromkeys(row["against"] for row in rows):
        block = [row for row in rows if row["against"] == against]
        types = list(dict.fromkeys(row["prompt"] for row in block))
        lines.append(f"mIoU against {against:<12}" + "".join(f"{name:>9}" for name in types))
        for system in dict.fromkeys(row["system"] for row in block):
            found = {row["prompt"]: f"{row['miou']:.3f}" for row in block if row["system"] == system}
            lines.append(f"  {system:<23}" + "".join(f"{found.get(name, ''):>9}" for name in types))
        counts = {row["prompt"]: row["masks"] for row in block}
        lines.append(f"  {'masks':<23}" + "".join(f"{counts[name]:>9}" for name in types))
    return "\n".join(lines)


def miou_with_teacher(examples: Iterable[Example], models: dict[str, Sam]) -> dict[str, float]:
    """Returns the mean IoU of the student's masks with the teacher's, by prompt type.

    Args:
        examples: with true masks.
        models: ``student`` and ``teacher``, for the same canvas.
    """
    rng = np.random.default_rng(0)
    clicked = (Clicked(example, models, 0, rng) for example in examples)
    scores = [s for image in clicked for s in score_image(image, rng, with_baselines=False)]
    rows = summary([s for s in scores if s.against == TEACHER and s.system == STUDENT])
    return {row["prompt"]: row["miou"] for row in rows}
