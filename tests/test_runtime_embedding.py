"""Embeddings in files: the same masks without the encoder, and refusal of what does not belong."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import call_pocketsam, change_encoder
from PIL import Image

from pocketsam.errors import ImageError, PromptError
from pocketsam.images import load_image
from pocketsam.runtime import Segmenter
from pocketsam.runtime.embedding import read_embedding


@pytest.fixture(scope="module")
def saved(bundle, photo, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedding") / "new" / "cat.npz"
    segmenter = Segmenter(bundle)
    segmenter.set_image(photo)
    segmenter.embedding().save(path)
    return path


def test_the_same_masks_without_the_encoder(bundle, photo, saved):
    first, second = Segmenter(bundle), Segmenter(bundle)
    first.set_image(photo)
    second.set_embedding(saved, photo)
    assert second.original_size == photo.shape[:2]
    wanted = first.predict([[200, 150]], [1])
    for one, other in zip(second.predict([[200, 150]], [1]), wanted, strict=True):
        assert np.array_equal(one, other)
    assert second.embedding().image_sha256 == first.embedding().image_sha256


def test_what_does_not_belong(bundle, photo, saved, tmp_path):
    segmenter = Segmenter(bundle)
    with pytest.raises(ImageError, match=r"cat\.npz: embedding of another image"):
        segmenter.set_embedding(saved, photo[:, ::-1])
    assert not segmenter.is_image_set
    change_encoder(bundle, tmp_path / "other")
    with pytest.raises(ImageError, match=r"cat\.npz: embedding of another encoder"):
        Segmenter(tmp_path / "other").set_embedding(saved)


def test_embed_keeps_what_is_done_and_what_is_not_its_own(bundle, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "cat.png")
    command = ["embed", bundle, tmp_path / "cat.png", "--output", tmp_path]
    path = tmp_path / "cat.npz"
    for wanted in (f"wrote {path}", "done before"):
        assert call_pocketsam(*command).stdout.strip() == wanted
    other = replace(read_embedding(path), arithmetic="bf16")
    other.save(path)
    segmenter = Segmenter(bundle)
    segmenter.set_embedding(path)
    assert segmenter.embedding().arithmetic == "bf16"
    assert call_pocketsam(*command).stdout.strip() == f"wrote {path}"
    assert read_embedding(path).arithmetic == "f32"
    np.savez(path, labels=np.ones(3))
    done = call_pocketsam(*command)
    assert done.returncode == 1
    assert "cat.npz: is no embedding, and would be replaced" in done.stderr
    assert np.load(path)["labels"].sum() == 3


def test_files_that_are_no_embedding(bundle, saved, tmp_path):
    segmenter = Segmenter(bundle)
    damaged = tmp_path / "damaged.npz"
    for data in (b"", b"nonsense", saved.read_bytes()[:-100], saved.read_bytes()[:1000]):
        damaged.write_bytes(data)
        with pytest.raises(ImageError, match=r"damaged\.npz: (not an embedding|cannot be read)"):
            segmenter.set_embedding(damaged)
    with np.load(saved) as file:
        arrays = dict(file)
    for name, value in (
        ("image_embeddings", np.full((1, 256, 16, 16), np.nan, np.float32)),
        ("image_embeddings", np.zeros((1, 256, 16, 16))),
        ("original_size", np.zeros(3, np.int64)),
    ):
        np.savez(damaged, **(arrays | {name: value}))
        with pytest.raises(ImageError, match=r"damaged\.npz"):
            segmenter.set_embedding(damaged)
    np.savez(damaged, **(arrays | {"image_embeddings": np.zeros((1, 256, 32, 32), np.float32)}))
    with pytest.raises(ImageError, match="another encoder"):
        segmenter.set_embedding(damaged)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_embedding(tmp_path / "absent.npz")
    with pytest.raises(PromptError, match="no image is set"):
        segmenter.embedding()


@pytest.mark.parametrize("name", ["x.emb", "x", "x.npy"])
def test_any_suffix(bundle, photo, saved, tmp_path, name):
    """NumPy appends .npz to a path of another suffix: the file asked for stayed empty."""
    path = tmp_path / "new" / name
    read_embedding(saved).save(path)
    assert list(path.parent.iterdir()) == [path]
    Segmenter(bundle).set_embedding(path, photo)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ([0, 451], "an image without pixels"),
        ([-300, -451], "an image without pixels"),
        ([2**40, 1], "1x1099511627776 pixels, more than"),
        ([2**62, 2**62], "pixels, more than"),
        ([90_000_000, 1], "a side longer than"),
        ([300.0, 451.0], "not a height and a width in whole pixels"),
        ([[300, 451]], "not a height and a width in whole pixels"),
        (300, "not a height and a width in whole pixels"),
    ],
)
def test_a_size_that_no_image_has(bundle, photo, saved, tmp_path, size, says):
    segmenter = Segmenter(bundle)
    segmenter.set_image(photo[:50, :60])
    before = segmenter.predict([[20, 20]], [1])[2]
    with np.load(saved) as file:
        np.savez(tmp_path / "other.npz", **(dict(file) | {"original_size": np.array(size)}))
    with pytest.raises(ImageError, match=rf"other\.npz: original_size.*{says}"):
        segmenter.set_embedding(tmp_path / "other.npz")
    assert segmenter.original_size == (50, 60)
    assert np.array_equal(segmenter.predict([[20, 20]], [1])[2], before)


def test_the_size_must_be_the_images(bundle, photo, saved, tmp_path):
    with np.load(saved) as file:
        np.savez(tmp_path / "other.npz", **(dict(file) | {"original_size": np.array([30, 45])}))
    segmenter = Segmenter(bundle)
    with pytest.raises(ImageError, match=r"other\.npz: embedding of another image"):
        segmenter.set_embedding(tmp_path / "other.npz", photo)
    with pytest.raises(ImageError, match="uint8 array"):
        segmenter.set_embedding(saved, "cat.png")
    assert not segmenter.is_image_set


def test_a_file_that_unpacks_to_gigabytes(saved, tmp_path):
    with np.load(saved) as file:
        bomb = dict(file) | {"image_embeddings": np.zeros((1, 256, 512, 512), np.float32)}
    np.savez_compressed(tmp_path / "bomb.npz", **bomb)
    assert (tmp_path / "bomb.npz").stat().st_size < 10**6
    with pytest.raises(ImageError, match=r"bomb\.npz: .* unpacks to over"):
        read_embedding(tmp_path / "bomb.npz")


def test_a_folder_is_resumed(bundle, photo, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photo[:50, :60]).save(folder / name)
    command = ("embed", bundle, folder, "--output", tmp_path / "out")
    assert call_pocketsam(*command).stdout.count("wrote") == 2
    (tmp_path / "out" / "b.npz").write_bytes(b"half")
    done = call_pocketsam(*command)
    assert "1/2 a.png: done before" in done.stdout
    assert "2/2 b.png: wrote" in done.stdout
    picture = tmp_path / "mask.png"
    more = ("--point", "20,20", "--output", picture)
    file = tmp_path / "out" / "a.npz"
    done = call_pocketsam("segment", bundle, folder / "a.png", "--embedding", file, *more)
    assert done.returncode == 0, done.stderr
    assert load_image(picture).shape == (50, 60, 3)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = call_pocketsam("embed", bundle, empty, "--output", tmp_path / "out")
    assert (done.returncode, "a folder without images" in done.stderr) == (1, True)


def test_everything_of_a_folder_is_resumed(bundle, photo, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photo[:50, :60]).save(folder / name)
    loose = ("--points-per-side", 2, "--pred-iou-thresh", 0, "--stability-score-thresh", 0)
    command = ("everything", bundle, folder, "--output", tmp_path / "out", *loose)
    assert call_pocketsam(*command).returncode == 0
    (tmp_path / "out" / "b" / "masks.json").unlink()
    done = call_pocketsam(*command)
    assert "1/2 a.png: done before" in done.stdout
    assert "2/2 b.png: " in done.stdout
    dataset = json.loads((tmp_path / "out" / "b" / "masks.json").read_text())
    assert dataset["annotations"][0]["segmentation"]["size"] == [50, 60]
    areas = [annotation["area"] for annotation in dataset["annotations"]]
    assert areas == sorted(areas, reverse=True)
    assert {annotation["image_id"] for annotation in dataset["annotations"]} == {
        dataset["images"][0]["id"]
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points-per-side", "0"], "points_per_side must be a whole number from 1"),
        (["--pred-iou-thresh", "2"], "pred_iou_thresh must lie in 0..1"),
        (["--time-budget", "-1"], "time_budget must be seconds >= 0"),
        (["--output", "x.bmp"], "unknown suffix '.bmp'"),
    ],
)
def test_wrong_arguments_of_everything(arguments, message, bundle, pictures, tmp_path):
    command = ["everything", bundle, pictures[0], "--output", tmp_path / "out", *arguments]
    done = call_pocketsam(*command)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_time_budget_of_nothing_gives_an_empty_dataset(bundle, pictures, tmp_path):
    out = tmp_path / "out"
    done = call_pocketsam("everything", bundle, pictures[0], "--time-budget", 0, "--output", out)
    assert done.returncode == 0, done.stderr
    assert "0 objects" in done.stdout
    dataset = json.loads((out / "masks.json").read_text())
    assert dataset["annotations"] == []
