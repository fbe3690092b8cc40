"""A training run small enough for a test, and what happens when it is interrupted."""

import json

import pytest
import torch

from pocketsam.errors import PocketSamError
from pocketsam.models import train_teacher as module
from pocketsam.models.run import Run
from pocketsam.models.teacher import PIXEL_MEAN, PIXEL_STD, TeacherEncoder, Vgg16, load_hed
from pocketsam.models.train_teacher import Recipe, build_teacher, train
from pocketsam.runtime import contract

TINY = Recipe(image_size=64, steps=4, batch=2, prompts=2, warmup=1, scenes=50)


def test_pixel_statistics_are_the_runtimes():
    assert (PIXEL_MEAN, PIXEL_STD) == (contract.PIXEL_MEAN, contract.PIXEL_STD)


def test_hed_weights_see_edges():
    """The first block of a VGG answers to an edge, not to a flat patch; unfilled, it would not."""
    vgg = Vgg16()
    before = vgg.blocks[0][0].weight.clone()
    load_hed(vgg)
    assert not torch.equal(before, vgg.blocks[0][0].weight)
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 2
    with torch.inference_mode():
        maps = vgg(image)
    assert [tuple(x.shape[1:]) for x in maps] == [(256, 16, 16), (512, 8, 8), (512, 4, 4)]
    columns = maps[0][0].std(dim=1).mean(dim=0)
    variation = maps[0][0].diff(dim=2).abs().mean(dim=(0, 1))
    assert variation.argmax() in (6, 7, 8)
    assert columns.isfinite().all()


def test_the_teacher_is_a_sam_encoder_with_frozen_features():
    encoder = TeacherEncoder()
    out = encoder(torch.zeros(2, 3, 128, 128))
    assert out.shape == (2, 256, 8, 8)
    out.sum().backward()
    assert all(p.grad is None for p in encoder.vgg.parameters())
    others = [p for name, p in encoder.named_parameters() if not name.startswith("vgg")]
    assert all(p.grad is not None for p in others)


def test_a_killed_run_resumes_and_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    whole = torch.load(train(TINY, tmp_path / "whole", 1, 100, 2), weights_only=True)

    def killed(run, state):
        saved(run, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    saved = Run.save
    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "cut", 1, 100, 2)
    monkeypatch.setattr(Run, "save", saved)
    resumed = torch.load(train(TINY, tmp_path / "cut", 1, 100, 2), weights_only=True)
    for key, value in whole.items():
        assert torch.allclose(resumed[key].float(), value.float(), atol=1e-4), key
    start = build_teacher(64).state_dict()
    assert not torch.equal(whole["image_encoder.neck.0.weight"], start["image_encoder.neck.0.weight"])
    assert torch.equal(
        whole["image_encoder.vgg.blocks.0.0.weight"], start["image_encoder.vgg.blocks.0.0.weight"]
    )
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert set(lines[-1]["held_back"]) == {"point", "box"}


def test_another_recipe_in_the_folder_is_refused(tmp_path):
    train(Recipe(**{**vars(TINY), "steps": 1}), tmp_path / "run", 1, 100, 2)
    with pytest.raises(PocketSamError, match="another recipe"):
        train(TINY, tmp_path / "run", 1, 100, 2)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_state(tmp_path, monkeypatch):
    real = module.loss_of
    calls = []

    def spoiled(*args):
        calls.append(1)
        loss, best = real(*args)
        return (loss * float("nan"), best) if len(calls) == 3 else (loss, best)

    monkeypatch.setattr(module, "loss_of", spoiled)
    with pytest.raises(PocketSamError, match=r"loss is .*nan.* at step 2"):
        train(TINY, tmp_path / "run", 1, 100, 2)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == 2
    assert all(x.isfinite().all() for x in state["model"].values())
