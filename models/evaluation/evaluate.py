"""mIoU at the same prompts: a student's masks against its teacher's, and both against the truth.

The protocol follows MobileSAM's paper (arXiv:2306.14289, section 4): a point, a box, and two points at
growing distance. A point or a box is answered by the best-scored of the three masks, two points by the
mask made for longer prompts, as ``SamOnnxModel.select_masks`` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pocketsam.errors import ImageError
from pocketsam.models import prompted
from pocketsam.models.evaluation import baselines
from pocketsam.models.images import load_rgb, load_truth, scaled, to_pixel_values
from pocketsam.models.prompted import Mask, Prompts
from pocketsam.models.sam import Sam
from pocketsam.models.training.scenes import MIN_AREA, Photo, generate
from pocketsam.models.training.textures import HELD_BACK, load_textures

HELD_BACK_SEED = 10_000_000
"""Scenes with seeds from here on belong to evaluation."""

DISTANCES = (100, 200, 300, 400, 500)
"""Between two points, in pixels of a canvas of 1024."""

STUDENT, TEACHER, TRUTH = "student", "teacher", "truth"
POINT, BOX = "point", "box"


@dataclass(frozen=True)
class Example:
    """An image ``[h, w, 3]`` uint8 whose longest side is the canvas, and true masks ``[N, h, w]``.

    Where N is 0 nothing is known of the truth.
    """

    name: str
    pixels: NDArray[np.uint8]
    truth: Mask


@dataclass(frozen=True)
class Score:
    """The IoU of one system's mask with a reference (``teacher`` or ``truth``) at one prompt."""

    image: str
    against: str
    prompt: str
    system: str
    iou: float


@dataclass(frozen=True)
class Panel:
    """One click for the gallery: the image, (x, y), and masks ``[h, w]`` by whose they are."""

    example: Example
    click: tuple[float, float]
    masks: dict[str, Mask]


def scene_examples(count: int, size: int, photos: Sequence[Photo] = ()) -> Iterator[Example]:
    """Scenes that no training run sees, of the held-back textures and of photographs, if any."""
    textures = load_textures(HELD_BACK)
    for number in range(count):
        scene = generate(HELD_BACK_SEED + number, size, textures, photos)
        yield Example(f"scene {number}", scene.image, scene.masks)


def folder_examples(
    paths: Iterable[Path], truth: Path | None, size: int, skipped: list[str]
) -> Iterator[Example]:
    """Image files, with the label maps of a folder as truth.

    Args:
        paths: images that can be read.
        truth: folder of label maps, ``STEM.png`` of the image's size: 0 is no object, and every other
            value one.
        size: of the canvas.
        skipped: gets a line for each image without a usable label map.
    """
    for path in paths:
        image = load_rgb(path)
        pixels = scaled(image, size)
        masks = np.zeros((0, *pixels.shape[:2]), bool)
        if truth is not None:
            try:
                labels = load_truth(truth / f"{path.stem}.png", path.name, image)
                masks = _masks_of(labels, pixels.shape[:2])
            except ImageError as error:
                skipped.append(str(error))
                continue
        yield Example(path.name, pixels, masks)


def _masks_of(labels: NDArray[np.int64], shape: tuple[int, ...]) -> Mask:
    """``[N, h, w]``: the objects of a label map that are large enough, scaled to ``shape``."""
    height, width = labels.shape
    rows = (np.arange(shape[0]) + 0.5) * height / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * width / shape[1]
    small = labels[rows.astype(int)[:, None], columns.astype(int)]
    values, areas = np.unique(small, return_counts=True)
    wanted = values[(values != 0) & (areas >= MIN_AREA * small.size)]
    return small == wanted[:, None, None]


@torch.inference_mode()
def embed(sam: Sam, pixels: NDArray[np.uint8]) -> Tensor:
    """``[1, 256, S/16, S/16]`` of an image as in ``Example``."""
    device = next(sam.parameters()).device
    return sam.encode(to_pixel_values(pixels, sam.image_size)[None].to(device))


@torch.inference_mode()
def answer(sam: Sam, embedding: Tensor, prompts: Prompts, shape: tuple[int, ...]) -> Mask:
    """The masks ``[P, h, w]`` that a user gets; P prompts of N points as in ``prompted.Prompts``."""
    height, width = shape[:2]
    found = []
    for first in range(0, len(prompts.coords), 16):
        coords, labels = (x[first : first + 16] for x in (prompts.coords, prompts.labels))
        some = Prompts(coords, labels).to(embedding.device)
        low, scores = prompted.decode(sam, embedding, some)
        best = 1 + scores[:, 1:].argmax(1) if coords.shape[1] < 3 else scores.new_zeros(len(low)).long()
        chosen = low[torch.arange(len(low)), best].unsqueeze(1)
        side = (sam.image_size, sam.image_size)
        full = F.interpolate(chosen, side, mode="bilinear", align_corners=False)
        found.append((full[:, 0, :height, :width] > 0).cpu())
    return torch.cat(found).numpy() if found else np.zeros((0, height, width), bool)


def point_prompts(clicks: NDArray[np.float64]) -> Prompts:
    """``[P, n, 2]`` foreground points, with the pad that goes with them."""
    count, points = clicks.shape[:2]
    coords = np.concatenate([clicks, np.zeros((count, 1, 2))], axis=1)
    labels = np.concatenate([np.ones((count, points)), -np.ones((count, 1))], axis=1)
    return Prompts(torch.from_numpy(coords).float(), torch.from_numpy(labels).float())


def box_prompts(masks: Mask) -> Prompts:
    """The boxes of masks, none of which is empty."""
    boxes = np.zeros((len(masks), 2, 2), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        box[:] = [[xs[0], ys[0]], [xs[-1] + 1, ys[-1] + 1]]
    return Prompts(torch.from_numpy(boxes), torch.tensor([[2.0, 3.0]]).repeat(len(masks), 1))


def click_in(mask: Mask) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the mask's edge and the image's, where a person clicks."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def second_points(
    clicks: NDArray[np.float64], distance: float, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """``[P', 2, 2]``: those clicks that have a place at this distance inside the image, and it."""
    angles = rng.uniform(0, 2 * np.pi, (len(clicks), 64))
    steps = distance * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    places = clicks[:, None] + steps
    inside = np.all((places >= 0) & (places <= (shape[1] - 1, shape[0] - 1)), axis=-1)
    kept = np.any(inside, axis=1)
    chosen = places[np.arange(len(clicks)), inside.argmax(axis=1)]
    return np.stack([clicks, chosen], axis=1)[kept]


def compare(
    example: Example,
    models: dict[str, Sam],
    prompts: int,
    rng: np.random.Generator,
    with_baselines: bool = True,
) -> tuple[list[Score], list[Panel]]:
    """Scores of one image.

    With true masks, each is asked for by a click at its deepest pixel and by its box. Without, the
    clicks are drawn at random, and the boxes are those of the teacher's answers to them.

    Args:
        models: ``student``, and ``teacher`` if there is one, for one canvas.
        prompts: clicks in an image without true masks.
    """
    height, width = shape = example.pixels.shape[:2]
    embeddings = {name: embed(model, example.pixels) for name, model in models.items()}

    def answers(asked: Prompts) -> dict[str, Mask]:
        return {name: answer(m, embeddings[name], asked, shape) for name, m in models.items()}

    known = len(example.truth) > 0
    clicks = (
        np.array([click_in(mask) for mask in example.truth], np.float64)
        if known
        else rng.uniform(0, (width - 1, height - 1), (prompts, 2))
    )
    at_points = answers(point_prompts(clicks[:, None]))
    targets = example.truth
    if not known:
        guessed = at_points[TEACHER]
        targets = guessed[guessed.reshape(len(guessed), -1).any(axis=-1)]
    boxes = box_prompts(targets)
    at_boxes = answers(boxes)
    if with_baselines:
        at_points |= baselines.at_clicks(example.pixels, clicks)
        at_boxes["the box itself"] = baselines.filled_boxes(boxes.coords.numpy(), shape)
    asked = {POINT: at_points, BOX: at_boxes}
    if TEACHER in models:
        for distance in DISTANCES:
            reach = distance * max(shape) / 1024
            pairs = second_points(clicks, reach, shape, rng)
            asked[f"{distance} px"] = answers(point_prompts(pairs))
    scores = []
    for kind, masks in asked.items():
        references = {TEACHER: masks[TEACHER]} if TEACHER in models else {}
        if known and kind in (POINT, BOX):
            references[TRUTH] = example.truth
        for against, wanted in references.items():
            for system, found in masks.items():
                if system != against:
                    overlaps = prompted.iou(torch.from_numpy(found), torch.from_numpy(wanted))
                    scores += [Score(example.name, against, kind, system, v) for v in overlaps.tolist()]
    truth = {TRUTH: example.truth} if known else {}
    drawn = {**truth, **{name: at_points[name] for name in reversed(models)}}
    panels = [
        Panel(example, (x, y), {name: masks[i] for name, masks in drawn.items()})
        for i, (x, y) in enumerate(clicks.tolist())
    ]
    return scores, panels


def summary(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Mean IoU for each reference, prompt and system: ``miou``, of ``masks`` masks, ± ``error``."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        groups.setdefault((score.against, score.prompt, score.system), []).append(score.iou)
    return [
        {
            **dict(zip(("against", "prompt", "system"), key, strict=True)),
            "masks": len(values),
            "miou": float(np.mean(values)),
            "error": float(np.std(values) / np.sqrt(len(values))),
        }
        for key, values in groups.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary for people: a block for each reference, a line for each system."""
    lines = []
    for against in dict.fromkeys(row["against"] for row in rows):
        block = [row for row in rows if row["against"] == against]
        kinds = list(dict.fromkeys(row["prompt"] for row in block))
        lines.append(f"mIoU against {against:<12}" + "".join(f"{kind:>9}" for kind in kinds))
        for system in dict.fromkeys(row["system"] for row in block):
            found = {row["prompt"]: f"{row['miou']:.3f}" for row in block if row["system"] == system}
            lines.append(f"  {system:<23}" + "".join(f"{found.get(kind, ''):>9}" for kind in kinds))
        counts = {row["prompt"]: row["masks"] for row in block}
        lines.append(f"  {'masks':<23}" + "".join(f"{counts[kind]:>9}" for kind in kinds))
    return "\n".join(lines)


def miou(examples: Iterable[Example], models: dict[str, Sam], against: str) -> dict[str, float]:
    """Mean IoU of the student by kind of prompt, over examples with true masks.

    Args:
        models: as in ``compare``.
        against: ``truth``, or ``teacher`` if there is one.
    """
    rng = np.random.default_rng(0)
    scores = [s for e in examples for s in compare(e, models, 0, rng, with_baselines=False)[0]]
    rows = summary([s for s in scores if s.against == against and s.system == STUDENT])
    return {row["prompt"]: row["miou"] for row in rows}
