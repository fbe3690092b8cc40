"""Distillations small enough for a test: each mode learns, resumes, and refuses what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_pocketsam
from PIL import Image

from pocketsam.errors import CheckpointError, ImageError, PocketSamError
from pocketsam.models.checkpoint import load_model
from pocketsam.models.images import check_images, list_images, load_pixels, to_pixel_values
from pocketsam.models.sam import fill, seeded
from pocketsam.models.training.distill import MODES, Recipe, distill, new_student, random_prompts
from pocketsam.models.training.run import Run
from pocketsam.runtime.image import load_image, preprocess

TINY = Recipe(
    image_size=64,
    steps=6,
    batch=2,
    prompts=2,
    warmup=1,
    ema=0.5,
    learning_rate=1e-3,
    precision="32-true",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from skimage import data

    folder = tmp_path_factory.mktemp("images")
    for name in ("astronaut", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((160, 120)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def teacher():
    return load_model("seeded:1", 64)


def test_images_are_prepared_as_the_runtime_does(folder):
    path = folder / "astronaut.png"
    values = to_pixel_values(load_pixels(path, 128), 128)
    assert np.allclose(values, preprocess(load_image(path), 128)[0], atol=1e-6)


def test_bad_images_are_skipped_and_counted(folder, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.png").write_bytes((folder / "coffee.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((folder / "coffee.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (200, 3)).save(tmp_path / "thin.png")
    (tmp_path / "notes.txt").write_text("not an image at all")
    good, skipped = check_images(list_images(tmp_path))
    assert [path.name for path in good] == ["good.png"]
    assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in skipped) == [
        "cut.png",
        "text.jpg",
        "thin.png",
    ]
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images"):
        list_images(tmp_path / "empty")


def test_the_student_begins_with_the_teachers_decoder(teacher):
    student = new_student(teacher.model, None, 64)
    wanted = teacher.model.mask_decoder.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in student.mask_decoder.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_its_parts_and_no_others(folder, teacher, tmp_path, mode):
    from safetensors.torch import save_file

    save_file(seeded(64, 2).state_dict(), tmp_path / "start.safetensors")
    start = str(tmp_path / "start.safetensors")
    recipe = replace(TINY, mode=mode)
    images = list_images(folder)
    path = distill(images, teacher, tmp_path / "run", tmp_path / "cache", recipe, start)
    assert path.stat().st_size < 25e6
    loaded = load_model(path, 64)
    before = seeded(64, 2).state_dict()
    for key, value in loaded.model.state_dict().items():
        if not value.is_floating_point() or "head" in key or "gaussian" in key:
            continue
        same = torch.allclose(value, before[key], rtol=2e-3, atol=1e-4)
        part = key.split(".")[0]
        if part not in MODES[mode]:
            assert same, key
        elif key.endswith(("fc1.weight", "lin1.weight")):
            assert not same, key


def test_decoupled_distillation_approaches_the_teacher(folder, teacher, tmp_path):
    recipe = replace(TINY, steps=30, warmup=5, ema=0.8)
    images = list_images(folder)
    path = distill(images, teacher, tmp_path / "run", tmp_path / "cache", recipe)
    values = torch.stack([to_pixel_values(load_pixels(image, 64), 64) for image in images])
    with torch.inference_mode():
        wanted = teacher.model.encode(values)
        student = load_model(path, 64).model
        untrained = new_student(teacher.model, None, 64).eval()
        fill(untrained.image_encoder, 9)
        error = (student.encode(values) - wanted).square().mean()
        other = (untrained.encode(values) - wanted).square().mean()
    assert error < 0.2 * other


def test_a_killed_run_ends_as_an_undisturbed_one(folder, teacher, tmp_path, monkeypatch):
    images = list_images(folder)
    recipe = replace(TINY, steps=4, accumulate=2)
    whole = distill(images, teacher, tmp_path / "whole", tmp_path / "cache", recipe, save_every=1)
    saved = Run.save

    def killed(run, state):
        saved(run, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(images, teacher, tmp_path / "cut", tmp_path / "cache", recipe, save_every=1)
    monkeypatch.setattr(Run, "save", saved)
    resumed = distill(images, teacher, tmp_path / "cut", tmp_path / "cache", recipe, save_every=1)
    one, two = load_model(whole, 64).model.state_dict(), load_model(resumed, 64).model.state_dict()
    assert all(torch.allclose(one[key].float(), two[key].float(), atol=2e-3) for key in one)


def test_what_does_not_fit_is_refused(folder, teacher, tmp_path):
    images = list_images(folder)
    distill(images, teacher, tmp_path / "run", tmp_path / "cache", replace(TINY, steps=1))
    with pytest.raises(PocketSamError, match="another recipe"):
        distill(images, teacher, tmp_path / "run", tmp_path / "cache", TINY)
    other = load_model("seeded:2", 64)
    with pytest.raises(PocketSamError, match="another teacher"):
        distill(images, other, tmp_path / "new", tmp_path / "cache", TINY)
    with pytest.raises(PocketSamError, match="unknown mode 'triple'"):
        distill(images, teacher, tmp_path / "new", tmp_path / "cache", replace(TINY, mode="triple"))
    with pytest.raises(PocketSamError, match="finetune"):
        distill(images, teacher, tmp_path / "new", tmp_path / "cache", replace(TINY, mode="finetune"))
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        distill(images, teacher, tmp_path / "new", tmp_path / "cache", TINY, start="none.pt")


def test_random_prompts_are_points_and_boxes_on_the_canvas():
    points, boxes = random_prompts(TINY, 9, 0), random_prompts(TINY, 9, 1)
    assert points.labels.tolist() == [[1, -1]] * 9
    assert boxes.labels.tolist() == [[2, 3]] * 9
    assert (boxes.coords[:, 0] <= boxes.coords[:, 1]).all()
    for prompts in (points, boxes):
        assert ((prompts.coords >= 0) & (prompts.coords <= 64)).all()
    assert not torch.equal(points.coords, random_prompts(TINY, 9, 2).coords)


def test_the_command(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in folder.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "cut.png").write_bytes((folder / "coffee.png").read_bytes()[:1000])
    options = ["--image-size", 64, "--steps", 2, "--batch", 2, "--precision", "32-true"]
    arguments = ["distill", images, "--teacher", "seeded:1", "--output", tmp_path / "run", *options]
    done = run_pocketsam(*arguments)
    assert done.returncode == 0, done.stderr
    assert "3 images, 1 skipped" in done.stderr
    assert "cut.png" in done.stderr
    assert load_model(done.stdout.splitlines()[-1], 64).architecture == "mobile_sam"

    done = run_pocketsam(*arguments, "--seed", 3)
    assert done.returncode == 1
    assert "another recipe" in done.stderr
    assert "Traceback" not in done.stderr
    for wrong in (["--precision", "31-bit"], ["--image-size", 100]):
        assert run_pocketsam(*arguments, *wrong).returncode == 2
    done = run_pocketsam(*arguments, "--batch", 0)
    assert done.returncode == 1
    assert "batch must be at least 1" in done.stderr
    done = run_pocketsam("distill", tmp_path / "none", *arguments[2:])
    assert done.returncode == 1
    assert "no such folder" in done.stderr
