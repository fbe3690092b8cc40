"""Distillations small enough for a test: each mode learns, resumes, and refuses what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_pocketsam
from PIL import Image
from safetensors.torch import save_file

from pocketsam import terminal
from pocketsam.errors import CheckpointError, ImageError, PocketSamError, UsageError
from pocketsam.images import find_images, load_image
from pocketsam.models.checkpoint import load_model
from pocketsam.models.commands import COMMANDS
from pocketsam.models.images import check_folder, load_pixels, to_pixel_values
from pocketsam.models.sam import fill, seeded
from pocketsam.models.training.distill import (
    distill,
    freeze_others,
    new_student,
    random_prompts,
)
from pocketsam.models.training.recipe import MODES, Recipe
from pocketsam.models.training.run import Run, batches_of
from pocketsam.runtime.image import preprocess

TINY = Recipe(
    image_size=64,
    steps=3,
    batch=2,
    prompts=2,
    warmup=1,
    ema=0.5,
    learning_rate=1e-3,
    compute="fp32",
)


@pytest.fixture(scope="module", autouse=True)
def _no_denormals():
    """As the command does: seeded weights make gradients that a CPU computes very slowly."""
    torch.set_flush_denormal(True)


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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The teacher's embeddings of ``folder``, filled by the first distillation."""
    return tmp_path_factory.mktemp("cache")


def run(*arguments):
    """The exit code of ``distill``, in this process."""
    return terminal.run_command(COMMANDS, ["distill", *map(str, arguments)])


def test_images_are_prepared_as_the_runtime_does(folder):
    path = folder / "astronaut.png"
    values = to_pixel_values(load_pixels(path, 128), 128)
    assert np.allclose(values, preprocess(load_image(path), 128)[0], atol=1e-6)


def test_outputs_are_no_images(folder, tmp_path):
    for place in ("good.png", "run/loss.png", "run/deep/loss.png", "running.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes((folder / "coffee.png").read_bytes())
    good, skipped = check_folder(tmp_path, [tmp_path / "run", tmp_path / "deep"])
    assert ([path.name for path in good], skipped) == (["good.png", "running.png"], [])
    assert len(check_folder(tmp_path / "run", [tmp_path])[0]) == 2
    for output in (tmp_path, tmp_path / "run/.."):
        with pytest.raises(UsageError, match="holds the images; write to another folder"):
            check_folder(tmp_path, [output])


def test_an_error_of_the_loader_is_one_line():
    def load():
        yield 1
        raise ImageError(
            "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most "
            "recent call last):\n  File\npocketsam.errors.ImageError: a.png: cut: short\n"
        )

    batches = batches_of(load())
    assert next(batches) == 1
    with pytest.raises(PocketSamError, match=r"^a.png: cut: short$"):
        next(batches)


def test_bad_images_are_skipped_and_counted(folder, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.png").write_bytes((folder / "coffee.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((folder / "coffee.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (200, 3)).save(tmp_path / "thin.png")
    (tmp_path / "notes.txt").write_text("not an image at all")
    (tmp_path / "photo.heic").write_bytes(b"ftypheic")
    (tmp_path / "._good.png").write_bytes(b"resource fork")
    good, skipped = check_folder(tmp_path)
    assert [path.name for path in good] == ["good.png"]
    assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in skipped) == [
        "cut.png",
        "photo.heic",
        "text.jpg",
        "thin.png",
    ]
    with pytest.raises(ImageError, match="no such folder"):
        check_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="a folder without images"):
        check_folder(tmp_path / "empty")


def test_the_student_begins_with_the_teachers_decoder(teacher):
    student = new_student(teacher.model, None, 64)
    wanted = teacher.model.mask_decoder.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in student.mask_decoder.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_gives_gradients_to_its_modules_alone(teacher, mode):
    student = new_student(teacher.model, None, 64)
    trained = freeze_others(student, MODES[mode])
    assert sum(p.requires_grad for p in student.parameters()) == len(trained)
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] in MODES[mode]), name


@pytest.mark.parametrize(
    "mode", ["decoupled", *(pytest.param(m, marks=pytest.mark.slow) for m in list(MODES)[1:])]
)
def test_each_mode_trains_its_modules_and_no_others(folder, teacher, cache, tmp_path, mode):
    save_file(seeded(64, 2).state_dict(), tmp_path / "start.safetensors")
    start = str(tmp_path / "start.safetensors")
    recipe = replace(TINY, mode=mode)
    images = find_images(folder)
    path = distill(images, teacher, tmp_path / "run", recipe, cache_folder=cache, start=start)
    assert path.stat().st_size < 25e6
    loaded = load_model(path, 64)
    before = seeded(64, 2).state_dict()
    for key, value in loaded.model.state_dict().items():
        if not value.is_floating_point() or "head" in key or "gaussian" in key:
            continue
        same = torch.allclose(value, before[key], rtol=2e-3, atol=1e-4)
        if key.split(".")[0] not in MODES[mode]:
            assert same, key
        elif key.endswith(("fc1.weight", "lin1.weight")):
            assert not same, key


@pytest.mark.slow
def test_decoupled_distillation_approaches_the_teacher(folder, teacher, cache, tmp_path):
    recipe = replace(TINY, steps=30, warmup=5, ema=0.8)
    images = find_images(folder)
    path = distill(images, teacher, tmp_path / "run", recipe, cache_folder=cache)
    values = torch.stack([to_pixel_values(load_pixels(image, 64), 64) for image in images])
    with torch.inference_mode():
        wanted = teacher.model.encode(values)
        loaded = load_model(path, 64)
        assert loaded.settings.image_size == 64
        student = loaded.model
        untrained = new_student(teacher.model, None, 64).eval()
        fill(untrained.image_encoder, 9)
        error = (student.encode(values) - wanted).square().mean()
        other = (untrained.encode(values) - wanted).square().mean()
    assert error < 0.2 * other


def test_a_killed_run_ends_as_an_undisturbed_one(folder, teacher, cache, tmp_path, monkeypatch):
    images = find_images(folder)
    recipe = replace(TINY, steps=2, accumulate=2)
    options = {"cache_folder": cache, "save_every": 1}
    undisturbed = distill(images, teacher, tmp_path / "undisturbed", recipe, **options)
    saved = Run.save

    def killed(run, state):
        saved(run, state)
        if state["step"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(images, teacher, tmp_path / "killed", recipe, **options)
    monkeypatch.setattr(Run, "save", saved)
    resumed = distill(images, teacher, tmp_path / "killed", recipe, **options)
    wanted, found = (load_model(p, 64).model.state_dict() for p in (undisturbed, resumed))
    assert all(torch.allclose(wanted[key].float(), found[key].float(), atol=2e-3) for key in wanted)
    first, second = (
        torch.load(path.parent / "state.pt", weights_only=True)["optimizer"]["state"]
        for path in (undisturbed, resumed)
    )
    assert first.keys() == second.keys()
    for key, moments in first.items():
        assert moments["step"] == second[key]["step"] == 2
        assert torch.allclose(moments["exp_avg"], second[key]["exp_avg"], rtol=0.1, atol=1e-6)


def test_what_does_not_fit_is_refused(folder, teacher, cache, tmp_path):
    images = find_images(folder)
    Run(tmp_path / "run", {"steps": 1}).save({"step": 1})
    with pytest.raises(PocketSamError, match="another recipe"):
        distill(images, teacher, tmp_path / "run", TINY, cache_folder=cache)
    distill(images, teacher, tmp_path / "done", replace(TINY, steps=1), cache_folder=cache)
    other = replace(teacher, sha256="0" * 64)
    with pytest.raises(PocketSamError, match="another teacher"):
        distill(images, other, tmp_path / "new", TINY, cache_folder=cache)
    with pytest.raises(PocketSamError, match="another recipe: images was"):
        distill(images[:1], teacher, tmp_path / "done", TINY, cache_folder=tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        distill(images, teacher, tmp_path / "new", TINY, cache_folder=cache, start="none.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "triple"}, "unknown mode 'triple'"),
        ({"mode": "finetune"}, "finetune trains the decoder"),
        ({"compute": "fp31"}, "unknown compute 'fp31'"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"learning_rate": float("nan")}, "learning-rate must be a positive number"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(teacher, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        distill([], teacher, tmp_path / "run", replace(TINY, **change))
    assert not (tmp_path / "run").exists()


def test_random_prompts_are_points_and_boxes_on_the_canvas():
    points, boxes = random_prompts(TINY, 9, 0), random_prompts(TINY, 9, 1)
    assert points.labels.tolist() == [[1, -1]] * 9
    assert boxes.labels.tolist() == [[2, 3]] * 9
    assert (boxes.coords[:, 0] <= boxes.coords[:, 1]).all()
    for prompts in (points, boxes):
        assert ((prompts.coords >= 0) & (prompts.coords <= 64)).all()
    assert not torch.equal(points.coords, random_prompts(TINY, 9, 2).coords)


def test_the_command_in_a_process_of_its_own(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in folder.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "cut.png").write_bytes((folder / "coffee.png").read_bytes()[:1000])
    options = ["--image-size", 64, "--steps", 1, "--batch", 2, "--compute", "fp32"]
    done = run_pocketsam(
        "distill", images, "--teacher", "seeded:1", "--output", tmp_path / "run", *options
    )
    assert done.returncode == 0, done.stderr
    assert "3 images, 1 skipped, canvas 64" in done.stderr
    assert "cut.png" in done.stderr
    (line,) = done.stdout.splitlines()
    assert load_model(line, 64).architecture == "mobile_sam"


def test_the_teachers_own_canvas_is_the_default(folder, tmp_path, capsys, monkeypatch):
    sizes = []

    def stop(_images, _teacher, _folder, recipe, **_options):
        sizes.append(recipe.image_size)
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketsam.models.training.distill.distill", stop)
    assert run(folder, "--teacher", "default", "--output", tmp_path / "run") == 130
    assert run(folder, "--teacher", "seeded", "--output", tmp_path / "run") == 130
    assert sizes == [512, 1024]
    assert "3 images, 0 skipped, canvas 512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compute", "31-bit"), "invalid choice: '31-bit'"),
        (("--image-size", "100"), "multiple of 64"),
        (("--steps", "many"), "invalid int value"),
        (("--batch", "0"), "batch must be at least 1"),
        (("--save-every", "0"), "save-every must be at least 1"),
        (("--learning-rate", "-1"), "learning-rate must be a positive number"),
        (("--prompts", "4"), "--prompts does nothing with --mode decoupled"),
        (("--mode", "finetune"), "finetune trains the decoder"),
    ],
)
def test_contradictions_and_bad_values_are_usage_errors(folder, tmp_path, capsys, arguments, message):
    try:
        code = run(folder, "--teacher", "seeded:1", "--output", tmp_path / "run", *arguments)
    except SystemExit as left:  # argparse
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_names_what_it_refuses(folder, tmp_path, capsys):
    output = tmp_path / "run"
    Run(output, {"steps": 1}).save({"step": 1})
    options = ("--teacher", "seeded:1", "--output", output, "--image-size", 64)
    assert run(folder, *options) == 1
    assert "another recipe" in capsys.readouterr().err
    assert run(tmp_path / "none", *options) == 1
    assert "no such folder" in capsys.readouterr().err
