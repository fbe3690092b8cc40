"""The study at the smallest size: every row is there, and what was trained is not trained again."""

import json

import pytest
import torch
from PIL import Image

from pocketsam.models.evaluation import study as module
from pocketsam.models.evaluation.study import Plan, picture, study, table, trials

TINY = Plan(image_size=64, images=4, held_out=1, teacher_minutes=1e-6, batch=2, steps=4, seeds=(0, 1))


def test_methods_get_equal_time():
    seconds = {"decoupled": 1.0, "semi-coupled": 2.0, "coupled": 4.0, "finetune": 0.5}
    planned = {t.name: t.recipe for t in trials(Plan(steps=600, finetune=0.25), seconds)}
    assert planned["semi-coupled"].steps == 300
    assert planned["coupled"].steps == 150
    finetuned, before = planned["the same, then its decoder finetuned"], planned["decoupled for 75%"]
    assert finetuned.steps * 0.5 + before.steps * 1.0 == 600
    assert planned["batch 4, 1x iterations"].steps == planned["batch 8, 1x iterations"].steps == 300


@pytest.fixture
def _no_denormals():
    """As the command does: gradients are full of them here, and a CPU is slow with them."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_denormals")
def test_it_runs_and_is_kept(tmp_path, monkeypatch):
    report = study(tmp_path, TINY)
    seconds = report["seconds_per_step"]
    assert all(value > 0 for value in seconds.values())
    names = [trial["name"] for trial in report["trials"]]
    assert names == [trial.name for trial in trials(TINY, seconds)]
    for trial in report["trials"]:
        assert len(trial["miou"]) == 2
        assert all(0 <= v <= 1 for figures in trial["miou"] for v in figures.values())
    assert all(name in table(report) for name in names)
    picture(report, tmp_path / "study.png")
    with Image.open(tmp_path / "study.png") as drawn:
        assert min(drawn.size) > 100
    log = next((tmp_path / "runs").glob("coupled-*/log.jsonl"))
    assert json.loads(log.read_text().splitlines()[-1])["step"] >= 1
    assert (log.parent / "loss.png").exists()
    monkeypatch.setattr(module, "distill", lambda *_, **__: pytest.fail("trained again"))
    assert study(tmp_path, TINY) == report
