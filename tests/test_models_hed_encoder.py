"""The teacher's encoder: frozen features of HED's VGG16 under what learns."""

import torch

from pocketsam.models.hed_encoder import TeacherEncoder, Vgg16
from pocketsam.models.training.hed_weights import load_hed


def test_hed_weights_see_edges():
    """The first block of a VGG answers to an edge, not to a flat patch; unfilled, it would not."""
    vgg = Vgg16()
    before = vgg.blocks[0][0].weight.clone()
    load_hed(vgg)
    assert not torch.equal(before, vgg.blocks[0][0].weight)
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 2
    with torch.inference_mode():
        maps = vgg(image)
    assert [tuple(x.shape[1:]) for x in maps] == [(256, 16, 16), (512, 8, 8), (512, 4, 4)]
    columns = maps[0][0].std(dim=1).mean(dim=0)
    variation = maps[0][0].diff(dim=2).abs().mean(dim=(0, 1))
    assert variation.argmax() in (6, 7, 8)
    assert columns.isfinite().all()


def test_the_teacher_is_a_sam_encoder_with_frozen_features():
    encoder = TeacherEncoder()
    out = encoder(torch.zeros(2, 3, 128, 128))
    assert out.shape == (2, 256, 8, 8)
    out.sum().backward()
    assert all(p.grad is None for p in encoder.vgg.parameters())
    others = [p for name, p in encoder.named_parameters() if not name.startswith("vgg")]
    assert all(p.grad is not None for p in others)
