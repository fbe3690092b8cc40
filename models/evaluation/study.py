"""Repeats the comparisons of MobileSAM's paper at toy scale: ``make study``, an hour on two cores.

It compares decoupled, semi-coupled and coupled distillation at equal compute, finetuning of the
decoder, and batch size by iterations (arXiv:2306.14289, tables 2 to 4), each with several seeds. The
canvas is 128 pixels, the images are generated scenes, the teacher is this package's own weights,
trained on for that canvas; the students begin at random weights. Everything runs through ``distill``
and ``evaluate``. A study that was killed keeps what is complete, and resumes.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pocketsam import terminal
from pocketsam.files import make_folder, write_bytes, write_file
from pocketsam.models.checkpoint import DEFAULT_FILE, Loaded, load_model
from pocketsam.models.evaluation.evaluate import BOX, POINT, STUDENT, TEACHER, miou_with_teacher
from pocketsam.models.evaluation.examples import Example, scene_examples
from pocketsam.models.training.distill import (
    STUDENT_NAME,
    distill,
    freeze_others,
    loss_of,
    new_student,
)
from pocketsam.models.training.photographs.photo import TrainingPhoto
from pocketsam.models.training.photographs.prepare import PhotoSet
from pocketsam.models.training.photographs.recipe import Canvas, PhotoRecipe
from pocketsam.models.training.photographs.train import train
from pocketsam.models.training.plots import draw_points
from pocketsam.models.training.recipe import MODES, Recipe
from pocketsam.models.training.run import flush_denormals, has_bfloat16
from pocketsam.models.training.scenes import Scene, generate
from pocketsam.models.training.textures import load_textures

PAPER = {
    "coupled": 0.72,
    "decoupled": 0.75,
    "batch 4, 1x iterations": 0.7057,
    "batch 8, 1x iterations": 0.7286,
    "batch 8, 2x iterations": 0.7447,
}
"""mIoU with SAM's masks in the paper, for the trials that it has too; 1x is 50,000 iterations there."""


_TEACHER_SCENES = 300
"""Scenes that the teacher is trained on."""


@dataclass(frozen=True)
class Plan:
    """The size of the study.

    Attributes:
        image_size: side of the canvas in pixels.
        images: number of scenes to learn from.
        held_out: number of scenes to measure on.
        teacher_minutes: of the teacher's training.
        batch: images for each step.
        steps: of the decoupled run; the other methods get as many steps as take the same time.
        finetune: share of that time for the decoder, in the trial that finetunes it.
        seeds: of the runs; each trial has a run for each.
    """

    image_size: int = 128
    images: int = 1500
    held_out: int = 60
    teacher_minutes: float = 5.0
    batch: int = 8
    steps: int = 600
    finetune: float = 0.25
    seeds: tuple[int, ...] = (0, 1, 2)


LEARNING_RATES = {"decoupled": 2e-3, "semi-coupled": 5e-4, "coupled": 5e-4, "finetune": 5e-4}
"""By mode. For decoupled and coupled, the better of 5e-4 and 2e-3 in runs of a third of the length with
another seed; the other modes were not tried with both.
"""


@dataclass(frozen=True)
class Trial:
    """A row of the table.

    Attributes:
        group: the table's section.
        name: of the row.
        recipe: the distillation that is measured.
        start: the distillation whose student it starts from, if any.
    """

    group: str
    name: str
    recipe: Recipe
    start: Recipe | None = None


def trials(plan: Plan, seconds: Mapping[str, float]) -> list[Trial]:
    """Returns what is trained for each seed.

    Args:
        plan: the size of the study.
        seconds: for a step, by mode.
    """

    def recipe(mode: str, batch: int, steps: float) -> Recipe:
        count = max(1, round(steps))
        return Recipe(
            mode=mode,
            image_size=plan.image_size,
            steps=count,
            batch=batch,
            learning_rate=LEARNING_RATES[mode],
            warmup=max(1, count // 20),
        )

    def at(mode: str, share: float = 1.0) -> Recipe:
        equal = plan.steps * seconds["decoupled"] / seconds[mode]
        return recipe(mode, plan.batch, share * equal)

    decoupled, few = at("decoupled"), plan.batch // 2
    methods, sizes = "methods at equal compute", "batch and iterations, decoupled"
    return [
        Trial(methods, "decoupled", decoupled),
        Trial(methods, "semi-coupled", at("semi-coupled")),
        Trial(methods, "coupled", at("coupled")),
        Trial(methods, f"decoupled for {1 - plan.finetune:.0%}", at("decoupled", 1 - plan.finetune)),
        Trial(
            methods,
            "the same, then its decoder finetuned",
            at("finetune", plan.finetune),
            at("decoupled", 1 - plan.finetune),
        ),
        Trial(sizes, f"batch {few}, 1x iterations", recipe("decoupled", few, plan.steps / 2)),
        Trial(sizes, f"batch {plan.batch}, 1x iterations", at("decoupled", 0.5)),
        Trial(sizes, f"batch {plan.batch}, 2x iterations", decoupled),
    ]


def seconds_per_step(teacher: Loaded, plan: Plan) -> dict[str, float]:
    """Returns the seconds of a step by mode, forward and backward.

    They are the median of rounds in which all modes take turns.
    """
    size, side = plan.image_size, plan.image_size // 16
    batch = (torch.randn(plan.batch, 3, size, size), torch.randn(plan.batch, 256, side, side))
    students = {}
    for mode in MODES:
        students[mode] = new_student(teacher.model, None, size).train()
        freeze_others(students[mode], MODES[mode])
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(12):
        for mode, student in students.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                recipe = Recipe(mode=mode, image_size=size, batch=plan.batch)
                loss = loss_of(recipe, student.image_encoder, student, teacher.model, batch, number)
            torch.autograd.backward(loss)
            taken[mode].append(time.perf_counter() - began)
    return {mode: float(np.median(values[2:])) for mode, values in taken.items()}


def paint_images(folder: Path, plan: Plan) -> list[Path]:
    """Paints scenes into PNG files, and returns their paths; existing files are kept."""
    make_folder(folder)
    textures = load_textures()
    paths = []
    for number in range(plan.images):
        path = folder / f"{number:05d}.png"
        if not path.exists():
            write_file(path, Image.fromarray(generate(number, plan.image_size, textures).image).save)
        terminal.show_progress(f"scenes: {number + 1} of {plan.images}", number + 1 == plan.images)
        paths.append(path)
    return paths


def train_teacher(folder: Path, plan: Plan) -> Path:
    """Trains the shipped weights on for the study's canvas, and returns the path of the result."""
    canvas = (Canvas(plan.image_size, 2 * plan.batch, 8),)
    recipe = PhotoRecipe(first=canvas, then=canvas, ema=0.99)
    textures = load_textures()
    photos = [
        _as_photo(str(number), generate(number, plan.image_size, textures))
        for number in range(min(plan.images, _TEACHER_SCENES))
    ]
    hours = plan.teacher_minutes / 60
    return train(recipe, folder, PhotoSet("scenes", photos, []), hours=hours, start=str(DEFAULT_FILE))


def _as_photo(name: str, scene: Scene) -> TrainingPhoto:
    """Returns a scene as a photograph to train on: all its masks, and a single region."""
    basins = np.zeros(scene.image.shape[:2], np.uint16)
    merged = np.zeros((1, 1), np.uint16)
    return TrainingPhoto(name, scene.image, basins, merged, scene.masks.astype(np.uint16))


def measure(path: Path, teacher: Loaded, examples: Sequence[Example], plan: Plan) -> dict[str, float]:
    """Returns a student's mIoU with its teacher at a ``point``, a ``box``, and ``two points``."""
    models = {STUDENT: load_model(path, plan.image_size).model, TEACHER: teacher.model}
    by_type = miou_with_teacher(examples, models)
    pairs = [value for name, value in by_type.items() if name.endswith("px")]
    return {POINT: by_type[POINT], BOX: by_type[BOX], "two points": float(np.mean(pairs))}


def study(folder: Path, plan: Plan) -> dict[str, Any]:
    """Runs what is missing, writes all figures to ``study.json``, and returns them.

    Returns:
        ``plan``, ``seconds_per_step`` by mode, and ``trials``: for each its group, name, recipe and
        ``miou``, a list with the figures of ``measure`` for each seed.
    """
    weights = hashlib.sha256(DEFAULT_FILE.read_bytes()).hexdigest()[:12]
    work = folder / weights  # what was trained from other weights is not taken for these
    make_folder(work)
    teacher = load_model(train_teacher(work / "teacher", plan), plan.image_size)
    timed = work / "seconds.json"
    if not timed.exists():
        write_bytes(timed, json.dumps(seconds_per_step(teacher, plan)).encode())
    seconds = json.loads(timed.read_text())
    images = paint_images(folder / "images", plan)
    examples = list(scene_examples(plan.held_out, plan.image_size))

    def run(recipe: Recipe, start: Path | None) -> Path:
        name = f"{recipe.mode}-batch{recipe.batch}-steps{recipe.steps}-seed{recipe.seed}"
        student = work / "runs" / name / STUDENT_NAME
        if not student.exists():
            first = None if start is None else str(start)
            cache = work / "cache"
            distill(images, teacher, student.parent, recipe, cache_folder=cache, start=first)
        return student

    report: dict[str, Any] = {"plan": asdict(plan), "seconds_per_step": seconds, "trials": []}
    for trial in trials(plan, seconds):
        figures = []
        for seed in plan.seeds:
            start = None if trial.start is None else run(replace(trial.start, seed=seed), None)
            student = run(replace(trial.recipe, seed=seed), start)
            figures.append(measure(student, teacher, examples, plan))
        about = {"group": trial.group, "name": trial.name, "recipe": asdict(trial.recipe)}
        report["trials"].append({**about, "miou": figures})
    write_bytes(folder / "study.json", json.dumps(report, indent=1).encode())
    return report


def table(report: dict[str, Any]) -> str:
    """Returns a study's figures as a Markdown table: mean ± standard deviation over the seeds."""
    lines = ["| | steps | point | box | two points | paper |", "|---|---|---|---|---|---|"]
    group = ""
    for trial in report["trials"]:
        if trial["group"] != group:
            group = trial["group"]
            lines.append(f"| **{group}** | | | | | |")
        cells = [trial["name"], str(trial["recipe"]["steps"])]
        for prompt in (POINT, BOX, "two points"):
            values = [figures[prompt] for figures in trial["miou"]]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=min(1, len(values) - 1)):.3f}")
        lines.append("| " + " | ".join([*cells, str(PAPER.get(trial["name"], ""))]) + " |")
    return "\n".join(lines)


def picture(report: dict[str, Any], path: Path) -> None:
    """Draws the mIoU at a point of every run into a ``.png``."""
    groups: dict[str, dict[str, list[float]]] = {}
    for trial in report["trials"]:
        values = [figures[POINT] for figures in trial["miou"]]
        groups.setdefault(trial["group"], {})[trial["name"]] = values
    draw_points(groups, "mIoU with the teacher's masks at one point, held-out scenes", path)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Reproduce the paper's tables at toy scale.")
    parser.add_argument("folder", type=Path, help="of all results; a killed study resumes")
    folder = parser.parse_args().folder
    flush_denormals()
    report = study(folder, Plan())
    picture(report, folder / "study.png")
    print(table(report))


if __name__ == "__main__":
    main()
