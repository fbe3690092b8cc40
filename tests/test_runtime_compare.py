"""Comparison of systems: the same prompts for all, figures that follow from the masks."""

import json
import shutil

import numpy as np
import pytest
from conftest import call_pocketsam
from PIL import Image
from test_runtime_fastsam import Small, write

from pocketsam.constants import POINT_DISTANCES
from pocketsam.runtime.commands.segment import find_objects
from pocketsam.runtime.compare.comparison import (
    Prompt,
    SamSystem,
    compare,
    draw_boxes,
    draw_prompts,
)
from pocketsam.runtime.rle import mask_iou
from pocketsam.runtime.segmenter import Segmenter


class Square:
    """A system that answers a point by a square around it, a box by itself; ``grow`` makes it wrong."""

    def __init__(self, name, grow=0):
        self.name, self.grow, self.prompts = name, grow, []
        self.precision = "drawn"

    def set_image(self, pixels):
        self.size = pixels.shape[:2]

    def segment(self, prompt):
        self.prompts.append(prompt)
        mask = np.zeros(self.size, bool)
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.astype(int)
            mask[y0:y1, x0:x1] = True
            return mask
        x, y = prompt.points[0].astype(int)
        side = 10 + self.grow
        mask[max(0, y - side) : y + side, max(0, x - side) : x + side] = True
        return mask


def test_all_systems_get_the_same_prompts():
    reference, same, larger = Square("reference"), Square("same"), Square("larger", 10)
    image = np.zeros((768, 1024, 3), np.uint8)
    tallies = compare(reference, [same, larger], [("a", image), ("b", image)], prompts=3)
    kinds = [f"two points {distance}" for distance in POINT_DISTANCES] + ["box"]
    for system in (same, larger):
        assert [p.kind for p in system.prompts] == [
            p.kind for p in reference.prompts if p.kind != "point"
        ]
        assert list(tallies[system.name].ious) == kinds
        assert all(len(values) == 6 for values in tallies[system.name].ious.values())
    assert tallies["same"].summary()["precision"] == "drawn"
    assert set(tallies["same"].summary()["miou"].values()) == {1.0}
    figures = tallies["larger"].summary()["miou"]
    assert figures["box"] == 1
    assert 0.2 < figures["two points 100"] < 0.5  # a quarter, more at the edges
    again = Square("again")
    compare(reference, [again], [("a", image), ("b", image)], prompts=3)
    for first, second in zip(again.prompts, same.prompts, strict=True):
        assert np.array_equal(first.points, second.points)
        assert np.array_equal(first.box, second.box)


@pytest.mark.parametrize("size", [(768, 1024), (1024, 300), (200, 200), (1, 1)])
def test_prompts_lie_inside_at_their_distance(size):
    found = draw_prompts(np.random.default_rng(0), size, 4)
    for prompt in found:
        length = np.linalg.norm(prompt.points[1] - prompt.points[0])
        distance = int(prompt.kind.split()[-1])
        assert length == pytest.approx(distance * max(size) / 1024)
        assert ((prompt.points >= 0) & (prompt.points < size[::-1])).all()
    if min(size) > 1:
        assert len(found) >= 12


def test_boxes_are_around_the_references_masks():
    reference = Square("reference")
    reference.set_image(np.zeros((100, 100, 3)))
    boxes = [prompt.box for prompt in draw_boxes(reference, np.random.default_rng(0), (100, 100), 5)]
    assert len(boxes) == len(reference.prompts) == 5
    for box, asked in zip(boxes, reference.prompts, strict=True):
        x, y = asked.points[0].astype(int)
        assert box.tolist() == [max(0, x - 10), max(0, y - 10), min(100, x + 10), min(100, y + 10)]


def test_iou():
    first, second = np.zeros((2, 4, 4), bool)
    assert mask_iou(first, second) == 1
    first[:2], second[1:3] = True, True
    assert mask_iou(first, second) == pytest.approx(1 / 3)


def test_a_bundle_answers_as_the_command_segment(bundle, photo):
    """A point or a box alone gets the best of three masks, two points get the single mask."""
    segmenter = Segmenter(bundle)
    system = SamSystem("bundle", segmenter)
    system.set_image(photo)
    best, single = [], []
    for points, box in (([(50, 60)], None), ([], (10, 20, 200, 150)), ([(50, 60), (90, 70)], None)):
        labelled, boxes = [(x, y, 1) for x, y in points], [box] if box else []
        prompt = Prompt(
            "any", np.array(points, float) if points else None, box and np.array(box, float)
        )
        found = system.segment(prompt)
        (wanted,) = find_objects(segmenter, labelled, boxes)
        assert np.array_equal(found, wanted.mask)
        options = (
            {"point_coords": points, "point_labels": [1] * len(points)} if points else {"box": box}
        )
        masks, scores, _ = segmenter.predict(**options)
        best.append(np.array_equal(found, masks[scores.argmax()]))
        masks, _, _ = segmenter.predict(**options, multimask_output=False)
        single.append(np.array_equal(found, masks[0]))
    assert (best, single) == ([True, True, False], [False, False, True])


def test_the_command(bundle, pictures, tmp_path):
    write(tmp_path / "small.onnx", Small())
    command = ["compare", pictures[0], "--reference", bundle, "--bundle", f"same={bundle}"]
    command += ["--fastsam", f"fast={tmp_path / 'small.onnx'}", "--prompts", 2]
    done = call_pocketsam(*command, "--json", "--output", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    systems = json.loads(done.stdout)["systems"]
    assert set(systems) == {"reference", "same", "fast"}
    assert all(value == 1 for value in systems["same"]["miou"].values())
    assert all(0 <= value < 1 for value in systems["fast"]["miou"].values())
    assert all(row["image_s"] > 0 and row["prompt_s"] > 0 for row in systems.values())
    (picture,) = (tmp_path / "pictures").iterdir()
    width, height = Image.open(picture).convert("RGB").size
    assert width % 3 == 0  # a column for each system
    assert height > 150
    done = call_pocketsam(*command)
    assert done.stdout.startswith("| system | precision | two points 100 |")


def test_an_image_that_cannot_be_read_is_skipped(bundle, pictures, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    command = ["compare", tmp_path, "--reference", bundle, "--bundle", f"same={bundle}", "--prompts", 1]
    done = call_pocketsam(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no image could be used" in done.stderr
    shutil.copy(pictures[0], tmp_path / "b.png")
    done = call_pocketsam(*command)
    assert done.returncode == 1
    assert "| same | fp32 | 1.000" in done.stdout
    assert "1 images were skipped" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to compare with the reference"),
        (["--bundle", "{bundle}", "--prompts", "0"], 2, "--prompts 0"),
        (["--bundle", "reference={bundle}"], 2, "two systems of the same name"),
        (["--fastsam", "{bundle}/decoder.onnx"], 1, "needs a single input"),
        (["--bundle", "absent"], 1, "absent"),
        (["--bundle", "{bundle}", "--threads", "0"], 2, "threads must be"),
        (["--bundle", "{bundle}", "--precision", "fp16"], 1, "holds fp32, not fp16"),
    ],
)
def test_wrong_arguments(arguments, code, message, bundle, pictures):
    given = [text.format(bundle=bundle) for text in arguments]
    done = call_pocketsam("compare", pictures[0], "--reference", bundle, *given)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
