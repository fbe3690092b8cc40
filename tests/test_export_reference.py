from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketsam.errors import ImageError
from pocketsam.export.cases import compute_cases
from pocketsam.export.reference import VERIFICATION_PHOTOS, find_photos
from pocketsam.images import load_image
from pocketsam.models.sam import seeded


def test_the_bundled_photographs_need_no_network():
    photos = find_photos()
    assert [name for name, _ in photos] == list(VERIFICATION_PHOTOS)
    for _, image in photos:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.std() > 30


def test_files_and_folders(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    photos = find_photos([str(tmp_path), str(tmp_path / "b.png")])
    assert [name for name, _ in photos] == ["a.jpg", "b.png", "b.png"]
    cases = compute_cases(seeded(64, 0), photos, prompts=(), detailed=0)
    for case in cases:
        assert isinstance(
            case.source, Path
        )  # read when it is needed, so that no folder fills the memory
        assert case.size == (6, 8)
        assert np.array_equal(case.photo, load_image(case.source))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match="a folder without images"):
        find_photos([str(tmp_path)])
    with pytest.raises(ImageError, match=r"none\.png"):
        find_photos([str(tmp_path / "none.png")])
