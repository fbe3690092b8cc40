import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketsam.errors import BundleError, CheckpointError, UsageError
from pocketsam.export import export
from pocketsam.models import checkpoint
from pocketsam.models.checkpoint import (
    Settings,
    default_image_size,
    load_model,
    read_settings,
    save_checkpoint,
)
from pocketsam.models.prompted import Prompts, decode, iou
from pocketsam.models.sam import seeded
from pocketsam.thresholds import Thresholds


@pytest.fixture(scope="module")
def state():
    return seeded(64, seed=3).state_dict()


def same(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_both_formats_load_the_same_weights(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    loaded = load_model(path, 64)
    assert same(loaded.model, state)
    assert not loaded.model.training
    assert loaded.trained
    assert loaded.name == path.name
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_and_hash_are_of_the_same_read(tmp_path, monkeypatch, state, suffix):
    """The file is replaced by another checkpoint as soon as it has been read or opened."""
    save = save_file if suffix == ".safetensors" else torch.save
    path, other = tmp_path / f"weights{suffix}", tmp_path / f"other{suffix}"
    save(state, path)
    save(seeded(64, seed=4).state_dict(), other)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read_regular = checkpoint.read_regular

    def read_and_replace(*args):
        data = read_regular(*args)
        other.replace(path)
        return data

    monkeypatch.setattr(checkpoint, "read_regular", read_and_replace)
    loaded = load_model(path, 64)
    assert not other.exists()
    assert loaded.sha256 == digest
    assert same(loaded.model, state)


def test_float16_becomes_float32(tmp_path, state):
    float16 = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(float16, tmp_path / "float16.safetensors")
    model = load_model(tmp_path / "float16.safetensors", 64).model
    assert all(p.dtype == torch.float32 for p in model.parameters())
    wanted = float16["image_encoder.neck.0.weight"].float()
    assert torch.equal(model.image_encoder.neck[0].weight, wanted)


def test_one_error_lists_every_key(tmp_path, state):
    wrong = dict(state)
    del wrong["mask_decoder.iou_token.weight"]
    del wrong["image_encoder.neck.0.weight"]
    wrong["model.extra"] = torch.zeros(1)
    wrong["image_encoder.attn.ab"] = torch.zeros(1)
    wrong["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 128)
    wrong["image_encoder.head.bias"] = torch.full((1000,), float("nan"))
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "wrong.pt", 64)
    lines = str(caught.value).splitlines()
    assert "wrong.pt" in lines[0]
    assert "6 keys" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "NaN or infinity in image_encoder.head.bias",
        "missing: image_encoder.neck.0.weight",
        "missing: mask_decoder.iou_token.weight",
        "shape of prompt_encoder.no_mask_embed.weight: [1, 128], not [1, 256]",
        "unexpected: image_encoder.attn.ab",
        "unexpected: model.extra",
    ]


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, how):
    ran = tmp_path / "ran"
    how({"image_encoder.head.bias": Evil(ran)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_model(tmp_path / "evil.pt", 64)
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 100, 100_000, 0.5, 0.999999])
def test_a_truncated_file_is_refused(tmp_path, state, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match="cut"):
        load_model(path, 64)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("text.pt", b"hello, I am a text file\n" * 100, "text.pt"),
        ("page.pt", b"<!DOCTYPE html><html>404</html>", "page.pt"),
        ("zeros.safetensors", bytes(1000), "zeros.safetensors"),
        ("weights.onnx", b"abc", "unknown suffix '.onnx'"),
        ("weights", b"abc", "unknown suffix ''"),
    ],
)
def test_other_files_are_refused(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        load_model(tmp_path / name, 64)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: No such file"):
        load_model(tmp_path / "nowhere.pt", 64)
    with pytest.raises(CheckpointError, match="a folder; name the file with the weights in it"):
        load_model(tmp_path, 64)


def test_something_other_than_tensors_is_refused(tmp_path):
    for content, message in (
        ({"epoch": 3, "model": {"a": torch.zeros(1)}}, "holds 1 tensors .model.a., none of SAM's"),
        (torch.zeros(3), "holds 1 tensors"),
        ({"epoch": 3}, "holds no tensors by name, but dict"),
        ([1, 2], "holds no tensors by name, but list"),
    ):
        torch.save(content, tmp_path / "training.pt")
        with pytest.raises(CheckpointError, match=rf"training\.pt: {message}"):
            load_model(tmp_path / "training.pt", 64)


def test_seeded_names(state):
    loaded = load_model("seeded:3", 64)
    assert same(loaded.model, state)
    assert not loaded.trained
    assert loaded.sha256 == load_model("seeded:3", 128).sha256
    zero = load_model("seeded", 64)
    assert loaded.sha256 != zero.sha256
    assert same(zero.model, seeded(64, 0).state_dict())
    with pytest.raises(CheckpointError, match="seeded:x"):
        load_model("seeded:x", 64)


def test_the_reference_reads_our_files(tmp_path, mobile_sam, state):
    """What we save under these names, the reference's own loader takes."""
    torch.save(state, tmp_path / "ours.pt")
    network = mobile_sam.sam_model_registry["vit_t"](checkpoint=str(tmp_path / "ours.pt"))
    assert same(load_model(tmp_path / "ours.pt", 64).model, network.state_dict())


def test_the_shipped_weights_segment_what_is_plain_to_see():
    """A bright disc on a dark ground, clicked in its middle: untrained weights reach an IoU of 0.1."""
    loaded = load_model("default", default_image_size("default"))
    assert (loaded.architecture, loaded.trained) == ("mobile_sam", True)
    y, x = np.mgrid[:512, :512]
    disc = (x - 300) ** 2 + (y - 220) ** 2 < 90**2
    image = np.where(disc[..., None], (230, 190, 60), (40, 60, 90)).astype(np.float32)
    pixel_values = (torch.from_numpy(image).permute(2, 0, 1)[None] - 116) / 58
    prompts = Prompts(torch.tensor([[[300.0, 220.0], [0, 0]]]), torch.tensor([[1.0, -1]]))
    with torch.inference_mode():
        low, scores = decode(loaded.model, loaded.model.encode(pixel_values.float()), prompts)
    found = low[0, 1 + int(scores[0, 1:].argmax())] > 0
    assert iou(found, torch.from_numpy(disc[2::4, 2::4].copy())) > 0.8


def test_a_checkpoint_says_what_it_works_best_with(tmp_path, state):
    path, settings = tmp_path / "mine.safetensors", Settings(256, Thresholds(0.5, 0.7))
    save_checkpoint(path, state, settings)
    assert read_settings(path) == load_model(path, 64).settings == settings
    assert default_image_size(path) == 256
    torch.save(state, tmp_path / "mine.pt")
    save_file(state, path)
    for source in (path, tmp_path / "mine.pt", "seeded"):
        assert read_settings(source) == Settings(1024, Thresholds(0.88, 0.95))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"image_size": "large"}, "'large'"),
        ({"pred_iou_thresh": "nan"}, "must lie in 0..1"),
        ({"stability_score_thresh": "1.5"}, "must lie in 0..1"),
    ],
)
def test_metadata_that_makes_no_sense(metadata, message, tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(
        CheckpointError, match=rf"x\.safetensors: its metadata makes no sense: .*{message}"
    ):
        read_settings(tmp_path / "x.safetensors")


def test_an_installation_without_the_weights_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "DEFAULT_FILE", tmp_path / "mobile_sam_512.safetensors")
    for read in (read_settings, load_model):
        with pytest.raises(CheckpointError, match=r"models/mobile_sam_512\.safetensors of a clone"):
            read("default")


def test_export_says_what_was_unwrapped_and_when_the_canvas_differs(tmp_path, state, pictures):
    """Up to the place of the bundle, which is taken: no conversion."""
    (tmp_path / "bundle").write_bytes(b"")

    def lines(name, **how):
        said = []
        with pytest.raises(BundleError, match="bundle"):
            export(tmp_path / name, tmp_path / "bundle", images=pictures, progress=said.append, **how)
        return said[1:]

    save_checkpoint(tmp_path / "mine.safetensors", state, Settings(128))
    torch.save({"model": state}, tmp_path / "mine.pt")
    assert lines("mine.safetensors") == []
    assert lines("mine.safetensors", image_size=64) == [
        "mine.safetensors is for a canvas of 128 pixels; at 64 masks may be worse"
    ]
    assert lines("mine.pt", image_size=64) == ["mine.pt: wrapped checkpoint: prefix model. removed"]


def test_a_canvas_in_the_metadata_that_no_bundle_has(tmp_path, state):
    save_checkpoint(tmp_path / "mine.safetensors", state, Settings(1000))
    with pytest.raises(UsageError, match=r"mine\.safetensors: is for a canvas of 1000 pixels"):
        export(tmp_path / "mine.safetensors", tmp_path / "bundle")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors: is for a canvas of 1000 pixels"):
        default_image_size(tmp_path / "mine.safetensors")
