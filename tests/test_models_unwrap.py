"""Checkpoints as people bring them: wrapped, renamed, with luggage, from the family."""

import argparse
import pathlib
from collections import OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketsam.errors import CheckpointError
from pocketsam.models.checkpoint import load_model, read_settings
from pocketsam.models.image_encoder_vit import ImageEncoderViT
from pocketsam.models.sam import ARCHITECTURES, Sam, fill, seeded

TINY = "image_encoder.layers.1.blocks.0.attn."


@pytest.fixture(scope="module")
def state():
    return seeded(64, seed=3).state_dict()


@pytest.fixture(scope="module")
def other():
    return {key: value + 1 for key, value in seeded(64, seed=3).state_dict().items()}


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def same(model, state):
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def load(content, tmp_path, name="mine.pt"):
    """Saves and loads a checkpoint. TinySAM's and MobileSAM's own names are those of ``state``: the
    first was compared once, names and embedding; ``test_models_sam.py`` compares the second.
    """
    torch.save(content, tmp_path / name)
    return load_model(tmp_path / name, 64)


def refuse(content, tmp_path, message, name="mine.pt"):
    """Loads a checkpoint that must be refused, in one error of at most 20 lines; returns its lines."""
    torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path / name, 64)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 20
    assert name in lines[0]
    return lines


ADAM = {
    "state": {i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)} for i in range(6)},
    "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1, 2]}],
}

WRAPPED = {
    "epoch": lambda d: {"model": d, "epoch": 3},
    "lightning": lambda d: {"state_dict": prefixed("model.", d), "pytorch-lightning_version": "2.4.0"},
    "ddp": lambda d: prefixed("module.", d),
    "compiled": lambda d: prefixed("_orig_mod.", d),
    "compiled inside": lambda d: {
        k.replace("encoder.", "encoder._orig_mod.", 1): v for k, v in d.items()
    },
    "ddp and compiled": lambda d: {"net": prefixed("module._orig_mod.", d), "optimizer": ADAM},
    "nested": lambda d: {"checkpoint": {"weights": {"sam": d}}},
    "by part": lambda d: {
        part: {k.partition(".")[2]: v for k, v in d.items() if k.startswith(part)}
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
    },
    "average": lambda d: {"module": d, "n_averaged": torch.tensor(7)},
    "in a list": lambda d: [d],
    "twice the same": lambda d: {"model": d, "best": d},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_every_wrapping_gives_the_same_weights(how, state, tmp_path):
    loaded = load(WRAPPED[how](state), tmp_path)
    assert same(loaded.model, state)
    assert read_settings(tmp_path / "mine.pt") == loaded.settings
    assert "\n" not in loaded.note
    assert ("removed" in loaded.note) == (how != "by part")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".PTH"])
def test_suffixes(suffix, state, tmp_path):
    assert same(load({"model": state}, tmp_path, f"mine{suffix}").model, state)


def test_safetensors_with_a_prefix(state, tmp_path):
    save_file(prefixed("model.sam.", state), tmp_path / "mine.safetensors")
    loaded = load_model(tmp_path / "mine.safetensors", 64)
    assert same(loaded.model, state)
    assert loaded.note == "wrapped checkpoint: prefix model.sam. removed"


def test_one_line_says_what_was_done(state, tmp_path):
    content = {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed("model.", state) | {"dice.weight": torch.ones(1)},
        "optimizer_states": [ADAM],
    }
    assert load(content, tmp_path).note == (
        "Lightning checkpoint: prefix state_dict.model. removed; 12 optimizer entries ignored; "
        "state_dict.dice.weight ignored"
    )
    assert load(state, tmp_path).note == ""


def test_averaged_weights_come_first(state, other, tmp_path):
    loaded = load({"model": other, "model_ema": state, "epoch": 3}, tmp_path)
    assert same(loaded.model, state)
    assert loaded.note.startswith(
        "training checkpoint with averaged weights: prefix model_ema. removed; model."
    )
    decoder = {"mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    assert same(load({"model": state, "ema": decoder}, tmp_path).model, state)  # not a whole network


def test_of_two_networks_the_usual_one_or_none(state, other, tmp_path):
    assert same(load({"state_dict": state, "best_state": other}, tmp_path).model, state)
    content = {"state_dict": prefixed("student.", state) | prefixed("teacher.", other)}
    (line,) = refuse(content, tmp_path, "holds 2 networks")
    assert "under state_dict.student. and state_dict.teacher.; save one" in line


def test_an_optimizer_by_name_is_no_network(state, tmp_path):
    """Some optimizers keep their moments under the weights' names."""
    moments = {key: torch.zeros_like(value) for key, value in state.items()}
    loaded = load({"model": state, "optimizer": {"exp_avg": moments}, "exp_avg": moments}, tmp_path)
    assert same(loaded.model, state)


def test_objects_of_a_training_script_are_left_out(state, tmp_path):
    """``weights_only`` refuses them; nothing of them runs, and the weights are all that matters."""
    moments = defaultdict(dict, {0: {"step": torch.tensor(1.0)}})
    content = {
        "model": OrderedDict(state),
        "args": argparse.Namespace(lr=1e-4, output=pathlib.Path("out")),
        "best_metric": np.float64(0.9),
        "history": np.arange(3),
        "recent": deque([0.5, 0.4], maxlen=2),
        "crop": slice(0, 4),
        "optimizer": {"state": moments},
    }
    assert same(load(content, tmp_path).model, state)


LUGGAGE = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
    f"{TINY}attention_bias_idxs": torch.zeros(49, 49, dtype=torch.int64),
    f"{TINY}ab": torch.zeros(4, 49, 49),
    "criterion.weight": torch.ones(2),
    "seg_loss.dice.smooth": torch.tensor(1.0),
    "mask_decoder.iou_loss.weight": torch.ones(1),
    "decoder.out_conv.weight": torch.ones(3, 3),
}


@torch.inference_mode()
def test_luggage_changes_no_bit_of_the_embedding(state, tmp_path):
    """With all that people leave in, and without what TinyViT does not run."""
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = seeded(64, seed=3).encode(pixels)
    light = {k: v for k, v in state.items() if "head." not in k or "mask_decoder" in k}
    light = {k: v for k, v in light.items() if "num_batches_tracked" not in k}
    assert len(light) < len(state)
    for content in (state | LUGGAGE, light, light | LUGGAGE):
        loaded = load(content, tmp_path)
        assert torch.equal(loaded.model.encode(pixels), wanted)
    assert "without head and norm_head and num_batches_tracked, which nothing needs" in loaded.note
    other_head = state | {"image_encoder.head.weight": torch.zeros(10, 320)}
    assert torch.equal(load(other_head, tmp_path).model.encode(pixels), wanted)


def test_another_normalisation_is_said(state, tmp_path):
    assert "SAM's" not in load(state | LUGGAGE, tmp_path).note
    note = load(state | LUGGAGE | {"pixel_mean": torch.zeros(3, 1, 1)}, tmp_path).note
    assert "its pixel_mean is not SAM's, which a bundle normalises with" in note


def test_micro_sam(state, tmp_path):
    """By its ``util.py``: ``model_state`` with the prefix ``sam.`` in what its trainer writes, without
    it in what it publishes; the weights of its own decoder beside it.
    """
    training = {
        "iteration": 100,
        "model_state": prefixed("sam.", state),
        "decoder_state": {"decoder.blocks.0.weight": torch.ones(3)},
        "optimizer_state": ADAM,
        "best_metric": np.float64(0.4),
    }
    loaded = load(training, tmp_path)
    assert same(loaded.model, state)
    assert loaded.note.startswith("checkpoint of micro-sam: prefix model_state.sam. removed; 12 optim")
    published = {"model_state": state, "decoder_state": training["decoder_state"]}
    assert same(load(published, tmp_path).model, state)


TRANSFORMERS = {
    "iou_prediction_head.layers.0": "iou_prediction_head.proj_in",
    "iou_prediction_head.layers.1": "iou_prediction_head.layers.0",
    "iou_prediction_head.layers.2": "iou_prediction_head.proj_out",
    "output_upscaling.0": "upscale_conv1",
    "output_upscaling.1": "upscale_layer_norm",
    "output_upscaling.3": "upscale_conv2",
    "mask_downscaling.0": "mask_embed.conv1",
    "mask_downscaling.1": "mask_embed.layer_norm1",
    "mask_downscaling.3": "mask_embed.conv2",
    "mask_downscaling.4": "mask_embed.layer_norm2",
    "mask_downscaling.6": "mask_embed.conv3",
    "point_embeddings": "point_embed",
    "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
    "image_encoder": "vision_encoder",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "patch_embed.proj": "patch_embed.projection",
    ".norm": ".layer_norm",
    "blocks": "layers",
}
MLP_LAYERS = {"layers.0": "proj_in", "layers.1": "layers.0", "layers.2": "proj_out"}


def as_transformers(key):
    for ours, theirs in TRANSFORMERS.items():
        if ours in key:
            key = key.replace(ours, theirs)
            if ours.startswith("iou"):
                break
    if "hypernetworks" in key:
        layer = next(name for name in MLP_LAYERS if name in key)
        key = key.replace(layer, MLP_LAYERS[layer])
    return key


@pytest.mark.parametrize("dropped", [None, "prompt_encoder.shared_embedding", "shared_image_embedding"])
def test_sam_of_transformers(dropped, tmp_path, monkeypatch):
    """Names by ``convert_sam_to_hf.py`` of transformers; tried once on ``SamModel`` of 5.24.

    Safetensors keeps one of the two names that its random position encoding has.
    """
    monkeypatch.setitem(ARCHITECTURES, "sam_vit_b", lambda: ImageEncoderViT(96, 2, 3, (1,), 256))
    state = reduced(64).state_dict()
    theirs = {as_transformers(key): value for key, value in state.items()}
    position = theirs["prompt_encoder.shared_embedding.positional_embedding"]
    theirs["shared_image_embedding.positional_embedding"] = position.clone()
    theirs = {key: v for key, v in theirs.items() if not dropped or not key.startswith(dropped)}
    save_file(theirs, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", 64)
    assert same(loaded.model, state)
    assert loaded.note == "SAM of transformers: names changed to segment-anything's"
    assert read_settings(tmp_path / "model.safetensors").is_known
    assert same(load({"model": theirs}, tmp_path, "pytorch_model.bin").model, state)


def reduced(grid):
    """SAM's encoder with two narrow blocks, for a canvas of ``16 * grid`` pixels."""
    model = Sam(ImageEncoderViT(96, 2, 3, (1,), 256), 16 * grid)
    model.image_encoder.resize_grid(grid)
    fill(model, 5)
    return model.eval()


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"model": prefixed("sam.", d)}])
@torch.inference_mode()
def test_a_smaller_canvas_is_taken_from_the_position_tables(wrap, tmp_path, monkeypatch, mobile_sam):
    """``build_sam_vit_b(image_size=256)`` of micro-sam, MedSAM's forks, SAMed: tables of 16 × 16."""
    monkeypatch.setitem(ARCHITECTURES, "sam_vit_b", lambda: ImageEncoderViT(96, 2, 3, (1,), 256))
    tuned = reduced(16)
    reference = mobile_sam.modeling.ImageEncoderViT(
        **{"img_size": 256, "embed_dim": 96, "depth": 2, "num_heads": 3, "out_chans": 256},
        **{"use_rel_pos": True, "window_size": 14, "global_attn_indexes": (1,)},
        norm_layer=lambda channels: torch.nn.LayerNorm(channels, eps=1e-6),
    ).eval()
    reference.load_state_dict(tuned.image_encoder.state_dict())
    torch.save(wrap(tuned.state_dict()), tmp_path / "sam.pth")
    assert (settings := read_settings(tmp_path / "sam.pth")).image_size == 256
    assert settings.is_known
    loaded = load_model(tmp_path / "sam.pth", 256)
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    found = loaded.model.encode(pixels)
    assert torch.equal(found, tuned.encode(pixels))
    assert float((found - reference(pixels)).abs().max()) < 1e-4
    assert load_model(tmp_path / "sam.pth", 128).model.encode(pixels[..., :128, :128]).shape[-1] == 8
    save_file(tuned.state_dict(), tmp_path / "sam.safetensors")
    assert read_settings(tmp_path / "sam.safetensors").image_size == 256


def test_a_canvas_that_is_no_multiple_of_64_is_rounded_up(tmp_path):
    tables = {"image_encoder.pos_embed": torch.zeros(1, 14, 14, 768)}
    torch.save(tables, tmp_path / "sam.pt")
    assert read_settings(tmp_path / "sam.pt").image_size == 256


STRANGERS = {
    "mask_decoder.hf_token.weight": "HQ-SAM",
    "image_encoder.blocks.0.attn.qkv.linear_a_q.weight": "LoRA",
    "image_encoder.blocks.0.Adapter.channel.0.weight": "adapters",
    "sam_mask_decoder.iou_token.weight": "SAM 2",
    "image_encoder.backbone.input_stem.op_list.0.conv.weight": "EfficientViT-SAM",
    "mask_decoder.final_output_upscaling_layers.0.weight": "EfficientSAM",
}


@pytest.mark.parametrize("key", STRANGERS)
def test_relatives_with_another_network_are_refused_by_name(key, state, tmp_path):
    """Light HQ-SAM's names: ``mask_decoder_hq.py`` of SysCV/sam-hq. The others' as I know them."""
    (line,) = refuse({"model": state | {key: torch.zeros(1)}}, tmp_path, "mine.pt: holds ")
    assert STRANGERS[key] in line


def test_an_encoder_alone(state, tmp_path):
    head = "image_encoder."
    encoder = {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
    (line,) = refuse(encoder, tmp_path, "holds an image encoder alone")
    assert "image_encoder.neck.0.weight" in line


def test_a_misfit_takes_at_most_20_lines(state, tmp_path):
    lines = refuse(
        {f"image_encoder.x.{i}": torch.zeros(1) for i in range(3000)}, tmp_path, "does not fit"
    )
    assert lines[0].endswith(" keys):")
    assert any("missing:" in line and "names in mask_decoder, such as " in line for line in lines)
    assert any("unexpected: 3000 names in image_encoder" in line for line in lines)
    shapes = {key: value[None] for key, value in state.items()}
    lines = refuse(shapes, tmp_path, "does not fit")
    assert lines[-1].startswith("  and ")
