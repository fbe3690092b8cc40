import numpy as np
import pytest
import torch

from pocketsam.models import prompted
from pocketsam.models.sam import seeded


@pytest.fixture
def masks():
    y, x = np.mgrid[0:64, 0:64]
    disk = (x - 30) ** 2 + (y - 20) ** 2 < 100
    return np.stack([disk, x > 40, np.ones((64, 64), bool)])


def test_iou():
    a = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]).bool()
    b = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()
    assert prompted.iou(a, b).tolist() == [0.5, 1.0, 0.0]


def test_decoding_many_images_at_once_equals_one_by_one():
    model = seeded(64)
    embeddings = torch.randn(2, 256, 4, 4, generator=torch.Generator().manual_seed(0))
    prompts = prompted.Prompts(torch.tensor([[[3.0, 4.0]], [[50.0, 9.0]]]), torch.ones(2, 1))
    with torch.inference_mode():
        both, scores = prompted.decode(model, embeddings, prompts)
        for i in range(2):
            alone = prompted.Prompts(prompts.coords[i : i + 1], prompts.labels[i : i + 1])
            masks, score = prompted.decode(model, embeddings[i : i + 1], alone)
            assert torch.allclose(both[i], masks[0], atol=1e-4)
            assert torch.allclose(scores[i], score[0], atol=1e-5)
