"""The network against the reference implementation, stage by stage, on seeded weights."""

import copy

import numpy as np
import pytest
import torch

from pocketsam.export.traced import Decoder, Encoder, tapped
from pocketsam.models.sam import build, seeded
from pocketsam.runtime.image import preprocess

POINTS = [[[500.0, 400.0], [100.5, 900.25]]]
BOX = [[200.0, 150.0, 800.0, 700.0]]


def pixel_values(photo, image_size=1024):
    return torch.from_numpy(preprocess(photo, image_size))


def apart(a, b):
    """Largest difference in standard deviations of b."""
    return float((a - b).abs().max() / b.std())


@pytest.fixture(scope="module")
def embedding(model, photo):
    with torch.inference_mode():
        return model.encode(pixel_values(photo))


def test_state_dict_is_that_of_the_reference(mobile_sam, model):
    wanted = mobile_sam.sam_model_registry["vit_t"]().state_dict()
    found = model.state_dict()
    assert list(found) == list(wanted)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


def test_parameter_counts_are_those_published(model):
    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)

    assert millions(model.image_encoder) == 6.066
    assert millions(model.mask_decoder) == 4.058
    assert millions(model.prompt_encoder) == 0.006


@torch.inference_mode()
def test_every_encoder_stage_equals_the_reference(model, reference, photo):
    values = pixel_values(photo)
    expected = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: expected.update({name: out}))
        for name, module in reference.named_modules()
    ]
    wanted_embedding = reference.image_encoder(values)
    for handle in handles:
        handle.remove()
    encoder = Encoder(model)
    with tapped(encoder) as outputs:
        (embedding,) = encoder(values)

    assert len(outputs) == len(encoder.intermediates()) == 16
    for name, found in outputs.items():
        if ".blocks." in name and "layers.0" not in name:  # [B, H, W, C] here, [B, H·W, C] there
            found = found.flatten(1, 2)
        elif name.endswith("downsample"):  # [B, C, H, W] here, [B, H·W, C] there
            found = found.flatten(2).transpose(1, 2)
        assert apart(found, expected[name]) < 1e-4, name
    assert apart(embedding, wanted_embedding) < 1e-4


def reference_decode(reference, embedding, points, labels, boxes, masks):
    sparse, dense = reference.prompt_encoder(
        points=None if points is None else (torch.tensor(points), torch.tensor(labels)),
        boxes=None if boxes is None else torch.tensor(boxes),
        masks=masks,
    )
    return reference.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=reference.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


def our_decode(model, embedding, points, labels, boxes, masks):
    """Points, then the box's corners or a pad: what the reference's prompt encoder puts together."""
    all_coords, all_labels = torch.zeros(1, 0, 2), torch.zeros(1, 0)
    if points is not None:
        all_coords, all_labels = torch.tensor(points), torch.tensor(labels, dtype=torch.float32)
        if boxes is None:
            all_coords = torch.cat([all_coords, torch.zeros(1, 1, 2)], dim=1)
            all_labels = torch.cat([all_labels, -torch.ones(1, 1)], dim=1)
    if boxes is not None:
        all_coords = torch.cat([all_coords, torch.tensor(boxes).view(1, 2, 2)], dim=1)
        all_labels = torch.cat([all_labels, torch.tensor([[2.0, 3.0]])], dim=1)
    mask = torch.zeros(1, 1, 256, 256) if masks is None else masks
    has_mask = torch.full((1,), float(masks is not None))
    return model.decode(embedding, all_coords, all_labels, mask, has_mask)


@pytest.mark.parametrize(
    ("points", "labels", "boxes", "with_mask"),
    [
        (POINTS, [[1, 1]], None, False),
        (POINTS, [[1, 0]], None, False),
        (POINTS, [[0, -1]], None, False),
        (None, None, BOX, False),
        (POINTS, [[1, 0]], BOX, False),
        (POINTS, [[1, 1]], None, True),
        (None, None, BOX, True),
        (None, None, None, True),
        (None, None, None, False),
    ],
)
@torch.inference_mode()
def test_masks_and_scores_equal_the_reference(
    model, reference, embedding, points, labels, boxes, with_mask
):
    masks = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(3)) * 5
    prompt = (points, labels, boxes, masks if with_mask else None)
    wanted_masks, wanted_scores = reference_decode(reference, embedding, *prompt)
    found_masks, found_scores = our_decode(model, embedding, *prompt)
    assert found_masks.shape == (1, 4, 256, 256)
    assert wanted_masks.std() > 2
    assert float((found_masks - wanted_masks).abs().max()) < 5e-4
    assert float((found_scores - wanted_scores).abs().max()) < 1e-5


@torch.inference_mode()
def test_every_decoder_stage_equals_the_reference(model, reference, embedding):
    expected = {}

    def keep(name):
        return lambda _m, _i, out: expected.update({name: out})

    names = ["transformer.layers.0", "transformer.layers.1", "transformer", "output_upscaling"]
    modules = [reference.mask_decoder.get_submodule(name) for name in names]
    handles = [m.register_forward_hook(keep(name)) for name, m in zip(names, modules, strict=True)]
    reference_decode(reference, embedding, POINTS, [[1, 0]], None, None)
    for handle in handles:
        handle.remove()
    decoder = Decoder(model)
    with tapped(decoder) as outputs:
        our_decode(model, embedding, POINTS, [[1, 0]], None, None)
    assert len(outputs) == len(decoder.intermediates()) == 6
    for name, found in outputs.items():
        path = name.removeprefix("mask_decoder.")
        wanted = expected[path] if path in expected else expected[path[:-2]][int(path[-1])]
        assert apart(found, wanted) < 1e-4, name


@torch.inference_mode()
def test_dense_position_encoding_equals_the_reference(model, reference):
    wanted = reference.prompt_encoder.get_dense_pe()
    assert float((model.prompt_encoder.dense_pe() - wanted).abs().max()) < 1e-4


@torch.inference_mode()
def test_prompts_change_the_masks(model, embedding):
    """Seeded weights must not be so weak, or so saturated, that a wrong prompt passes unseen."""
    base, _ = our_decode(model, embedding, POINTS, [[1, 1]], None, None)
    moved, _ = our_decode(model, embedding, [[[500.0, 400.0], [300.5, 100.25]]], [[1, 1]], None, None)
    relabelled, _ = our_decode(model, embedding, POINTS, [[1, 0]], None, None)
    for other in (moved, relabelled):
        assert float((base - other).abs().max()) > 0.1


@torch.inference_mode()
def test_prompts_in_a_batch_are_independent(model, embedding):
    coords = torch.tensor([[[500.0, 400.0]], [[20.0, 1000.0]], [[700.0, 30.0]]])
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    masks = torch.randn(3, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    has_mask = torch.tensor([1.0, 0.0, 1.0])
    batch, scores = model.decode(embedding, coords, labels, masks, has_mask)
    for i in range(3):
        part = slice(i, i + 1)
        one, score = model.decode(embedding, coords[part], labels[part], masks[part], has_mask[part])
        assert float((batch[part] - one).abs().max()) < 5e-4
        assert float((scores[part] - score).abs().max()) < 1e-5


@pytest.mark.parametrize("image_size", [256, 448])  # with padded windows, and without
@torch.inference_mode()
def test_other_image_sizes_equal_the_reference(mobile_sam, model, photo, image_size):
    """The reference's encoder ends in a hard-wired 64x64; its parts run at any size."""
    tiny = mobile_sam.modeling.TinyViT(
        img_size=image_size,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
    )
    tiny.load_state_dict(model.image_encoder.state_dict())
    tiny.eval()
    values = pixel_values(photo, image_size)
    x = tiny.patch_embed(values)
    for layer in tiny.layers:
        x = layer(x)
    cells = image_size // 16
    wanted = tiny.neck(x.view(1, cells, cells, -1).permute(0, 3, 1, 2))
    ours = build(image_size=image_size)
    ours.load_state_dict(model.state_dict())
    assert apart(ours.eval().encode(values), wanted) < 1e-4

    prompt_encoder = mobile_sam.modeling.PromptEncoder(
        embed_dim=256,
        image_embedding_size=(cells, cells),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    coords, labels = torch.tensor([[[100.0, 300.0]]]), torch.tensor([[1.0]])
    wanted_points, _ = prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    found = ours.prompt_encoder.embed_points(coords, labels)
    assert torch.allclose(found, wanted_points[:, :1], atol=1e-5)
    wanted_pe = prompt_encoder.get_dense_pe()
    assert torch.allclose(ours.prompt_encoder.dense_pe(), wanted_pe, atol=1e-4)


def test_weights_loaded_after_eval_are_the_weights_used(model, photo):
    """The reference keeps a stale attention bias then (field note 1)."""
    values = pixel_values(photo, 64)
    late = build(image_size=64).eval()
    with torch.inference_mode():
        late.encode(values)
    late.load_state_dict(model.state_dict())
    early = build(image_size=64)
    early.load_state_dict(model.state_dict())
    early.eval()
    bfloat16 = copy.deepcopy(late).to(torch.bfloat16)
    with torch.inference_mode():
        wanted = early.encode(values)
        assert torch.equal(late.encode(values), wanted)
        assert bfloat16.encode(values.to(torch.bfloat16)).dtype == torch.bfloat16
        biases = early.image_encoder.layers[1].blocks[0].attn.attention_biases
        biases.add_(torch.randn_like(biases))
        assert not torch.allclose(early.encode(values), wanted, atol=1e-4)


def test_gradients_reach_every_weight_that_is_used(photo):
    """Distillation trains this network: nothing in it may detach."""
    network = seeded(64).train()
    embedding = network.encode(pixel_values(photo, 64))
    masks, scores = network.decode(
        embedding[:1],
        torch.tensor([[[1.0, 2.0], [0.0, 0.0], [5.0, 5.0], [9.0, 9.0], [3.0, 3.0]]]),
        torch.tensor([[1.0, -1.0, 2.0, 3.0, 0.0]]),
        torch.zeros(1, 1, 16, 16),
        torch.tensor([0.5]),
    )
    (masks.sum() + scores.sum()).backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    head = {
        f"image_encoder.{n}" for n in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")
    }
    assert without == head


def test_seeded_weights_are_reproducible_and_not_trivial():
    one, two, other = seeded(64, 5).state_dict(), seeded(64, 5).state_dict(), seeded(64, 6).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    floats = [key for key in one if one[key].is_floating_point()]
    assert not any(torch.equal(one[key], other[key]) for key in floats)
    for key in floats:
        assert one[key].std() > 0, key


@pytest.mark.parametrize("image_size", [0, -64, 100, 1000])
def test_an_image_size_that_is_no_multiple_of_64_is_refused(image_size):
    with pytest.raises(ValueError, match=str(image_size)):
        build(image_size=image_size)


def test_encoding_leaves_batch_norm_as_it_is(model):
    """A forward pass in training mode would shift its statistics (field note 2)."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not model.training
    with torch.inference_mode():
        model.encode(torch.from_numpy(np.zeros((1, 3, 64, 64), np.float32)))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
