"""FastSAM's decoding against a plain one in torch, on a small network of the same outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pocketsam.errors import BundleError, PromptError
from pocketsam.runtime.compare.fastsam import FastSam, fit, letterboxed
from pocketsam.runtime.rle import from_rle

CANVAS = (96, 128)


class Small(nn.Module):
    """Outputs of a YOLOv8-seg: boxes around each cell, one class, coefficients; and prototypes."""

    def __init__(self, classes=1):
        super().__init__()
        torch.manual_seed(5)
        self.head = nn.Conv2d(3, 4 + classes + 32, 16, stride=16)
        self.prototypes = nn.Conv2d(3, 32, 4, stride=4)

    def forward(self, image):
        raw = self.head(image)
        height, width = raw.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = torch.stack([x, y])[None] * 16 + 8 + 8 * raw[:, :2]
        size = 40 + 30 * raw[:, 2:4]
        rest = raw[:, 4:-32].mul(3).add(1).sigmoid()
        return torch.cat([centre, size, rest, raw[:, -32:]], 1).flatten(2), self.prototypes(image)


def write(path, network):
    image = torch.zeros(1, 3, *CANVAS)
    torch.onnx.export(network.eval(), (image,), path, verbose=False, external_data=False)
    return path


@pytest.fixture(scope="module")
def network():
    return Small()


@pytest.fixture(scope="module")
def fastsam(network, tmp_path_factory):
    return FastSam(write(tmp_path_factory.mktemp("fastsam") / "small.onnx", network))


def plainly(network, image, conf, iou):
    """Masks and scores, one at a time, in torch."""
    box = fit(image.shape[:2], CANVAS)
    with torch.no_grad():
        rows, prototypes = network(torch.from_numpy(letterboxed(image, box)))
    found = []
    for row in rows[0].T:
        if row[4:-32].max() > conf:
            x, y, w, h = row[:4]
            found.append((row[4:-32].max(), (x - w / 2, y - h / 2, x + w / 2, y + h / 2), row[-32:]))
    found.sort(key=lambda one: -float(one[0]))
    kept = []
    for one in found:
        for other in kept:
            a, b = one[1], other[1]
            common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(
                min(a[3], b[3]) - max(a[1], b[1]), 0
            )
            areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
            if common / (areas - common) > iou:
                break
        else:
            kept.append(one)
    masks = []
    for _, corners, coefficients in kept:
        logits = (coefficients[:, None, None] * prototypes[0]).sum(0)
        top, left = round(box.top / 4), round(box.left / 4)
        logits = logits[
            top : round((box.top + box.size[0]) / 4), left : round((box.left + box.size[1]) / 4)
        ]
        full = F.interpolate(logits[None, None], image.shape[:2], mode="bilinear")[0, 0] > 0
        x0, y0, x1, y1 = (float(v) / box.scale for v in corners)
        x0, x1 = x0 - box.left / box.scale, x1 - box.left / box.scale
        y0, y1 = y0 - box.top / box.scale, y1 - box.top / box.scale
        y = torch.arange(full.shape[0])[:, None]
        x = torch.arange(full.shape[1])
        masks.append(full & (y >= y0) & (y < y1) & (x >= x0) & (x < x1))
    return [mask.numpy() for mask in masks], [float(one[0]) for one in kept]


@pytest.mark.parametrize(("conf", "iou"), [(0.4, 0.9), (0.2, 0.5), (0.999, 0.9)])
@pytest.mark.parametrize("cut", [(300, 451), (300, 90), (40, 451), (96, 128), (1, 1)])
def test_all_masks(cut, conf, iou, network, fastsam, photo):
    image = np.ascontiguousarray(photo[: cut[0], : cut[1]])
    wanted, scores = plainly(network, image, conf, iou)
    fastsam.set_image(image, conf, iou)
    masks, its = fastsam.masks
    assert len(masks) == len(wanted)
    assert np.allclose(its, scores, atol=1e-5)
    for mask, other in zip(masks, wanted, strict=True):
        assert np.count_nonzero(mask != other) <= 2 + 1e-3 * mask.size
    if conf < 0.9 and min(image.shape[:2]) > 50:
        assert len(wanted) > 3


def test_several_classes(tmp_path, photo):
    network = Small(classes=80)
    one = FastSam(write(tmp_path / "yolo.onnx", network))
    wanted, _ = plainly(network, photo, 0.6, 0.7)
    one.set_image(photo, 0.6, 0.7)
    assert len(one.masks[0]) == len(wanted) > 0


def test_records(fastsam, photo):
    records = fastsam.generate(photo)
    masks, scores = fastsam.masks
    for record, mask, score in zip(records, masks, scores, strict=True):
        assert np.array_equal(from_rle(record["segmentation"]), mask)
        assert record["area"] == mask.sum()
        assert record["predicted_iou"] == pytest.approx(score)


def test_prompts_choose_among_the_masks(fastsam, photo):
    fastsam.set_image(photo)
    masks, _ = fastsam.masks
    y, x = (int(v) for v in np.argwhere(masks[0])[0])
    on = [mask for mask in masks if mask[y, x]]
    assert np.array_equal(fastsam.predict([[x, y]], [1]), np.logical_or.reduce(on))
    assert not fastsam.predict([[x, y], [x, y]], [1, 0]).any()
    rows, columns = np.argwhere(masks[0]).T
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    chosen = fastsam.predict(box=box)
    assert any(np.array_equal(chosen, mask) for mask in masks)
    with pytest.raises(PromptError, match="either points or a box"):
        fastsam.predict()
    with pytest.raises(PromptError, match="either points or a box"):
        fastsam.predict([[1, 1]], [1], [0, 0, 1, 1])


def test_nothing_found(fastsam, photo):
    fastsam.set_image(photo, conf=1)
    assert fastsam.generate(photo, conf=1) == []
    assert not fastsam.predict([[5, 5]]).any()
    assert not fastsam.predict(box=[0, 0, 9, 9]).any()


def test_what_is_no_fastsam(bundle, tmp_path, photo, fastsam):
    with pytest.raises(BundleError, match=r"needs outputs .* like FastSAM .*, not image_emb"):
        FastSam(bundle / "encoder.onnx").set_image(photo)
    with pytest.raises(BundleError, match=r"decoder\.onnx: needs a single input \[1, 3, H, W\]"):
        FastSam(bundle / "decoder.onnx")
    with pytest.raises(BundleError, match=r"absent\.onnx: No such file"):
        FastSam(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=r"bad\.onnx: onnxruntime cannot load it"):
        FastSam(tmp_path / "bad.onnx")
    for wrong in ({"conf": 2}, {"iou": -0.1}, {"conf": float("nan")}):
        with pytest.raises(PromptError, match=r"must lie in 0\.\.1"):
            fastsam.set_image(photo, **wrong)
