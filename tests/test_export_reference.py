import numpy as np
import pytest
from PIL import Image

from pocketsam.errors import ImageError
from pocketsam.export.reference import VERIFICATION_PHOTOS, load_photos


def test_the_bundled_photographs_need_no_network():
    photos = load_photos()
    assert [name for name, _ in photos] == list(VERIFICATION_PHOTOS)
    for _, image in photos:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.std() > 30


def test_files_and_folders(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    names = [name for name, _ in load_photos([str(tmp_path), str(tmp_path / "b.png")])]
    assert names == ["a.jpg", "b.png", "b.png"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match="a folder without images"):
        load_photos([str(tmp_path)])
    with pytest.raises(ImageError, match=r"none\.png"):
        load_photos([str(tmp_path / "none.png")])
