"""Pictures of training, by matplotlib: the loss of a run, and the study's comparison."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pocketsam.models.training.run import LOG_NAME, write_bytes_whole

LOSS_NAME = "loss.png"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes_whole(path, buffer.getvalue())


def draw_loss(folder: Path) -> None:
    """``loss.png`` beside a run's log: the loss by step. Without a log yet, nothing."""
    log = folder / LOG_NAME
    if not log.exists():
        return
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    told = [entry for entry in entries if "loss" in entry]
    figure = _figure(6, 3.5)
    axes = figure.subplots()
    axes.plot([entry["step"] for entry in told], [entry["loss"] for entry in told], linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if told and all(entry["loss"] > 0 for entry in told):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    _save(figure, folder / LOSS_NAME)


def draw_points(groups: Mapping[str, Mapping[str, Sequence[float]]], label: str, path: Path) -> None:
    """A panel for each group; in it a row for each name, a dot for each value and a bar at the mean."""
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
