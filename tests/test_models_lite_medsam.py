"""LiteMedSAM: an embedding of S/4, pictures stretched from 0 to 1, one mask to a prompt."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tiny_bundle import write_tiny

from pocketsam import MaskGenerator, Segmenter, export
from pocketsam.cli import main
from pocketsam.errors import BundleError, CheckpointError, IntegrityError, UsageError
from pocketsam.export.drop_in import export_for
from pocketsam.models.checkpoint import load_model, read_settings
from pocketsam.models.images import scaled
from pocketsam.models.prompted import Prompts, decode, embed, predict
from pocketsam.models.sam import seeded
from pocketsam.runtime.bundle import DEFAULT_BUNDLE, open_bundle
from pocketsam.runtime.image import preprocess
from pocketsam.runtime.verification.golden import check_golden
from pocketsam.traits import MIN_MAX, SAM_PIXELS, Traits

SIZE = 64
BOX = (100, 50, 300, 250)
PUBLIC_KEYS = "ff7bdd488a3a63220d211cf659b22cf02489728c5e159c18090d6a0672bb9714"
UNREAD = ("num_batches_tracked", "point_embeddings.0", "point_embeddings.1", "not_a_point", "mask_down")


@pytest.fixture(scope="module")
def state():
    """Weights in LiteMedSAM's own layout, which has no classifier."""
    weights = seeded(SIZE, 7, "lite_medsam").state_dict()
    return {
        key: value for key, value in weights.items() if ".head." not in key and "norm_head" not in key
    }


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lite") / "lite_medsam.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint, shared, pictures):
    def build(path):
        assert export(checkpoint, path, image_size=SIZE, images=pictures).ok

    return shared("lite_medsam", build)


@pytest.fixture(scope="module")
def photo_file(photo, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(photo).save(path)
    return path


class Weights(dict):
    """A state dict that notes which tensors were read."""

    def __init__(self, state):
        super().__init__(state)
        self.unread = set(state)

    def __getitem__(self, name):
        self.unread.discard(name)
        return super().__getitem__(name)

    def linear(self, name, x):
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"])

    def norm2d(self, name, x):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * self[f"{name}.weight"][:, None, None] + self[f"{name}.bias"][:, None, None]

    def conv(self, name, x, stride=1):
        """Convolution without bias, depthwise where the kernel says so, and BatchNorm."""
        kernel = self[f"{name}.c.weight"]
        groups = x.shape[1] // kernel.shape[1]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        mean, var, weight, bias = (
            self[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def three(self, name, x, stride=1):
        x = F.gelu(self.conv(f"{name}.conv1", x))
        return self.conv(f"{name}.conv3", F.gelu(self.conv(f"{name}.conv2", x, stride)))

    def mlp(self, name, x):
        for i in (0, 1):
            x = F.relu(self.linear(f"{name}.layers.{i}", x))
        return self.linear(f"{name}.layers.2", x)

    def attend(self, name, q, k, v):
        """The decoder's, of 8 heads: ``[T, C]`` each."""
        q, k, v = (self.linear(f"{name}.{p}_proj", x) for p, x in (("q", q), ("k", k), ("v", v)))
        heads = []
        for a, b, c in zip(q.chunk(8, 1), k.chunk(8, 1), v.chunk(8, 1), strict=True):
            heads.append((a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c)
        return self.linear(f"{name}.out_proj", torch.cat(heads, 1))

    def window(self, name, x, heads, side):
        """Attention of a window's tokens ``[side·side, C]``, with a bias by their distance."""
        y, x_ = torch.arange(side * side) // side, torch.arange(side * side) % side
        distance = (y[:, None] - y).abs() * side + (x_[:, None] - x_).abs()
        found = []
        parts = self.linear(f"{name}.qkv", self.norm(f"{name}.norm", x)).chunk(heads, 1)
        for part, bias in zip(parts, self[f"{name}.attention_biases"], strict=True):
            q, k, v = part.chunk(3, 1)
            found.append((q @ k.T / q.shape[1] ** 0.5 + bias[distance]).softmax(1) @ v)
        return self.linear(f"{name}.proj", torch.cat(found, 1))

    def block(self, name, x, heads, side):
        """A TinyViT block: ``[1, C, H, W]``."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % side, 0, -height % side))
        out = torch.empty_like(padded)
        for top in range(0, padded.shape[2], side):
            for left in range(0, padded.shape[3], side):
                place = (0, slice(None), slice(top, top + side), slice(left, left + side))
                tokens = self.window(f"{name}.attn", padded[place].flatten(1).T, heads, side)
                out[place] = tokens.T.unflatten(1, (side, side))
        x = self.conv(f"{name}.local_conv", x + out[:, :, :height, :width])
        tokens = x[0].flatten(1).T
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.mlp.norm", tokens)))
        tokens = tokens + self.linear(f"{name}.mlp.fc2", hidden)
        return tokens.T.reshape(x.shape)

    def encode(self, x):
        name = "image_encoder"
        x = F.gelu(self.conv(f"{name}.patch_embed.seq.0", x))
        x = self.conv(f"{name}.patch_embed.seq.2", x)
        for i in (0, 1):
            x = F.gelu(x + self.three(f"{name}.layers.0.blocks.{i}", x))
        x = self.three(f"{name}.layers.0.downsample", x, 2)
        for layer, depth, heads, side in ((1, 2, 4, 7), (2, 6, 5, 14), (3, 2, 10, 7)):
            for i in range(depth):
                x = self.block(f"{name}.layers.{layer}.blocks.{i}", x, heads, side)
            if layer < 3:
                x = self.three(f"{name}.layers.{layer}.downsample", x, 3 - layer)
        x = self.norm2d(f"{name}.neck.1", F.conv2d(x, self[f"{name}.neck.0.weight"]))
        return self.norm2d(f"{name}.neck.3", F.conv2d(x, self[f"{name}.neck.2.weight"], padding=1))

    def positions(self, xy):
        """Fourier features of ``[N, 2]`` in 0..1."""
        angles = (2 * xy - 1) @ self["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        return torch.cat([(2 * torch.pi * angles).sin(), (2 * torch.pi * angles).cos()], 1)

    def decode(self, embedding, box, size):
        """Low-resolution masks ``[4, h, w]`` and scores ``[4]`` for a box on the canvas."""
        name = "mask_decoder"
        corners = self.positions((torch.tensor(box).view(2, 2) + 0.5) / size)
        kinds = [self[f"prompt_encoder.point_embeddings.{i}.weight"] for i in (2, 3)]
        first = [self[f"{name}.{key}.weight"] for key in ("iou_token", "mask_tokens")]
        prompt = torch.cat([*first, corners + torch.cat(kinds)])
        side = embedding.shape[-1]
        y, x = torch.meshgrid(*2 * ((torch.arange(side) + 0.5) / side,), indexing="ij")
        where = self.positions(torch.stack([x.flatten(), y.flatten()], 1))
        image = embedding[0].flatten(1).T + self["prompt_encoder.no_mask_embed.weight"]
        tokens, name = prompt, "mask_decoder.transformer"
        for i in (0, 1):
            layer, at = f"{name}.layers.{i}", tokens + prompt
            if i:
                tokens = tokens + self.attend(f"{layer}.self_attn", at, at, tokens)
            else:
                tokens = self.attend(f"{layer}.self_attn", tokens, tokens, tokens)
            tokens = self.norm(f"{layer}.norm1", tokens)
            to_image = f"{layer}.cross_attn_token_to_image"
            tokens = tokens + self.attend(to_image, tokens + prompt, image + where, image)
            tokens = self.norm(f"{layer}.norm2", tokens)
            hidden = F.relu(self.linear(f"{layer}.mlp.lin1", tokens))
            tokens = self.norm(f"{layer}.norm3", tokens + self.linear(f"{layer}.mlp.lin2", hidden))
            to_token = f"{layer}.cross_attn_image_to_token"
            image = image + self.attend(to_token, image + where, tokens + prompt, tokens)
            image = self.norm(f"{layer}.norm4", image)
        last = f"{name}.final_attn_token_to_image"
        tokens = tokens + self.attend(last, tokens + prompt, image + where, image)
        return self.answer(self.norm(f"{name}.norm_final_attn", tokens), image, side)

    def answer(self, tokens, image, side):
        name = "mask_decoder"
        up = f"{name}.output_upscaling"
        x = image.T.reshape(1, -1, side, side)
        x = F.conv_transpose2d(x, self[f"{up}.0.weight"], self[f"{up}.0.bias"], 2)
        x = F.gelu(self.norm2d(f"{up}.1", x))
        x = F.gelu(F.conv_transpose2d(x, self[f"{up}.3.weight"], self[f"{up}.3.bias"], 2))[0]
        heads = [self.mlp(f"{name}.output_hypernetworks_mlps.{i}", tokens[1 + i]) for i in range(4)]
        masks = (torch.stack(heads) @ x.flatten(1)).unflatten(1, x.shape[1:])
        return masks, self.mlp(f"{name}.iou_prediction_head", tokens[0])


def pixels_of(photo, size):
    """As ``CVPR24_LiteMedSAM_infer.py`` makes them, with Pillow's filter; and the picture's shape."""
    ratio = size / max(photo.shape[:2])
    height, width = (int(side * ratio + 0.5) for side in photo.shape[:2])
    small = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
    values = (small - small.min()) / np.clip(small.max() - small.min(), 1e-8, None)
    values = np.pad(values, ((0, size - height), (0, size - width), (0, 0)))
    return torch.tensor(values).float().permute(2, 0, 1)[None], (height, width)


@pytest.fixture(scope="module")
def answer(state, photo):
    """Embedding, low-resolution masks and scores for ``BOX`` on the photograph, stated once more."""
    weights = Weights(state)
    pixels, (height, width) = pixels_of(photo, SIZE)
    scale = (width / photo.shape[1], height / photo.shape[0]) * 2
    box = [side * ratio for side, ratio in zip(BOX, scale, strict=True)]
    with torch.inference_mode():
        embedding = weights.encode(pixels)
        masks, scores = weights.decode(embedding, box, SIZE)
    assert all(any(part in key for part in UNREAD) for key in weights.unread)
    return embedding, masks, scores


def test_names_and_shapes_are_the_public_ones(state):
    """Of ``MedSAM_Lite`` at bowang-lab/MedSAM, branch LiteMedSAM, commit b0fab47."""
    lines = sorted(f"{key} {list(value.shape)}" for key, value in state.items())
    assert len(lines) == 435
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLIC_KEYS


def test_it_is_recognised_and_its_canvas_is_256(state, checkpoint, tmp_path):
    settings = read_settings(checkpoint)
    assert (settings.image_size, settings.is_known) == (256, True)
    loaded = load_model(checkpoint, SIZE)
    assert loaded.architecture == "lite_medsam"
    assert loaded.note == "without head and norm_head, which nothing needs"
    assert (loaded.model.embedding_side, loaded.model.mask_side) == (16, 64)
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "lite.safetensors")
    assert read_settings(tmp_path / "lite.safetensors") == settings
    assert load_model(tmp_path / "lite.safetensors", SIZE).architecture == "lite_medsam"
    torch.save({"model": state, "epoch": 1, "optimizer": {}}, tmp_path / "medsam_lite_latest.pth")
    assert read_settings(tmp_path / "medsam_lite_latest.pth") == settings


def test_a_canvas_beyond_every_sams_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="its canvas is at most 1024 pixels, not 2048"):
        load_model(checkpoint, 2048)


def test_pixels_are_stretched(photo):
    wanted, _ = pixels_of(photo, SIZE)
    assert np.array_equal(preprocess(photo, SIZE, MIN_MAX), wanted)
    grey = np.full((20, 30, 3), 77, np.uint8)
    assert not preprocess(grey, SIZE, MIN_MAX).any()  # no division by the range of a single value
    assert preprocess(grey, SIZE).any()


@torch.inference_mode()
def test_pytorch_computes_what_the_public_code_does(checkpoint, answer, photo):
    embedding, masks, _ = answer
    model = load_model(checkpoint, SIZE).model
    small = scaled(Image.fromarray(photo), SIZE)
    found = embed(model, small)
    assert float((found - embedding).abs().max()) < 1e-4
    _, (height, width) = pixels_of(photo, SIZE)
    ratios = np.array([width / photo.shape[1], height / photo.shape[0]], np.float32)
    box = torch.from_numpy(np.float32(BOX).reshape(1, 2, 2) * ratios)
    prompts = Prompts(box, torch.tensor([[2.0, 3.0]]))
    assert float((decode(model, found, prompts).masks[0] - masks).abs().max()) < 1e-3
    wanted = masks[0, :height, :width] > 0  # the only mask that was trained, at the canvas' size
    assert np.array_equal(predict(model, found, prompts, small.shape)[0], wanted)


def test_the_runtime_computes_what_the_public_code_does(bundle, answer, photo):
    embedding, masks, scores = answer
    segmenter = Segmenter(bundle)
    assert segmenter.manifest.traits == Traits(4, MIN_MAX, multimask=False, image_size=SIZE)
    segmenter.set_image(photo)
    assert np.abs(segmenter.get_image_embedding() - embedding.numpy()).max() < 1e-4
    logits, score, low = segmenter.predict(box=BOX, multimask_output=False, return_logits=True)
    assert np.abs(low - masks[:1].numpy()).max() < 1e-3
    assert abs(score[0] - float(scores[0])) < 1e-4
    _, (height, width) = pixels_of(photo, SIZE)
    full = F.interpolate(
        masks[None, :1, :height, :width], photo.shape[:2], mode="bilinear", align_corners=False
    )
    assert np.abs(logits - full[0].numpy()).max() < 1e-3
    three, _, _ = segmenter.predict(box=BOX, mask_input=low)
    assert three.shape == (3, *photo.shape[:2])


def test_a_bundle_of_it(bundle, photo, photo_file, tmp_path):
    assert all(result.ok for result in check_golden(bundle))
    segmenter = Segmenter(bundle)
    segmenter.set_image(photo)
    wanted, _, _ = segmenter.predict(box=BOX, multimask_output=False)
    segmenter.embedding().save(tmp_path / "cat.npz")
    segmenter.reset_image()
    segmenter.set_embedding(tmp_path / "cat.npz", photo)
    assert np.array_equal(segmenter.predict(box=BOX, multimask_output=False)[0], wanted)
    MaskGenerator(segmenter, points_per_side=2, pred_iou_thresh=0).generate(photo)
    arguments = ["--box", ",".join(map(str, BOX)), "--output", str(tmp_path / "mask.png")]
    assert main(["segment", str(bundle), str(photo_file), *arguments]) == 0
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert np.array_equal(mask > 0, wanted[0])  # the only mask that was trained


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.pop("embedding_stride"), BundleError, r"must be float32 \[1, 256, 4, 4\]"),
        (lambda m: m.update(embedding_stride=3), IntegrityError, "3 does not go with image_size 64"),
        (lambda m: m.update(embedding_stride=0), IntegrityError, "embedding_stride is 0, not from"),
        (lambda m: m.update(embedding_stride="4"), IntegrityError, "embedding_stride is .* type int"),
        (lambda m: m.update(multimask="no"), IntegrityError, "multimask is .* type bool"),
        (lambda m: m["preprocessing"].pop("stretch"), IntegrityError, "mean is"),
        (lambda m: m["preprocessing"].update(stretch=1), IntegrityError, "stretch is .* type bool"),
        (lambda m: m["preprocessing"].update(mean=[1, 2, 3]), IntegrityError, "mean is"),
    ],
)
def test_a_manifest_that_says_otherwise(change, error, message, bundle, photo, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(error, match=message):
        Segmenter(tmp_path / "bundle").set_image(photo)


def test_bundles_without_traits_are_sams(tmp_path):
    for bundle in (DEFAULT_BUNDLE, write_tiny(tmp_path / "tiny")):
        assert "embedding_stride" not in json.loads((bundle / "manifest.json").read_text())
        manifest = open_bundle(bundle).manifest
        assert manifest.traits == Traits(16, SAM_PIXELS, True, manifest.image_size)


def test_what_it_cannot_do_is_refused(checkpoint, photo_file, tmp_path, capsys):
    with pytest.raises(UsageError, match="by its own least and greatest value, which --input image"):
        export(checkpoint, tmp_path / "b", target="coreml", input="image", image_size=SIZE)
    with pytest.raises(UsageError, match=r"rembg.* prepares pictures as SAM does"):
        export_for("rembg", checkpoint, tmp_path / "r")
    command = ["distill", str(photo_file.parent), "--teacher", str(checkpoint), "--image-size", "64"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "whose encoder cannot imitate it" in capsys.readouterr().err
