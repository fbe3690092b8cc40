"""Regions, the pool of scenes, and the three stages of the shipped weights, at a size for a test."""

import json

import numpy as np
import pytest
import torch

from pocketsam.errors import UsageError
from pocketsam.models.sam import seeded
from pocketsam.models.training import train_default
from pocketsam.models.training.regions import LEVELS, Edges, find_regions
from pocketsam.models.training.run import Run
from pocketsam.models.training.scene_pool import ScenePool, Source, draw_prompts, paint
from pocketsam.models.training.stages import StageRecipe
from pocketsam.models.training.textures import load_textures
from pocketsam.models.training.train_default import train
from pocketsam.models.training.validation import held_out_scenes, miou_with_truth


@pytest.fixture(scope="module")
def photo():
    """A bright square on a dark ground, with a little noise."""
    image = np.full((96, 128, 3), 50, np.uint8)
    image[24:72, 32:96] = 220
    noise = np.random.default_rng(0).integers(0, 8, image.shape)
    return find_regions(Edges().eval(), image + noise.astype(np.uint8))


def test_regions_follow_what_is_plain_to_see(photo):
    assert photo.regions.shape == (len(LEVELS), 96, 128)
    counts = [len(np.unique(labels)) for labels in photo.regions]
    assert counts == sorted(counts, reverse=True)
    square = np.zeros((96, 128), bool)
    square[24:72, 32:96] = True
    found = photo.regions[2] == photo.regions[2][48, 64]
    assert (found & square).sum() / (found | square).sum() > 0.8


def test_a_painted_scene_has_its_masks_in_cells(photo):
    source = Source(64, 3, load_textures(), [photo])
    image, masks = paint(source, 4)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((3, 16, 16), np.uint8)
    assert (masks.reshape(3, -1).max(axis=1) > 0).all()
    assert np.array_equal(image, paint(source, 4)[0])


@pytest.mark.parametrize("prompt_type", ["point", "points", "box"])
def test_prompts_lie_where_they_should(prompt_type):
    masks = torch.zeros(5, 16, 16)
    masks[:, 4:9, 6:12] = 1
    masks[4] = 1  # nothing is outside
    torch.manual_seed(0)
    prompts = draw_prompts(masks, prompt_type)
    points = {"point": 2, "box": 2, "points": 4}[prompt_type]
    assert prompts.coords.shape == (5, points, 2)
    assert prompts.labels.shape == prompts.coords.shape[:2]
    if prompt_type == "box":
        assert (prompts.coords[:, 0] <= prompts.coords[:, 1]).all()
    else:
        assert (prompts.labels[:, -1] == -1).all()
    cells = (prompts.coords / 4).long().clamp(max=15)
    for i in range(5):
        for (x, y), label in zip(cells[i].tolist(), prompts.labels[i].tolist(), strict=True):
            if label in (0, 1):
                assert masks[i, y, x] == label
    if prompt_type == "box":
        assert (prompts.labels == torch.tensor([2.0, 3.0])).all()
        wanted = torch.tensor([[24.0, 16.0], [48.0, 36.0]])
        assert (prompts.coords[:4] - wanted).abs().max() <= 20


def test_a_painter_that_fails_is_heard():
    pool = ScenePool(Source(63, 2, []), 40, torch.device("cpu"), 1, 40)  # 63 is no multiple of a cell
    with pytest.raises(ValueError, match="reshape"):
        pool.draw(2)
    pool.close()


def test_a_network_is_measured_on_scenes_of_its_own():
    scenes = list(held_out_scenes(2, 64))
    assert all(
        np.array_equal(a.image, b.image) for a, b in zip(scenes, held_out_scenes(2, 64), strict=True)
    )
    figures = miou_with_truth(seeded(64), scenes)
    assert set(figures) == {"point", "box"}
    assert all(0 <= value <= 1 for value in figures.values())


def test_a_stage_that_lacks_its_teacher_is_refused(tmp_path):
    with pytest.raises(UsageError, match="student needs a teacher"):
        train(StageRecipe(stage="student"), tmp_path)
    with pytest.raises(UsageError, match="unknown stage 'fourth'"):
        train(StageRecipe(stage="fourth"), tmp_path)


@pytest.mark.slow
def test_the_three_stages_run_one_after_the_other(tmp_path, photo):
    def stage(name, teacher=None, start=None):
        recipe = StageRecipe(stage=name, image_size=64, minutes=1e-6, batch=2, masks=2, pool=4)
        files = {"teacher": teacher, "start": start}
        return train(recipe, tmp_path / name, photos=[photo], held_out=[photo], scenes=2, **files)

    teacher = stage("teacher")
    student = stage("student", teacher)
    finetuned = stage("finetune", teacher, student)
    states = [torch.load(path, weights_only=True) for path in (teacher, student, finetuned)]
    key = "mask_decoder.iou_token.weight"
    assert torch.equal(states[0][key], states[1][key])  # decoupled: the teacher's decoder, untouched
    assert not torch.equal(states[1][key], states[2][key])
    last = json.loads((tmp_path / "finetune" / "log.jsonl").read_text().splitlines()[-1])
    assert set(last["truth"]) == set(last["photos"]) == {"point", "box"}


@pytest.mark.slow
def test_a_killed_stage_goes_on(tmp_path, photo, monkeypatch):
    def run():
        recipe = StageRecipe(stage="teacher", image_size=64, minutes=1e-6, batch=2, masks=2, pool=4)
        return train(recipe, tmp_path, photos=[photo], scenes=1)

    saved = Run.save

    def killed(run, state):
        saved(run, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_default, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    before = torch.load(tmp_path / "state.pt", weights_only=True)
    monkeypatch.setattr(Run, "save", saved)
    run()
    after = torch.load(tmp_path / "state.pt", weights_only=True)
    key = "image_encoder.neck.0.weight"
    assert before["step"] == 2 < after["step"]
    assert not torch.equal(before["model"][key], after["model"][key])
