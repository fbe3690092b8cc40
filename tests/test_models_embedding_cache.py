import pickle

import numpy as np
import pytest
import torch

from pocketsam.errors import PocketSamError
from pocketsam.models.training import embedding_cache as module
from pocketsam.models.training.embedding_cache import EmbeddingCache

NAMES = [f"{i}.png" for i in range(5)]


def embedding(number, side=4):
    return torch.randn(256, side, side, generator=torch.Generator().manual_seed(number))


def open_cache(folder, teacher="abc", size=64, names=NAMES):
    return EmbeddingCache(folder, teacher, size, names)


def test_what_goes_in_comes_out_as_float16(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.missing() == [0, 1, 2, 3, 4]
    cache.put(3, embedding(3))
    assert cache.missing() == [0, 1, 2, 4]
    assert torch.equal(open_cache(tmp_path).get(3), embedding(3).half().float())
    assert cache.bytes_per_image == 2 * 256 * 4 * 4 == (tmp_path / module.DATA_NAME).stat().st_size // 5


def test_bytes_per_image_are_those_that_the_docs_say(tmp_path):
    assert open_cache(tmp_path / "a", size=1024, names=["x"]).bytes_per_image == 2_097_152
    assert open_cache(tmp_path / "b", size=512, names=["x"]).bytes_per_image == 524_288


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": "other"}, "teacher"),
        ({"size": 128}, "image_size"),
        ({"names": NAMES[:4]}, "images"),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path, change, says):
    open_cache(tmp_path).put(0, embedding(0))
    with pytest.raises(PocketSamError, match=f"another {says}"):
        open_cache(tmp_path, **change)
    assert open_cache(tmp_path).missing() == [1, 2, 3, 4]


def test_filling_goes_on_where_it_was_killed(tmp_path):
    computed, seen = [], []

    def encode(values):
        computed.append(int(values[0, 0, 0, 0]))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return embedding(computed[-1]).unsqueeze(0)

    def load(number):
        return torch.full((3, 64, 64), float(number))

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path).fill(encode, load)
    cache = open_cache(tmp_path)
    cache.fill(encode, load, lambda done, total: seen.append((done, total)))
    assert computed == [0, 1, 2, 2, 3, 4]
    assert seen == [(3, 5), (4, 5), (5, 5)]
    assert all(torch.equal(cache.get(i), embedding(i).half().float()) for i in range(5))


def test_damage_is_noticed(tmp_path):
    cache = open_cache(tmp_path)
    cache.put(1, embedding(1))
    with pytest.raises(PocketSamError, match="record 0 is missing"):
        cache.get(0)
    data = np.memmap(tmp_path / module.DATA_NAME, np.uint8, "r+")
    data[cache.bytes_per_image + 5] ^= 1
    with pytest.raises(PocketSamError, match="record 1 is missing or damaged"):
        cache.get(1)


def test_an_embedding_that_is_no_number_is_not_kept(tmp_path):
    with pytest.raises(PocketSamError, match=r"2\.png.*not finite"):
        open_cache(tmp_path).put(2, embedding(2) * float("inf"))
    assert open_cache(tmp_path).missing() == [0, 1, 2, 3, 4]


def test_a_disk_that_is_too_small_is_noticed_at_once(tmp_path):
    names = [str(i) for i in range(1_000_000)]  # 268 TB at this size
    with pytest.raises(PocketSamError, match=str(tmp_path)):
        open_cache(tmp_path, size=11_264, names=names)
    assert not (tmp_path / module.DATA_NAME).exists()


@pytest.mark.parametrize("name", [module.DATA_NAME, module.SUMS_NAME, module.KEY_NAME])
@pytest.mark.parametrize("kept", [None, 0, 0.5])
def test_what_was_cut_or_deleted_is_computed_again(tmp_path, name, kept):
    cache = open_cache(tmp_path)
    for number in range(5):
        cache.put(number, embedding(number))
    del cache
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(data[: int(kept * len(data))])
    again = open_cache(tmp_path)
    left = 2 if kept == 0.5 and name != module.KEY_NAME else 0
    assert again.missing() == list(range(left, 5))
    again.fill(
        lambda x: embedding(int(x[0, 0, 0, 0]))[None], lambda n: torch.full((3, 64, 64), float(n))
    )
    assert all(torch.equal(again.get(i), embedding(i).half().float()) for i in range(5))


def test_a_damaged_record_is_computed_by_the_next_run(tmp_path):
    cache = open_cache(tmp_path)
    cache.put(1, embedding(1))
    np.memmap(tmp_path / module.DATA_NAME, np.uint8, "r+")[cache.bytes_per_image + 5] ^= 1
    with pytest.raises(PocketSamError, match="start again"):
        cache.get(1)
    assert 1 in open_cache(tmp_path).missing()


def test_a_worker_gets_no_copy_of_the_data(tmp_path):
    cache = open_cache(tmp_path)
    cache.put(2, embedding(2))
    data = pickle.dumps(cache)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data).get(2), cache.get(2))
