"""Training on photographs: from a folder of images and label maps to weights, at a size for a test."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pocketsam.errors import ImageError, PocketSamError, UsageError
from pocketsam.files import held_folder
from pocketsam.models.checkpoint import read_settings
from pocketsam.models.sam import seeded
from pocketsam.models.training.answers import (
    Answers,
    by_size,
    measure_clicks,
    object_masks,
    score_error,
    second_click,
)
from pocketsam.models.training.losses import overlap_loss
from pocketsam.models.training.photographs import train as module
from pocketsam.models.training.photographs.imitation import Imitation, feature_statistics
from pocketsam.models.training.photographs.loss import click_loss, overlap_losses
from pocketsam.models.training.photographs.photo import (
    FEATURES,
    TrainingPhoto,
    draw_weights,
    load_photo,
    nest,
    save_photo,
)
from pocketsam.models.training.photographs.prepare import (
    PhotoSet,
    find_sources,
    load_photo_set,
    prepare,
)
from pocketsam.models.training.photographs.recipe import Canvas, PhotoRecipe
from pocketsam.models.training.photographs.regions import LEVELS, Edges, find_regions
from pocketsam.models.training.photographs.replicas import run_replicas
from pocketsam.models.training.photographs.step import to_inputs
from pocketsam.models.training.photographs.train import train
from pocketsam.models.training.photographs.views import draw_view
from pocketsam.models.training.photographs.windows import Window, features_of

TINY = PhotoRecipe(first=(Canvas(64, 2, 3),), then=(Canvas(64, 2, 3),), ema=0.5)


def square_on_ground():
    """A bright square on a dark ground, with a little noise, and the square's mask."""
    image = np.full((96, 128, 3), 50, np.uint8)
    image[24:72, 32:96] = 220
    noise = np.random.default_rng(0).integers(0, 8, image.shape)
    square = np.zeros((96, 128), bool)
    square[24:72, 32:96] = True
    return image + noise.astype(np.uint8), square


@pytest.fixture(scope="module")
def photo():
    """The square in two halves: halves, the square and the whole are the levels."""
    image, square = square_on_ground()
    halves = square.astype(np.uint16)
    halves[:, 64:] *= 2
    levels = np.stack([halves, halves, square, square, np.zeros_like(halves)]).astype(np.uint16)
    features = np.zeros((6, 8, FEATURES), np.float16)
    features[:, :, 0], features[:, :, 1] = np.arange(8), np.arange(6)[:, None]
    return TrainingPhoto("square", image, *nest(levels), square[None].astype(np.uint16), features)


def test_regions_follow_what_is_plain_to_see():
    image, square = square_on_ground()
    regions, features = find_regions(Edges().eval(), image)
    assert features.shape == (6, 8, FEATURES)
    assert features.any()
    assert regions.shape == (len(LEVELS), 96, 128)
    counts = [len(np.unique(labels)) for labels in regions]
    assert counts == sorted(counts, reverse=True)
    found = regions[2] == regions[2][48, 64]
    assert (found & square).sum() / (found | square).sum() > 0.8
    basins, merged = nest(regions)
    assert np.array_equal(merged[:, basins], regions)  # each level merges the one before


def test_a_photograph_is_read_as_it_was_written(tmp_path, photo):
    save_photo(tmp_path / "square.npz", photo)
    read = load_photo(tmp_path / "square.npz")
    assert read.name == "square"
    for name in ("image", "basins", "merged", "layers", "features"):
        assert np.array_equal(getattr(read, name), getattr(photo, name))


def test_photographs_with_masks_have_their_share(photo):
    bare = replace(photo, layers=photo.layers[:0])
    weights = draw_weights([photo, bare, bare, bare], 0.5)
    assert weights == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6])
    assert draw_weights([photo, photo], 0.1) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("size", [64, 224])
def test_prompts_lie_in_what_they_ask_for(photo, size):
    seen = set()
    for seed in range(30):
        view = draw_view(photo, size, 4, np.random.default_rng(seed))
        height, width = view.extent
        assert not view.image[height:].any()
        assert not view.image[:, width:].any()
        assert view.meant[:, 0].all()
        cells = (view.coords / 4).astype(int).clip(0, size // 4 - 1)
        for i in range(4):
            used = view.labels[i][view.padding[i] == 0].astype(int).tolist()
            seen.add(tuple(used))
            for (x, y), label in zip(cells[i], used, strict=False):
                if label == 1:
                    assert view.masks[i, 0, y, x] > 0
                if label == 0:
                    assert view.masks[i, 0, y, x] < 255
            for mask in view.masks[i][view.meant[i]]:
                if used == [1, -1]:
                    x, y = cells[i, 0]
                    assert mask[y, x] > 0  # everything that a click may mean lies under it
    assert {(1, -1), (2, 3), (1, 1, -1), (1, 1, 0, -1)} == seen


def test_the_same_seed_gives_the_same_view(photo):
    one, two, other = (draw_view(photo, 64, 4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.masks, two.masks)
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, other.image)


def test_a_click_may_mean_a_part_or_the_whole(photo):
    meanings = [
        view.meant.sum(axis=1).max()
        for seed in range(20)
        for view in [draw_view(photo, 64, 8, np.random.default_rng(seed))]
    ]
    assert max(meanings) >= 2


def test_features_are_those_of_the_place(photo):
    whole, known = features_of(photo, Window((0, 0, 128, 96), 128, 96, mirrored=False), 192)
    assert np.array_equal(whole[:6, :8], photo.features)
    assert known.sum() == 48
    assert not whole[~known].any()
    part, known = features_of(photo, Window((64, 16, 96, 48), 64, 64, mirrored=True), 64)
    assert known.all()  # twice as large, from the right
    assert part[0, :, 0].tolist() == pytest.approx([5.25, 4.75, 4.25, 3.75])
    assert part[:, 0, 1].tolist() == pytest.approx([0.75, 1.25, 1.75, 2.25])
    bare = replace(photo, features=photo.features[:0, :0])
    assert not features_of(bare, Window((0, 0, 128, 96), 64, 48, mirrored=False), 64)[1].any()


def test_an_encoder_learns_to_imitate_features(photo):
    mean, deviation = feature_statistics([photo, photo])
    assert mean[:3].tolist() == pytest.approx([3.5, 2.5, 0])
    assert deviation[:3].tolist() == pytest.approx([np.std(range(8)), np.std(range(6)), 1])
    torch.manual_seed(0)
    encoder = torch.nn.Module()
    encoder.neck = torch.nn.Sequential(torch.nn.Conv2d(FEATURES, 1, 1))
    imitation = Imitation(encoder, [photo])
    features = torch.from_numpy(photo.features)[None]
    maps = torch.zeros(1, FEATURES, 6, 8)
    maps[:, :2] = features.permute(0, 3, 1, 2)[:, :2]
    with torch.no_grad():
        imitation.head.weight.zero_()
        for i in range(2):
            imitation.head.weight[i, i] = 1 / deviation[i]
        imitation.head.bias.copy_(-mean / deviation)
        encoder.neck(maps)
        known = torch.ones(1, 6, 8, dtype=torch.bool)
        assert imitation(features, known) < 1e-5
        encoder.neck(maps + 1)
        assert imitation(features, known) > 1e-4
        known[:] = False
        assert imitation(features, known) == 0


def test_padding_stays_zero_whatever_the_colours():
    images = torch.full((1, 32, 32, 3), 200, dtype=torch.uint8)
    values = to_inputs(images, torch.tensor([[16, 24]]))
    assert (values[0, :, 16:] == 0).all()
    assert (values[0, :, :, 24:] == 0).all()
    assert (values[0, :, :16, :24] != 0).any()


def test_all_losses_at_once_equal_one_by_one():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 8, 8)
    every = overlap_losses(logits, masks)
    for m in range(4):
        for t in range(3):
            assert torch.allclose(every[:, m, t], overlap_loss(logits[:, m], masks[:, t]), atol=1e-5)


def test_a_small_object_weighs_more_in_cross_entropy_than_its_cells():
    """A missed object of 4 of 4096 cells: the sum divided by 16 * 4 + 128, not by 4096."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, :2, :2] = 1
    missed, gone = torch.full((1, 1, 64, 64), -8.0), torch.full((1, 1, 64, 64), -16.0)
    worse = overlap_losses(gone, mask) - overlap_losses(missed, mask)
    assert worse.item() == pytest.approx(4 * 8 / 192, abs=0.1)
    assert worse.item() > 10 * 4 * 8 / 4096


def test_each_meaning_goes_to_the_mask_that_fits_it():
    masks = torch.zeros(1, 3, 8, 8)
    masks[0, 0, :4], masks[0, 1, :, :4], masks[0, 2, :2, :2] = 1, 1, 1
    sure = 40 * masks - 20
    low_res = torch.stack([sure[0, 0], sure[0, 2], sure[0, 0], sure[0, 1]])[None]
    scores = torch.tensor([[1.0, 4 / 32, 1.0, 16 / 48]])
    meant = torch.ones(1, 3, dtype=torch.bool)
    loss, figures = click_loss(low_res, scores, masks, meant)
    assert loss < 0.01
    assert figures["first"] == figures["best"] == 1
    assert figures["error"] < 1e-6
    worse, figures = click_loss(low_res, scores.flip(1), masks, meant)
    assert worse > loss
    assert figures["first"] < figures["best"]
    single = torch.tensor([[True, False, False]])
    assert click_loss(low_res[:, [0, 2, 2, 2]], torch.ones(1, 4), masks, single)[0] < 0.01


def test_answers_are_grouped_by_the_size_of_the_object():
    answers = Answers(
        areas=np.array([0.005, 0.05, 1.0]),
        scores=np.array([[0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9]]),
        ious=np.array([[0.5, 1.0, 0.0], [0.2, 0.4, 0.8], [0.0, 0.0, 0.6]]),
        pairs=np.array([0.3, 0.7, 0.5]),
        boxes=np.array([0.1, 0.2, 0.3]),
        disks=np.array([0.0, 0.1, 0.5]),
    )
    rows = by_size(answers)
    assert [rows[name]["objects"] for name in ("all", "small", "medium", "large")] == [3, 1, 1, 1]
    assert rows["all"]["first"] == 0.5
    assert rows["all"]["best"] == 0.8
    medium = {"objects": 1, "first": 0.4, "best": 0.8, "pair": 0.7, "box": 0.2, "disk": 0.1}
    assert rows["medium"] == medium
    assert 0 < score_error(answers) < 1


def test_the_second_click_is_in_another_part_of_the_object():
    mask = np.zeros((40, 90), bool)
    mask[5:26, 5:26] = mask[20:31, 70:81] = mask[14:16, 26:70] = True
    x, y = second_click(mask, np.array([15.0, 15.0]))
    assert (x, y) == (75, 25)
    dot = np.zeros((3, 3), bool)
    dot[1, 1] = True
    assert second_click(dot, np.array([1.0, 1.0])) == (1, 1)


def test_a_label_map_is_scaled_and_small_objects_are_left_out():
    labels = np.zeros((40, 60), np.int64)
    labels[10:30, 10:30], labels[0, 0] = 7, 9
    masks = object_masks(labels, (80, 120))
    assert masks.shape == (1, 80, 120)
    assert masks[0, 20:60, 20:60].all()
    assert masks.sum() == 40 * 40


@pytest.fixture
def folder(tmp_path):
    """Three photographs: one with masks, one without, one held back."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    image, square = square_on_ground()
    for name in ("one", "two", "three"):
        Image.fromarray(image).save(root / "images" / f"{name}.png")
    for name in ("one", "three"):
        Image.fromarray(square.astype(np.uint8)).save(root / "masks" / f"{name}.png")
    Image.fromarray(square.astype(np.uint8)[::-1] * 5).save(root / "masks" / "one_2.png")
    (root / "heldback.txt").write_text("three.png\n")
    return root


def test_a_folder_becomes_photographs_to_train_on(folder, tmp_path):
    notes = prepare([folder], tmp_path / "out", 1)
    assert notes == ["no masks, used with its regions alone: two.png"]
    ready = load_photo_set(tmp_path / "out")
    assert sorted(photo.name.split("-")[0] for photo in ready.photos) == ["one", "two"]
    assert [photo.name.split("-")[0] for photo in ready.held_back] == ["three"]
    one, two = sorted(ready.photos, key=lambda photo: photo.name)
    assert one.layers.shape == (2, 96, 128)
    assert np.unique(one.layers[1]).tolist() == [0, 1]
    assert not two.has_masks
    assert prepare([folder], tmp_path / "out", 1) == notes
    assert load_photo_set(tmp_path / "out").fingerprint == ready.fingerprint
    Image.fromarray(one.layers[0].astype(np.uint8)[:, ::-1].copy()).save(folder / "masks" / "two.png")
    prepare([folder], tmp_path / "out", 1)
    assert load_photo_set(tmp_path / "out").fingerprint != ready.fingerprint


def test_a_label_map_belongs_to_one_photograph(folder, tmp_path):
    """``one_2`` may be the second map of ``one``, or the first of a photograph of that name."""
    (folder / "images" / "two.png").rename(folder / "images" / "one_2.png")
    sources, notes = find_sources([folder])
    maps = {source.path.stem: [path.stem for path in source.label_maps] for source in sources}
    assert maps == {"one": ["one"], "one_2": ["one_2"], "three": ["three"]}
    assert notes == []


@pytest.mark.parametrize("name", ["photos.json", "one"])
def test_damaged_photographs_are_named(name, folder, tmp_path):
    prepare([folder], tmp_path / "out", 1)
    (file,) = (tmp_path / "out").glob(f"{name}*")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(PocketSamError, match=r"out: damaged .*run prepare again"):
        load_photo_set(tmp_path / "out")


def test_files_that_do_not_fit_are_named(folder):
    Image.new("L", (10, 10)).save(folder / "masks" / "one.png")
    Image.new("L", (10, 10)).save(folder / "masks" / "nobody.png")
    (folder / "images" / "broken.png").write_text("no picture")
    sources, notes = find_sources([folder])
    assert [source.name for source in sources] == ["three", "two"]
    text = "\n".join(notes)
    assert "left out: one.png" in text
    assert "10x10, and one.png 128x96" in text
    assert "nobody.png" in text
    assert "broken.png" in text


def test_sets_that_cannot_be_used_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="have the same name"):
        find_sources([folder, folder / "images"])
    with pytest.raises(ImageError, match="no such folder"):
        find_sources([tmp_path / "nowhere"])
    (folder / "heldback.txt").write_text("three.jpg")
    with pytest.raises(UsageError, match=r"three.jpg: no such photograph"):
        find_sources([folder])
    (folder / "heldback.txt").write_text("one.png two.png three.png")
    with pytest.raises(ImageError, match="no photograph to train on"):
        prepare([folder], tmp_path / "out", 1)
    with pytest.raises(PocketSamError, match="run prepare first"):
        load_photo_set(tmp_path / "out")


def set_of(photo, fingerprint="a"):
    return PhotoSet(fingerprint, [photo, replace(photo, layers=photo.layers[:0])], [photo])


def test_a_run_is_logged_measured_and_goes_on(tmp_path, photo):
    def run(hours, fingerprint="a"):
        photos = set_of(photo, fingerprint)
        return train(TINY, tmp_path, photos, hours=hours, start="seeded:1")

    path = run(1e-9)
    first = load_file(path)
    assert read_settings(path).image_size == 512
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1
    assert {"loss", "first", "best", "error", "rate", "size", "minutes"} <= set(lines[0])
    assert set(lines[1]["held_back"]) >= {"all", "score_error"}
    assert len(list(tmp_path.glob("weights-*.safetensors"))) == 1
    run(1e-9)  # the time is up
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 1
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    run((state["spent"] + 0.01) / 3600)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] >= 2
    key = "image_encoder.neck.0.weight"
    assert not torch.equal(first[key], load_file(path)[key])
    with pytest.raises(PocketSamError, match="another recipe: photographs was 'a'"):
        run(1.0, "b")
    with pytest.raises(UsageError, match="must be positive"):
        run(0)
    assert (tmp_path / "pid").read_text() == str(os.getpid())
    (tmp_path / "pid").write_text("1")
    with held_folder(tmp_path), pytest.raises(PocketSamError, match="another pocketsam trains in it"):
        run(1.0)
    assert (tmp_path / "pid").read_text() == "1"  # the other's


def test_gradients_that_are_no_numbers_end_every_replica(tmp_path, photo, monkeypatch):
    def loss(model, imitation, *_):
        return next(model.parameters()).sum() * float("nan"), {}

    monkeypatch.setattr(module, "loss_of", loss)
    with pytest.raises(PocketSamError, match="loss or gradients are nan at step 0"):
        train(TINY, tmp_path, set_of(photo), hours=1, start="seeded:1", processes=2)


def test_a_killed_run_saves_its_state(tmp_path, photo, monkeypatch):
    real = module.Training.take_step

    def killed(training, batch):
        figures = real(training, batch)
        training.end()
        return figures

    monkeypatch.setattr(module.Training, "take_step", killed)
    train(TINY, tmp_path, set_of(photo), hours=1, start="seeded:1")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_replicas_share_their_gradients():
    def job(replicas):
        model = torch.nn.Linear(1, 1)
        model(torch.full((1, 1), float(replicas.rank))).sum().backward()
        assert replicas.average(model, 0.25 + replicas.rank) == 0.25
        return model.weight.grad.item(), model.bias.grad.item()

    assert run_replicas(2, job) == (0.5, 1.0)
    assert run_replicas(1, job) == (0.0, 1.0)


def test_a_network_is_measured_on_photographs(photo):
    figures = measure_clicks(seeded(64), [photo])
    assert figures["all"]["objects"] == 1
    assert "small" not in figures
    assert measure_clicks(seeded(64), [replace(photo, layers=photo.layers * 0)]) == {}
