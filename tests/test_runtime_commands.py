"""The command as a user meets it: what it prints, what it writes, how it fails."""

import json
import re
import shutil
from hashlib import sha256

import numpy as np
import pytest
from conftest import SMALL, call_pocketsam, run_pocketsam
from PIL import Image
from pycocotools import mask as coco

from pocketsam.cli import main
from pocketsam.runtime import Segmenter, from_rle, load_image
from pocketsam.runtime.everything.coco import annotations_of
from pocketsam.runtime.manifest import MANIFEST_NAME


@pytest.fixture(scope="module")
def photo_file(photo, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(photo).save(path)
    return path


def fails(done, code, *says):
    """One clear line, the documented exit code, no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "error: " in last
    for text in says:
        assert text in done.stderr


def test_info(bundle):
    done = run_pocketsam("info", bundle)
    assert done.returncode == 0
    for text in ("onnx fp32", f"{SMALL} px", "seeded:11", "untrained", "encoder.onnx", "GMAC", "torch"):
        assert text in done.stdout
    assert "point_coords [B, N, 2] float32" in done.stdout
    assert "✗" not in done.stdout
    assert "✓ equivalent: mask IoU" in done.stdout
    assert done.stdout.count("✓") == 30  # 29 comparisons, and the grade
    assert "\x1b" not in done.stdout

    done = run_pocketsam("info", bundle, "--json")
    assert json.loads(done.stdout) == json.loads((bundle / MANIFEST_NAME).read_text())
    assert done.stderr == ""


def test_verify_with_and_without_the_checkpoint(bundle, photo_file):
    done = run_pocketsam("verify", bundle)
    assert done.returncode == 0
    assert done.stdout.count("✓ fp32, golden") == 8
    assert done.stdout.count(" in `everything` beside PyTorch") == 4
    assert done.stdout.splitlines()[-1] == "OK: golden vectors: fp32 (equivalent)"
    result = json.loads(call_pocketsam("verify", bundle, "--json").stdout)
    (entry,) = result["precisions"]
    assert (entry["precision"], entry["grade"]) == ("fp32", "equivalent")
    assert result["passed"] is entry["passed"] is True
    assert entry["parity"] is None
    assert [(one["prompt"], one["decoder"], one["ok"]) for one in entry["golden"]] == [
        (name, decoder, True)
        for decoder in ("whole", "split")
        for name in ("point", "box", "points", "refine")
    ]

    done = call_pocketsam(
        "verify", bundle, "--checkpoint", "seeded:11", "--images", photo_file, "--json"
    )
    assert done.returncode == 0
    report = json.loads(done.stdout)
    (entry,) = report["precisions"]
    assert report["passed"] is entry["passed"] is True
    assert entry["golden"] is None
    assert entry["parity"]["cases"] == 13
    names = {row["worst_case"].split(",")[0] for row in entry["parity"]["rows"]}
    assert names == {"cat.png"}


def test_verify_runs_on_the_chosen_device(bundle):
    for extra in ([], ["--checkpoint", "seeded:11"]):
        fails(call_pocketsam("verify", bundle, *extra, "--provider", "cuda"), 1, "cuda", "present are")
        fails(call_pocketsam("verify", bundle, *extra, "--threads", "0"), 2, "threads")


def test_verify_against_another_checkpoint_fails_and_names_the_first_tensor(bundle, photo_file):
    done = call_pocketsam("verify", bundle, "--checkpoint", "seeded:12", "--images", photo_file)
    fails(done, 3, "first that diverges is encoder image_encoder.patch_embed", "cat.png")
    assert "✗ encoder image_encoder.patch_embed" in done.stdout


def test_segment_writes_what_the_suffix_says(bundle, photo, photo_file, tmp_path):
    outputs = [
        tmp_path / name for name in ("mask.png", "picture.jpg", "picture.webp", "masks.json", "all")
    ]
    arguments = [word for path in outputs for word in ("--output", path)]
    done = run_pocketsam("segment", bundle, photo_file, "--point", "200,120", *arguments)
    assert done.returncode == 0, done.stderr
    assert "untrained" in done.stderr
    assert re.search(r"object 1: score -?\d\.\d{3}, \d+ pixels, box \[", done.stdout)

    segmenter = Segmenter(bundle)
    segmenter.set_image(photo)
    masks, scores, _ = segmenter.predict([[200, 120]], [1])
    wanted = masks[scores.argmax()]
    assert np.array_equal(np.asarray(Image.open(outputs[0])), wanted * np.uint8(255))
    record = json.loads(outputs[3].read_text())
    (entry,) = record["masks"]
    assert np.array_equal(from_rle(entry["segmentation"]), wanted)
    assert np.array_equal(coco.decode(entry["segmentation"]).astype(bool), wanted)
    assert entry["area"] == wanted.sum()
    assert entry["bbox"] == coco.toBbox(entry["segmentation"]).tolist()
    assert entry["predicted_iou"] == pytest.approx(float(scores.max()))
    assert entry["point_coords"] == [[200, 120]]
    for path in (outputs[1], outputs[2], outputs[4] / "overlay.jpg"):
        assert load_image(path).shape == photo.shape
    assert sorted(path.name for path in outputs[4].iterdir()) == [
        "mask.png",
        "masks.json",
        "overlay.jpg",
    ]
    assert len(list(tmp_path.iterdir())) == len(outputs)


def test_segment_prompt_rules(bundle, photo, photo_file, tmp_path):
    """Boxes are objects of their own; points and a box are one; as a prompt file says the same."""
    segmenter = Segmenter(bundle)
    segmenter.set_image(photo)

    def record(*arguments):
        done = call_pocketsam(
            "segment", bundle, photo_file, *arguments, "--output", tmp_path / "o", "--json"
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["masks"]

    boxes = record("--box", "10,10,200,200", "--box", "100,50,400,250")
    assert len(boxes) == 2
    labels = np.asarray(Image.open(tmp_path / "o" / "mask.png"))
    second = from_rle(boxes[1]["segmentation"])
    assert second.any()
    assert (labels[second] == 2).all()  # the second lies on top
    assert (labels[from_rle(boxes[0]["segmentation"]) & ~second] == 1).all()
    assert set(np.unique(labels)) <= {0, 1, 2}
    masks, scores, _ = segmenter.predict(box=[100, 50, 400, 250])
    assert np.array_equal(from_rle(boxes[1]["segmentation"]), masks[scores.argmax()])

    (both,) = record("--box", "10,10,200,200", "--point", "50,60", "--point", "70,80,0")
    masks, _, _ = segmenter.predict(
        [[50, 60], [70, 80]], [1, 0], [10, 10, 200, 200], multimask_output=False
    )
    assert np.array_equal(from_rle(both["segmentation"]), masks[0])

    prompts = [
        {"type": "point", "data": [50, 60], "label": 1},
        {"type": "point", "data": [70, 80], "label": 0},
        {"type": "rectangle", "data": [10, 10, 200, 200]},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    (filed,) = record("--prompt-file", tmp_path / "prompts.json")
    assert filed == both


def test_segment_leaves_nothing_half_written(bundle, photo_file, tmp_path):
    target = tmp_path / "nowhere" / "mask.png"
    done = run_pocketsam("segment", bundle, photo_file, "--point", "5,5", "--output", target)
    fails(done, 1, str(target))
    assert list(tmp_path.iterdir()) == []


def test_bad_input_of_segment(bundle, photo_file, tmp_path):
    good = [bundle, photo_file, "--point", "5,5", "--output", tmp_path / "out.png"]

    def segment(*arguments):
        return call_pocketsam("segment", *arguments)

    fails(segment(bundle, tmp_path / "none.png", *good[2:]), 1, "none.png", "no such file")
    (tmp_path / "text.png").write_text("not a picture")
    fails(segment(bundle, tmp_path / "text.png", *good[2:]), 1, "text.png")
    fails(segment(tmp_path, *good[1:]), 1, "not a bundle")
    fails(segment(*good, "--point", "900,5"), 1, "(900, 5)", "outside the image")
    fails(segment(*good, "--point", "nan,5"), 1, "NaN")
    fails(segment(*good, "--box", "9,9,5,5"), 1, "x0 <= x1")
    fails(segment(*good, "--box", "1,1,5,5", "--box", "1,1,5,5"), 2, "several boxes")
    fails(segment(*good, "--prompt-file", tmp_path / "none.json"), 1, "none.json")
    fails(segment(bundle, photo_file, "--output", tmp_path / "out.png"), 2, "nothing to segment")
    fails(segment(*good[:-1], tmp_path / "out.gif"), 2, "unknown suffix '.gif'")
    fails(segment(*good, "--provider", "cuda"), 1, "cuda", "present are: ")
    fails(segment(*good, "--threads", "0"), 2, "threads")
    for wrong in ("5", "5,5,7", "a,b", ""):
        fails(segment(*good, f"--point={wrong}"), 2, "--point")
    assert not (tmp_path / "out.png").exists()


def test_a_changed_byte_is_an_integrity_error(bundle, photo_file, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "decoder.onnx").write_bytes(data)
    out = tmp_path / "out.png"
    arguments = ("segment", copy, photo_file, "--point", "5,5", "--output", out)
    for done in (
        call_pocketsam(*arguments),
        call_pocketsam("info", copy),
        call_pocketsam("verify", copy),
    ):
        fails(done, 5, "decoder.onnx", "sha256")
    assert not out.exists()


def test_usage_errors_exit_with_2():
    for arguments in (
        ["nothing"],
        ["export"],
        ["export", "x", "--output", "y", "--image-size", "100"],
    ):
        assert call_pocketsam(*arguments).returncode == 2


def test_bad_checkpoints_of_export(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    for name in ("text.pt", "none.pt"):
        done = call_pocketsam("export", tmp_path / name, "--output", tmp_path / "bundle")
        fails(done, 1, name)
    assert not (tmp_path / "bundle").exists()


def test_bench(bundle, photo_file):
    arguments = ["--runs", 2, "--warmup", 1, "--threads", 1, "--image", photo_file]
    done = run_pocketsam("bench", bundle, *arguments, "--against", bundle / "encoder.onnx", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["stages"]) == {"encoder", "decoder", "end to end", "against encoder"}
    for row in result["stages"].values():
        assert row["n"] == 2
        assert 0 < row["min"] <= row["p50"] <= row["p90"] <= row["p99"]
    assert result["settings"]["threads"] == 1
    assert result["settings"]["providers"] == ["CPUExecutionProvider"]
    assert result["machine"]["onnxruntime"]
    assert result["machine"]["cores"] >= 1
    assert result["gemm"]["gflop_per_s"] > 0.1
    macs = json.loads((bundle / MANIFEST_NAME).read_text())["encoder"]["macs"]
    floor = 2 * macs / result["gemm"]["gflop_per_s"] / 1e9
    assert result["encoder_floor"]["seconds"] == pytest.approx(floor)
    ratio = result["stages"]["encoder"]["min"] / floor
    assert result["encoder_floor"]["ratio_min"] == pytest.approx(ratio)
    assert result["peak_rss_bytes"] > 50e6
    assert result["load_s"]["encoder"] > 0
    assert result["against"]["encoder_time_ratio"]["min"] > 0


def test_bench_as_a_table_against_a_bundle(bundle):
    done = call_pocketsam("bench", bundle, "--runs", 1, "--warmup", 0, "--against", bundle)
    assert done.returncode == 0, done.stderr
    for text in (
        "encoder",
        "decoder",
        "end to end",
        "against decoder",
        "GFLOP/s",
        "floor",
        "peak memory",
        f"encoder time relative to {bundle} (fp32)",
    ):
        assert text in done.stdout


def test_bad_input_of_bench(bundle, tmp_path):
    fails(call_pocketsam("bench", bundle, "--runs", 0), 2, "runs")
    fails(call_pocketsam("bench", bundle, "--against", tmp_path / "none.onnx"), 1, "none.onnx")
    fails(
        call_pocketsam("bench", bundle, "--against", bundle / "decoder.onnx"),
        1,
        "point_coords",
        "static",
    )
    fails(call_pocketsam("bench", tmp_path), 1, "not a bundle")


@pytest.fixture(scope="module")
def several(bundle, tmp_path_factory):
    """A bundle of two precisions; both have the same files, since only the choice matters here."""
    outer = tmp_path_factory.mktemp("several") / "bundle"
    shutil.copytree(bundle, outer)
    shutil.copytree(bundle, outer / "fp16")
    change_manifest(outer / "fp16", precision="fp16")
    change_manifest(
        outer, also={"fp16": sha256((outer / "fp16" / MANIFEST_NAME).read_bytes()).hexdigest()}
    )
    return outer


def change_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST_NAME).read_text()) | changes
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_precision_is_an_option_of_every_command_that_runs_a_bundle(
    several, photo_file, tmp_path, capsys
):
    image, output = str(photo_file), ["--output", str(tmp_path / "out")]
    commands = [
        ["verify", str(several)],
        ["bench", str(several), "--runs", "1", "--warmup", "0"],
        ["segment", str(several), image, "--point", "9,9", *output],
        ["everything", str(several), image, "--time-budget", "0", *output],
        ["embed", str(several), image, *output],
        ["compare", image, "--reference", str(several), "--bundle", f"x={several}", "--prompts", "1"],
    ]
    damaged = several / "fp16" / "encoder.onnx"
    whole = damaged.read_bytes()
    for command in commands:
        assert main([*command, "--precision", "fp16"]) == 0, command
        assert main([*command, "--precision", "int8"]) == 1, command
        assert "holds fp32, fp16, not int8" in capsys.readouterr().err
        damaged.write_bytes(b"")
        assert main([*command, "--precision", "fp32"]) == 0, command
        assert main([*command, "--precision", "fp16"]) == 5, command  # it is fp16's file that it opens
        damaged.write_bytes(whole)


def test_golden_vectors_are_those_of_the_chosen_precision(several, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(several, damaged)
    (damaged / "fp16" / "golden.npz").write_bytes(b"")
    assert main(["verify", str(damaged), "--json", "--precision", "fp32"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["precisions"]
    assert entry["precision"] == "fp32"
    for chosen in (["--precision", "fp16"], []):
        assert main(["verify", str(damaged), *chosen]) == 5
        assert "fp16/golden.npz: 0 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--pred-iou-thresh", "1"],
            ["the best predicted IoU is 0.", "--pred-iou-thresh is 1.00; try 0."],
        ),
        (
            ["--pred-iou-thresh", "0.01", "--stability-score-thresh", "1"],
            ["stable than --stability-score-thresh 1.00; try 0.90"],
        ),
        (["--time-budget", "0"], ["try a longer --time-budget"]),
    ],
)
def test_everything_that_finds_nothing_says_what_to_try(options, says, photo_file, tmp_path):
    command = ["everything", photo_file, "--points-per-side", "2", "--output", tmp_path / "out.json"]
    done = call_pocketsam(*command, *options)
    assert done.returncode == 0
    assert done.stdout.startswith("0 objects\n")
    for text in ["cat.png: no mask passed: ", *says]:
        assert text in done.stderr


def test_arguments_may_stand_between_options(bundle, photo_file, tmp_path):
    out = tmp_path / "out.png"
    for arguments in (
        [bundle, "--point", "9,9", photo_file, "--output", out],
        ["--output", out, photo_file, "--point", "9,9"],
    ):
        done = call_pocketsam("segment", *arguments)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"wrote {out}"), done.stderr
    done = call_pocketsam("segment", bundle, photo_file, photo_file, "--point", "9,9", "--output", out)
    assert (done.returncode, "unrecognized arguments" in done.stderr) == (2, True)


@pytest.mark.parametrize("command", [["segment", "--point", "1,1"], ["everything"], ["embed"]])
def test_a_bundle_where_the_image_should_be(command, bundle, tmp_path):
    name, *options = command
    done = call_pocketsam(name, bundle, *options, "--output", tmp_path / "out")
    fails(done, 2, "is a bundle; name an image after it")


def test_outputs_are_checked_before_any_work(photo_file, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("worked")

    monkeypatch.setattr(Segmenter, "set_image", never)
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo_file.read_bytes())
    (tmp_path / "folder.json").mkdir()
    Image.new("RGB", (17_000, 3)).save(tmp_path / "wide.png")
    for image, output, code, says in (
        (copy, copy, 2, "copy.png: is the image"),
        (copy, copy / "out", 2, "is a file, not a directory"),
        (copy, tmp_path / "folder.json", 2, "is a directory"),
        (tmp_path / "wide.png", tmp_path / "x.webp", 2, ".webp holds sides of at most 16383 pixels"),
        (copy, tmp_path / "none" / "x.png", 1, "there is no directory"),
    ):
        for command in (["segment", "--point", "1,1"], ["everything"]):
            done = call_pocketsam(command[0], image, *command[1:], "--output", output)
            fails(done, code, says)
    assert copy.read_bytes() == photo_file.read_bytes()


def folder_of(path, photo):
    """Two photographs, a text with an image's name, a directory, and macOS' companion of a file."""
    path.mkdir()
    Image.fromarray(photo[:50, :60]).save(path / "a.png")
    Image.fromarray(photo[60:110, :70]).save(path / "c.jpg")
    (path / "b.png").write_text("text")
    (path / "x.png").mkdir()
    (path / "._a.png").write_bytes(b"fork")
    return path


QUICK = ("--points-per-side", 2, "--pred-iou-thresh", 0, "--stability-score-thresh", 0)


def test_a_bad_file_does_not_end_the_run_of_a_folder(bundle, photo, tmp_path):
    folder, out = folder_of(tmp_path / "photos", photo), tmp_path / "out"
    for command, made in (
        (["everything", bundle, folder, *QUICK], ["a/masks.json", "c/masks.json", "dataset.json"]),
        (["embed", bundle, folder], ["a.npz", "c.npz"]),
    ):
        done = call_pocketsam(*command, "--output", out)
        fails(done, 1, "b.png", "x.png", "2 images could not be used")
        assert "2 images done, 2 skipped" in done.stdout
        assert all((out / name).is_file() for name in made)
        again = call_pocketsam(*command, "--output", out)
        assert again.stdout.count("done before") == 2
        assert again.returncode == 1


def test_folders_inside_a_folder_are_said(bundle, photo, tmp_path):
    (tmp_path / "photos").mkdir()
    folder_of(tmp_path / "photos/more", photo)
    for _ in range(2):  # alone, then beside an image
        done = call_pocketsam("embed", bundle, tmp_path / "photos", "--output", tmp_path / "out")
        assert "1 folder is not searched, such as more" in done.stderr
        codes = done.returncode
        Image.fromarray(photo[:50, :60]).save(tmp_path / "photos/a.png")
    assert codes == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.npz"]
    fails(
        call_pocketsam(
            "segment", bundle, tmp_path / "photos", "--point", "1,1", "--output", tmp_path / "a.png"
        ),
        2,
        "photos: a folder; name one image in it",
    )


def test_an_embedding_of_another_image_is_no_damaged_bundle(bundle, photo, tmp_path):
    for name, rows in (("a", 50), ("b", 60)):
        Image.fromarray(photo[:rows, :60]).save(tmp_path / f"{name}.png")
    call_pocketsam("embed", bundle, tmp_path / "a.png", "--output", tmp_path)
    command = [
        "segment",
        bundle,
        tmp_path / "b.png",
        "--box",
        "1,1,9,9",
        "--output",
        tmp_path / "m.png",
    ]
    done = call_pocketsam(*command, "--embedding", tmp_path / "a.npz")
    fails(done, 1, "a.npz: embedding of another image; encode this image")
    done = call_pocketsam("embed", bundle, tmp_path / "a.png", "--output", tmp_path / "b.png")
    fails(done, 2, "b.png: a file, and --output is a folder")


def test_one_dataset_of_a_folder_as_coco_has_it(bundle, photo, tmp_path):
    folder, out = folder_of(tmp_path / "photos", photo), tmp_path / "out"
    call_pocketsam("everything", bundle, folder, *QUICK, "--output", out)
    dataset = json.loads((out / "dataset.json").read_text(), parse_constant=pytest.fail)
    assert [image["id"] for image in dataset["images"]] == [1, 2]
    assert [image["file_name"] for image in dataset["images"]] == ["a.png", "c.jpg"]
    ids = [annotation["id"] for annotation in dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    assert {annotation["image_id"] for annotation in dataset["annotations"]} == {1, 2}
    for annotation in dataset["annotations"]:
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
        assert annotation["area"] == coco.area(annotation["segmentation"]) > 0


def test_what_changed_is_done_again(bundle, several_precisions, photo, tmp_path):
    folder, out = folder_of(tmp_path / "photos", photo), tmp_path / "out"
    command = ["everything", bundle, folder, *QUICK, "--output", out]
    call_pocketsam(*command)
    assert call_pocketsam(*command).stdout.count("done before") == 2
    Image.fromarray(photo[20:70, :60]).save(folder / "a.png")
    assert call_pocketsam(*command).stdout.count("done before") == 1
    assert call_pocketsam(*command, "--box-nms-thresh", "0.6").stdout.count("done before") == 0
    (out / "a" / "masks.json").write_text("{")
    assert call_pocketsam(*command, "--box-nms-thresh", "0.6").stdout.count("done before") == 1
    command[1] = several_precisions  # other weights
    assert call_pocketsam(*command, "--box-nms-thresh", "0.6").stdout.count("done before") == 0


def test_a_mask_without_pixels_and_a_stability_of_nan_are_no_json():
    record = {"bbox": [3, 4, 0, 0], "area": 1, "stability_score": float("nan")}
    (found,) = annotations_of([record, record | {"area": 0}], polygons=False)
    assert found["bbox"] == [3, 4, 1, 1]
    assert found["stability_score"] is None


def test_one_file_for_a_folder_with_polygons(bundle, photo, tmp_path):
    folder, out = folder_of(tmp_path / "photos", photo), tmp_path / "all.json"
    done = call_pocketsam("everything", bundle, folder, *QUICK, "--output", out, "--polygons")
    assert f"wrote {out}" in done.stdout
    dataset = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert [image["file_name"] for image in dataset["images"]] == ["a.png", "c.jpg"]
    assert dataset["annotations"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        polygons = annotation["segmentation"]
        x, y = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons]).T
        left, top, width, height = annotation["bbox"]
        assert (x.min(), y.min(), x.max(), y.max()) == (left, top, left + width, top + height)
        assert y.max() <= sizes[annotation["image_id"]][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "photos"]
