"""SAM's own image encoder, the teacher, against the reference implementation."""

from functools import partial

import numpy as np
import pytest
import torch

from pocketsam.errors import CheckpointError
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.traced import Encoder, run, tapped
from pocketsam.models.checkpoint import load_model
from pocketsam.models.image_encoder_vit import ImageEncoderViT
from pocketsam.models.sam import ARCHITECTURES, Sam, build, fill
from pocketsam.runtime import contract as c
from pocketsam.runtime.image import preprocess


def reduced(image_size=1024):
    """Two narrow blocks, one of each kind, at the real grid."""
    model = Sam(ImageEncoderViT(96, 2, 3, (1,), 256), image_size)
    fill(model, 5)
    return model.eval()


def reference_encoder(mobile_sam, model, **changes):
    sizes = {"img_size": 1024, "embed_dim": 96, "depth": 2, "num_heads": 3} | changes
    encoder = mobile_sam.modeling.ImageEncoderViT(
        **sizes,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(1,),
        out_chans=256,
    )
    encoder.load_state_dict(model.image_encoder.state_dict())
    return encoder.eval()


@torch.inference_mode()
def test_every_stage_equals_the_reference_at_reduced_depth(mobile_sam, photo):
    model = reduced()
    reference = reference_encoder(mobile_sam, model)
    expected = {}
    for name, module in reference.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: expected.update({name: out}))
    values = torch.from_numpy(preprocess(photo, 1024))
    wanted = reference(values)
    encoder = Encoder(model)
    with tapped(encoder) as outputs:
        (found,) = encoder(values)
    assert list(outputs) == [f"image_encoder.{n}" for n in ("patch_embed", "blocks.0", "blocks.1")]
    for name, output in outputs.items():
        other = expected[name.removeprefix("image_encoder.")]
        assert float((output - other).abs().max() / other.std()) < 1e-4, name
    assert float((found - wanted).abs().max()) < 1e-4


@pytest.mark.slow
@torch.inference_mode()
def test_vit_b_at_full_size_equals_the_reference(mobile_sam, photo):
    network = mobile_sam.sam_model_registry["vit_b"]().eval()
    model = build("sam_vit_b")
    fill(model, 5)
    network.load_state_dict(model.state_dict())
    values = torch.from_numpy(preprocess(photo, 1024))
    found, wanted = model.eval().encode(values), network.image_encoder(values)
    assert float((found - wanted).abs().max()) < 5e-4


@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
def test_state_dicts_are_those_of_the_reference(mobile_sam, name):
    with torch.device("meta"):  # names and shapes only: ViT-H has 641 million weights
        wanted = mobile_sam.sam_model_registry[name.removeprefix("sam_")]().state_dict()
        found = build(name).state_dict()
    assert list(found) == list(wanted)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


@torch.inference_mode()
def test_other_image_sizes_interpolate_the_positions(photo):
    """Positions are resized, not cut."""
    small, full = reduced(512), reduced(1024)
    found = small.encode(torch.from_numpy(preprocess(photo, 512)))
    assert found.shape == (1, 256, 32, 32)
    positions = small.image_encoder._positions(32)
    whole = full.image_encoder.pos_embed
    pooled = torch.nn.functional.avg_pool2d(whole.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.corrcoef(torch.stack([positions.flatten(), pooled.flatten()]))[0, 1] > 0.9
    table = full.image_encoder.blocks[1].attn.rel_pos_h
    assert full.image_encoder.blocks[1].attn._relative(table, 32).shape == (32, 32, 32)


def test_a_sam_checkpoint_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "sam_vit_b", lambda: reduced().image_encoder)
    state = reduced().state_dict()
    torch.save(state, tmp_path / "sam.pth")
    loaded = load_model(tmp_path / "sam.pth", 128)
    assert loaded.architecture == "sam_vit_b"
    assert isinstance(loaded.model.image_encoder, ImageEncoderViT)
    del state["image_encoder.neck.0.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"does not fit sam_vit_b \(1 keys\)"):
        load_model(tmp_path / "cut.pth", 128)


@pytest.mark.slow
def test_it_exports_to_onnx(tmp_path, photo):
    encoder = Encoder(reduced(256))
    to_onnx.convert(encoder, tmp_path / "teacher.onnx")
    feeds = {c.PIXEL_VALUES: preprocess(photo, 256)}
    wanted, intermediates = run(encoder, feeds)
    data = (tmp_path / "teacher.onnx").read_bytes()
    found = to_onnx.load(data, "teacher", encoder.intermediates())(feeds)
    assert np.abs(found[c.IMAGE_EMBEDDINGS] - wanted[c.IMAGE_EMBEDDINGS]).max() < 1e-4
    for name, output in intermediates.items():
        assert np.abs(found[name] - output).max() < 1e-4, name
