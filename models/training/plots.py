"""Draws the loss of a training run, and the study's comparison, with matplotlib."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pocketsam.files import write_file
from pocketsam.models.training.run import LOG_NAME

LOSS_NAME = "loss.png"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    write_file(path, lambda work: figure.savefig(work, dpi=110))


def draw_loss(folder: Path) -> None:
    """Draws ``loss.png`` beside the log of a run: the loss by step. Does nothing without a log.

    Raises:
        PocketSamError: the file cannot be written.
    """
    log = folder / LOG_NAME
    if not log.exists():
        return
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [entry["step"] for entry in entries if "loss" in entry]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    figure = _figure(6, 3.5)
    axes = figure.subplots()
    axes.plot(steps, losses, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if losses and min(losses) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    _save(figure, folder / LOSS_NAME)


def draw_calibration(scores: NDArray[np.float64], ious: NDArray[np.float64], path: Path) -> None:
    """Draws predicted IoU against true IoU: a dot for each mask, and the mean in each tenth.

    Args:
        scores: predicted IoU, of any shape.
        ious: true IoU, of the same shape.
        path: a ``.png`` or ``.jpg``.

    Raises:
        PocketSamError: the file cannot be written.
    """
    figure = _figure(4.5, 4.5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axes.plot(scores.ravel(), ious.ravel(), ".", markersize=3, alpha=0.4)
    tenths = np.clip((scores * 10).astype(int), 0, 9)
    there = [tenth for tenth in range(10) if (tenths == tenth).any()]
    means = [[values[tenths == tenth].mean() for tenth in there] for values in (scores, ious)]
    axes.plot(*means, "o-", color="tab:red")
    axes.set_xlabel("predicted IoU")
    axes.set_ylabel("true IoU")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    _save(figure, path)


def draw_points(groups: Mapping[str, Mapping[str, Sequence[float]]], label: str, path: Path) -> None:
    """Draws a panel for each group, with a row for each name: a dot per value, a bar at the mean.

    Args:
        groups: the values by name by group.
        label: of the values' axis.
        path: a ``.png``.

    Raises:
        PocketSamError: the file cannot be written.
    """
    figure = _figure(7, 0.9 + 0.42 * sum(map(len, groups.values())))
    heights = [len(rows) for rows in groups.values()]
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(panels, groups.items(), strict=True):
        for y, values in enumerate(rows.values()):
            axes.plot(values, [y] * len(values), "o", color="tab:blue", alpha=0.6)
            axes.plot([sum(values) / len(values)] * 2, [y - 0.3, y + 0.3], color="black")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel(label)
    _save(figure, path)
