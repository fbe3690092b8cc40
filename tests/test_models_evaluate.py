"""Evaluation: prompts lie where they should, figures are right, and the command says what is wrong."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import SMALL, run_pocketsam
from PIL import Image

from pocketsam import terminal
from pocketsam.models import prompted
from pocketsam.models.checkpoint import load_model
from pocketsam.models.commands import COMMANDS
from pocketsam.models.evaluation import baselines, evaluate
from pocketsam.models.evaluation.evaluate import Clicked, Score, panels_of, score_image, summary, table
from pocketsam.models.evaluation.examples import Example, scene_examples
from pocketsam.models.images import image_stems, label_maps
from pocketsam.models.sam import seeded
from pocketsam.runtime import Segmenter


@pytest.fixture(scope="module")
def models():
    return {"student": seeded(64, seed=1), "teacher": seeded(64, seed=2)}


@pytest.fixture(scope="module")
def example():
    """Two squares on a picture that is not square."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    truth = np.zeros((2, 48, 64), bool)
    truth[0, 10:21, 20:41] = True
    truth[1, 30:, :15] = True
    return Example("two squares", pixels, truth)


def scores_of(example, models, click_count):
    """All scores of an image, drawn the same in each call."""
    rng = np.random.default_rng(0)
    return score_image(Clicked(example, models, click_count, rng), rng)


def run(*arguments):
    """The exit code of ``evaluate``, in this process."""
    return terminal.run_command(COMMANDS, ["evaluate", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    """Two photographs, one of them with a label map."""
    from skimage import data

    images, truth = tmp_path / "images", tmp_path / "truth"
    images.mkdir()
    truth.mkdir()
    for name in ("coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((120, 80)).save(images / f"{name}.png")
    labels = np.zeros((80, 120), np.uint16)
    labels[10:50, 30:90], labels[60:, :] = 7, 300
    Image.fromarray(labels).save(truth / "coffee.png")
    return tmp_path


def test_the_masks_are_the_runtimes(bundle, photo):
    """The torch network and the bundle answer a click and a box with the same mask."""
    model = load_model("seeded:11", SMALL).model
    pixels = np.asarray(Image.fromarray(photo).resize((SMALL, 170)))
    embedding = prompted.embed(model, pixels)
    segmenter = Segmenter(bundle)
    segmenter.set_image(pixels)
    click, box = np.array([[[100.0, 60.0]]]), np.zeros((1, 170, SMALL), bool)
    box[:, 20:130, 40:200] = True
    cases = (
        (prompted.point_prompts(click), {"point_coords": [[100, 60]], "point_labels": [1]}),
        (prompted.bounding_box_prompts(box), {"box": [40, 20, 200, 130]}),
    )
    for prompts, arguments in cases:
        masks, scores, _ = segmenter.predict(**arguments)
        found = prompted.predict(model, embedding, prompts, pixels.shape)
        assert (found[0] != masks[scores.argmax()]).mean() < 1e-3
    pair = np.array([[[100.0, 60.0], [30.0, 90.0]]])
    masks, _, _ = segmenter.predict([[100, 60], [30, 90]], [1, 1], multimask_output=False)
    found = prompted.predict(model, embedding, prompted.point_prompts(pair), pixels.shape)
    assert (found[0] != masks[0]).mean() < 1e-3


def test_a_click_is_the_deepest_pixel(example):
    assert prompted.deepest_pixel(example.truth[0])[1] == 15
    assert 25 <= prompted.deepest_pixel(example.truth[0])[0] <= 35
    assert prompted.deepest_pixel(np.ones((9, 9), bool)) == (4, 4)


@pytest.mark.parametrize("distance", [5, 30])
def test_second_points_keep_their_distance_and_stay_inside(distance):
    rng = np.random.default_rng(1)
    clicks = rng.uniform(0, (63, 47), (40, 2))
    pairs = evaluate.second_points(clicks, distance, (48, 64, 3), rng)
    assert len(pairs) == 40
    assert np.allclose(np.linalg.norm(pairs[:, 1] - pairs[:, 0], axis=1), distance)
    assert ((pairs >= 0) & (pairs <= (63, 47))).all()


def test_second_points_that_have_no_place_are_left_out():
    pairs = evaluate.second_points(np.array([[5.0, 5.0]]), 50, (10, 10), np.random.default_rng(0))
    assert pairs.shape == (0, 2, 2)


def test_a_model_agrees_with_itself(example, models):
    twins = {"student": models["teacher"], "teacher": models["teacher"]}
    scores = scores_of(example, twins, 4)
    assert {s.iou for s in scores if s.system == "student" and s.against == "teacher"} == {1.0}


def test_every_system_is_scored_against_teacher_and_truth(example, models):
    scores = scores_of(example, models, 4)
    panels = panels_of(Clicked(example, models, 4, np.random.default_rng(0)))
    found = {(s.against, s.prompt, s.system) for s in scores}
    assert {("truth", prompt, name) for prompt in ("point", "box") for name in models} <= found
    assert ("truth", "point", "disk") in found
    assert ("truth", "box", "the box itself") in found
    assert ("teacher", "300 px", "student") in found
    assert not any(against == "truth" and prompt.endswith("px") for against, prompt, _ in found)
    filled = [s.iou for s in scores if s.against == "truth" and s.system == "the box itself"]
    assert filled == [1.0, 1.0]  # the true masks are boxes
    assert [set(panel.masks) for panel in panels] == [{"truth", "teacher", "student"}] * 2


def test_without_truth_the_teachers_masks_give_the_boxes(example, models):
    bare = Example("bare", example.pixels, example.truth[:0])
    scores = scores_of(bare, models, 5)
    assert {s.against for s in scores} == {"teacher"}
    assert sum(s.prompt == "point" and s.system == "student" for s in scores) == 5
    again = scores_of(bare, models, 5)
    assert scores == again


def test_baselines():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    found = baselines.at_clicks(pixels, np.array([[10.0, 20.0], [50.0, 5.0]]))
    y, x = np.mgrid[:40, :60]
    assert np.array_equal(found["disk"][0], np.hypot(x - 10, y - 20) <= 8)
    halves = np.stack([x < 30, x >= 30])  # smoothing may move their border by a pixel or two
    assert (found["Felzenszwalb's segment"] != halves).mean() < 0.05


def test_means_and_their_table():
    scores = [Score("a", "truth", "point", "student", iou) for iou in (0.2, 0.6)]
    (row,) = summary(scores)
    assert row == {
        "against": "truth",
        "prompt": "point",
        "system": "student",
        "masks": 2,
        "miou": pytest.approx(0.4),
        "standard_error": pytest.approx(0.2 / 2**0.5),
    }
    assert "0.400" in table([row])


def test_scenes_for_evaluation_are_the_same_each_time():
    first, second = (list(scene_examples(2, 64)) for _ in range(2))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    assert all(e.truth.shape[1:] == (64, 64) and len(e.truth) for e in first)


def test_trained_weights_beat_the_baselines_on_scenes():
    models = {"student": load_model("default", 512).model}
    scores = [s for example in scene_examples(2, 512) for s in scores_of(example, models, 0)]
    miou = {(row["prompt"], row["system"]): row["miou"] for row in summary(scores)}
    assert miou["point", "student"] > miou["point", "disk"] + 0.2
    assert miou["box", "student"] > miou["box", "the box itself"]


def test_the_command_in_a_process_of_its_own(folder):
    (folder / "images" / "broken.png").write_text("no picture")
    gallery = folder / "gallery.png"
    done = run_pocketsam(
        *("evaluate", "seeded:1", "--images", folder / "images", "--truth", folder / "truth"),
        *("--image-size", 64, "--teacher", "seeded:2", "--gallery", gallery, "--json"),
        *("--calibration", folder / "calibration.png"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [image["name"] for image in found["images"]] == ["coffee.png"]
    assert len(found["skipped"]) == 2  # the rocket has no label map
    assert any("rocket.png" in line for line in found["skipped"])
    keys = ("image_size", "student", "teacher", "summary", "sizes", "score_error", "images", "skipped")
    assert tuple(found) == keys
    assert found["sizes"]["all"]["objects"] == 2
    assert found["teacher"]["name"] == "seeded:2"
    truth = [row for row in found["summary"] if row["against"] == "truth" and row["prompt"] == "box"]
    assert {row["system"]: row["masks"] for row in truth} == {
        "student": 2,
        "teacher": 2,
        "the box itself": 2,
    }
    with Image.open(gallery) as picture:
        assert picture.width == 4 * 256
    with Image.open(folder / "calibration.png") as picture:
        assert min(picture.size) > 100


def test_objects_that_overlap_stand_in_a_second_label_map(folder, capsys):
    over = np.zeros((80, 120), np.uint8)
    over[20:70, 20:80] = 1
    Image.fromarray(over).save(folder / "truth" / "coffee_2.png")
    arguments = ("--images", folder / "images", "--truth", folder / "truth", "--image-size", 64)
    assert run("seeded", *arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  all +3 ", out, re.MULTILINE)
    assert re.search(r"^predicted and true IoU differ by 0\.\d+ on average$", out, re.MULTILINE)


def test_a_second_label_map_may_be_another_images_first(tmp_path):
    for name in ("a.png", "a_2.png", "a_3.png"):
        (tmp_path / name).touch()
    maps = {stem: list(label_maps(tmp_path, stem, {"a", "a_3", "b"})) for stem in ("a", "a_3", "b")}
    assert [path.name for path in maps["a"]] == ["a.png", "a_2.png"]
    assert [path.name for path in maps["a_3"]] == ["a_3.png"]
    assert maps["b"] == []
    (tmp_path / "a_2.heic").touch()  # also of an image that cannot be read
    stems = image_stems([tmp_path])
    assert [path.name for path in label_maps(tmp_path, "a", stems)] == ["a.png"]


def test_the_command_prints_a_table(folder, capsys):
    images = ("seeded:1", "--images", folder / "images")
    assert run(*images, "--teacher", "seeded:2", "--image-size", 64, "--prompts", 3) == 0
    out = capsys.readouterr().out
    assert "mIoU against teacher" in out
    assert "2 images, 0 skipped, canvas 64" in out


def test_label_maps_that_do_not_fit_are_named(folder, capsys):
    Image.new("L", (119, 80)).save(folder / "truth" / "coffee.png")
    Image.new("RGB", (120, 80)).save(folder / "truth" / "rocket.png")
    arguments = ("--images", folder / "images", "--truth", folder / "truth", "--image-size", 64)
    assert run("seeded", *arguments) == 1
    err = capsys.readouterr().err
    assert "coffee.png: 119x80, and coffee.png 120x80" in err
    assert "rocket.png: a label map has one channel" in err
    assert err.splitlines()[-1].endswith("no image can be used")


def test_a_label_map_without_objects_is_named(folder, capsys):
    Image.new("L", (120, 80)).save(folder / "truth" / "coffee.png")
    arguments = ("--images", folder / "images", "--truth", folder / "truth", "--image-size", 64)
    assert run("seeded", *arguments) == 1
    assert "coffee.png: no object covers 0.15% of the image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs either --images DIR or --scenes N"),
        (("--images", "IMAGES", "--scenes", "2"), "needs either --images DIR or --scenes N"),
        (("--images", "IMAGES"), "nothing to compare with"),
        (("--scenes", "2", "--truth", "IMAGES"), "the masks of scenes are known"),
        (("--scenes", "-2"), "--scenes must be at least 1"),
        (("--scenes", "0"), "--scenes must be at least 1"),
        (
            ("--images", "IMAGES", "--teacher", "seeded", "--prompts", "0"),
            "--prompts must be at least 1",
        ),
        (("--scenes", "1", "--prompts", "2"), "--prompts does nothing with --truth or --scenes"),
        (("--images", "IMAGES", "--truth", "IMAGES", "--prompts", "2"), "--prompts does nothing"),
        (("--scenes", "1", "--seed", "2"), "--seed does nothing without --teacher"),
        (("--scenes", "1", "--rows", "2"), "--rows does nothing without --gallery"),
        (("--scenes", "1", "--gallery", "g.gif"), "g.gif: the gallery must be a .png or .jpg file"),
        (("--scenes", "1", "--calibration", "c.gif"), "c.gif: the calibration must be a .png or .jpg"),
        (
            ("--images", "IMAGES", "--teacher", "seeded", "--calibration", "c.png"),
            "--calibration needs --truth or --scenes",
        ),
    ],
)
def test_contradictions_and_bad_values_are_usage_errors(folder, capsys, arguments, message):
    arguments = [folder / "images" if a == "IMAGES" else a for a in arguments]
    assert run("seeded", "--image-size", 64, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "IMAGES", "--truth", "nowhere"), "nowhere: no such folder"),
        (("--images", "nowhere", "--teacher", "seeded"), "nowhere: no such folder"),
        (("--scenes", "1", "--gallery", "nowhere/g.png"), "nowhere: no such folder for the gallery"),
        (("--scenes", "1", "--teacher", "nowhere.pt"), "nowhere.pt: No such file"),
    ],
)
def test_what_is_missing_is_named(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    arguments = [folder / "images" if a == "IMAGES" else a for a in arguments]
    assert run("seeded", "--image-size", 64, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_image_smaller_than_the_distances(models):
    tiny = Example("tiny", np.zeros((2, 64, 3), np.uint8), np.ones((1, 2, 64), bool))
    scores = scores_of(tiny, models, 2)
    assert scores
    assert torch.tensor([s.iou for s in scores]).isfinite().all()
