"""What commands write: no image and no earlier result is lost, and nothing old is mixed in."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from conftest import call_pocketsam, run_python
from PIL import Image
from test_runtime_commands import QUICK, fails

from pocketsam.errors import PocketSamError
from pocketsam.files import write_files
from pocketsam.runtime.commands.everything import _shown, _then_write_dataset
from pocketsam.runtime.everything.grid import Parameters


@pytest.fixture
def folder(photo, tmp_path):
    """Photographs a.png and c.png."""
    path = tmp_path / "photos"
    path.mkdir()
    Image.fromarray(photo[:50, :60]).save(path / "a.png")
    Image.fromarray(photo[60:110, :70]).save(path / "c.png")
    return path


@pytest.mark.parametrize("name", ["mask.png", "overlay.jpg"])
def test_a_folder_for_all_does_not_replace_the_image(name, bundle, photo, tmp_path):
    image = tmp_path / name
    Image.fromarray(photo[:50, :60]).save(image)
    before = image.read_bytes()
    for command in (["segment", bundle, image, "--point", "9,9"], ["everything", bundle, image]):
        fails(call_pocketsam(*command, "--output", tmp_path), 2, f"{name}: is the image")
    assert image.read_bytes() == before


def test_prompts_are_not_replaced(bundle, photo, tmp_path):
    Image.fromarray(photo[:50, :60]).save(tmp_path / "a.png")
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"boxes": [[1, 1, 20, 20]]}')
    command = ["segment", bundle, tmp_path / "a.png", "--prompt-file", prompts, "--output", prompts]
    fails(call_pocketsam(*command), 2, "prompts.json: is read by this command")
    assert "boxes" in prompts.read_text()


def test_a_directory_in_the_place_of_one_file_leaves_the_others(tmp_path):
    (tmp_path / "mask.png").mkdir()
    jobs = [(tmp_path / name, lambda work: work.write_text("new")) for name in ("a.json", "mask.png")]
    with pytest.raises(PocketSamError, match=r"mask\.png: cannot be written: is a directory"):
        write_files(jobs)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_masks_of_other_arithmetic_are_not_taken_for_these():
    parameters = Parameters()
    shown = [_shown(SimpleNamespace(arithmetic=name), parameters, False) for name in ("f32", "bf16")]
    assert shown[1] == shown[0] | {"arithmetic": "bf16"}


def test_masks_do_not_go_among_the_images(bundle, photo, tmp_path):
    folder = tmp_path / "cats"
    folder.mkdir()
    for name in ("cats.png", "mask.png"):
        Image.fromarray(photo[:50, :60]).save(folder / name)
    before = (folder / "mask.png").read_bytes()
    done = call_pocketsam("everything", bundle, folder, *QUICK, "--output", tmp_path)
    fails(done, 1, "cats.png: its masks would go among the images")
    assert (folder / "mask.png").read_bytes() == before


def test_the_demo_replaces_no_file_but_its_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mask.png").write_bytes(b"mine")
    fails(
        call_pocketsam("demo", "--output", tmp_path / "a"), 2, "mask.png: exists, and is not the demo's"
    )
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["mask.png"]
    for _ in range(2):
        assert call_pocketsam("demo", "--output", tmp_path / "b").returncode == 0
    (tmp_path / "b" / "photo.jpg").write_bytes(b"mine")
    fails(call_pocketsam("demo", "--output", tmp_path / "b"), 2, "photo.jpg: exists")


def test_a_dataset_holds_what_the_folder_holds(bundle, folder, tmp_path):
    out = tmp_path / "r.v2"  # a dot in its name makes it no file
    command = ["everything", bundle, folder, *QUICK, "--output", f"{out}/"]
    assert call_pocketsam(*command).returncode == 0
    (folder / "a.png").unlink()
    assert call_pocketsam(*command).returncode == 0
    dataset = json.loads((out / "dataset.json").read_text())
    assert [image["file_name"] for image in dataset["images"]] == ["c.png"]
    Image.open(folder / "c.png").save(folder / "c.bmp")
    (folder / "c.png").unlink()
    assert call_pocketsam(*command).returncode == 0
    dataset = json.loads((out / "dataset.json").read_text())
    assert [image["file_name"] for image in dataset["images"]] == ["c.bmp"]  # of the same pixels


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_is_cut_short_replaces_no_dataset(error, tmp_path):
    path = tmp_path / "all.json"
    record = {"info": {}, "images": [{"file_name": "a"}], "annotations": []}
    with _then_write_dataset(path, [record, record]):
        pass
    whole = path.read_bytes()
    with pytest.raises(error), _then_write_dataset(path, [record]):
        raise error
    assert path.read_bytes() == whole
    assert len(json.loads((tmp_path / "all.partial.json").read_text())["images"]) == 1
    with _then_write_dataset(path, [record, record]):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["all.json"]
    (tmp_path / "all.partial.json").write_text("mine")
    with _then_write_dataset(path, [record, record]):
        pass
    assert (tmp_path / "all.partial.json").read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["[]", "5", "{}", '{"images": []}', '["info", "images", "annotations"]']
)
def test_a_damaged_result_is_made_again(damage, bundle, folder, tmp_path):
    command = ["everything", bundle, folder, *QUICK, "--output", tmp_path / "out"]
    call_pocketsam(*command)
    (tmp_path / "out" / "a" / "masks.json").write_text(damage)
    done = call_pocketsam(*command)
    assert (done.returncode, done.stdout.count("done before")) == (0, 1), done.stderr


def test_an_image_smaller_than_the_crops_does_not_end_the_run(bundle, folder, photo, tmp_path):
    Image.fromarray(photo[:1, :1]).save(folder / "b.png")
    command = ["everything", bundle, folder, *QUICK, "--crop-n-layers", 1]
    done = call_pocketsam(*command, "--output", tmp_path / "all.json")
    fails(done, 1, "1x1 pixels is too small for 1 layers")
    assert "2 images done, 1 skipped" in done.stdout
    assert len(json.loads((tmp_path / "all.json").read_text())["images"]) == 2


def test_a_file_name_that_is_no_utf8(bundle, folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "a.png").rename(folder / name)
    done = call_pocketsam(
        "segment", bundle, folder / name, "--point", "9,9", "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert found["image"] == str(folder / name)


def test_pictures_of_a_comparison_replace_no_image(bundle, folder, photo, tmp_path):
    Image.fromarray(photo[:50, :60]).save(folder / "a.jpg")
    (folder / "d.heic").write_bytes(b"")
    Image.fromarray(photo[:1, :1]).resize((3000, 1)).save(folder / "e.png")
    before = (folder / "c.png").read_bytes()
    command = ["compare", folder, "--reference", bundle, "--bundle", f"same={bundle}", "--prompts", 1]
    fails(call_pocketsam(*command, "--output", folder), 2, "c.png: is one of the images")
    assert (folder / "c.png").read_bytes() == before
    done = call_pocketsam(*command, "--output", tmp_path / "out")
    fails(done, 1, "d.heic", "e.png: no prompt fits in 3000x1 pixels", "2 images were skipped")
    pictures = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert pictures == ["a.jpg.png", "a.png.png", "c.png"]


def test_a_bench_of_a_bundle_without_its_encoder(bundle, tmp_path):
    copied = shutil.copytree(bundle, tmp_path / "copied")
    (copied / "encoder.onnx").unlink()
    fails(call_pocketsam("bench", copied, "--runs", 1), 5, "encoder.onnx: No such file")
    os.mkfifo(copied / "encoder.onnx")
    fails(call_pocketsam("bench", copied, "--runs", 1), 5, "encoder.onnx")


def test_without_a_standard_error(bundle, folder, tmp_path):
    out = tmp_path / "m.json"
    command = ["everything", bundle, folder / "a.png", *QUICK, "--json", "--output", out]
    words = [str(word) for word in command]
    done = run_python(
        f"import sys; sys.stderr = None; from pocketsam.cli import main; sys.exit(main({words}))"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(out.read_text())
