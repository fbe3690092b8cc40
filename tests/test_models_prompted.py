import numpy as np
import pytest
import torch

from pocketsam.models import prompted
from pocketsam.models.sam import seeded
from pocketsam.models.training.losses import grouping_loss, mask_loss


@pytest.fixture
def masks():
    y, x = np.mgrid[0:64, 0:64]
    disk = (x - 30) ** 2 + (y - 20) ** 2 < 100
    return np.stack([disk, x > 40, np.ones((64, 64), bool)])


def test_iou():
    a = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]).bool()
    b = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()
    assert prompted.iou(a, b).tolist() == [0.5, 1.0, 0.0]


def test_the_loss_is_lowest_at_the_truth_and_picks_the_best_mask(masks):
    wanted = torch.from_numpy(masks[:2].astype(np.float32))
    right = (wanted * 40 - 20).unsqueeze(1)
    wrong = -right
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2)
    good = torch.cat([right, wrong, right, wrong], dim=1)
    loss, best = mask_loss(good, scores, wanted)
    assert best == 1
    assert loss < 1e-2
    worse, best = mask_loss(torch.cat([right, wrong, wrong, wrong], dim=1), scores, wanted)
    assert best == 0
    assert worse > 10
    misjudged, _ = mask_loss(good, 1 - scores, wanted)
    assert misjudged > 0.9


def test_grouping_asks_for_cells_that_resemble_each_other():
    wanted = torch.zeros(1, 2, 16, 16)
    wanted[0, 0, :8], wanted[0, 1, 8:] = 1, 1
    embeddings = torch.zeros(1, 3, 4, 4)
    embeddings[0, 0, :2], embeddings[0, 1, 2:] = 1, 1
    grouped = grouping_loss(embeddings, wanted)
    assert grouped < 0.1
    assert grouping_loss(torch.ones(1, 3, 4, 4), wanted) > 5 * grouped


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
