import struct
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pocketsam.errors import ImageError
from pocketsam.runtime.contract import PIXEL_MEAN, PIXEL_STD, resized_shape
from pocketsam.runtime.image import MAX_PIXELS, check_pixels, load_image, preprocess

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def reload(image, path, **options):
    image.save(path, **options)
    return load_image(path)


def test_rgb_and_grayscale(tmp_path):
    assert np.array_equal(reload(Image.fromarray(RGB), tmp_path / "a.png"), RGB)
    gray = reload(Image.fromarray(RGB[..., 0]), tmp_path / "b.png")
    assert np.array_equal(gray, np.repeat(RGB[..., :1], 3, axis=2))


def test_black_and_white(tmp_path):
    found = reload(Image.fromarray(RGB[..., 0] > 100), tmp_path / "a.png")
    assert np.array_equal(found[..., 2], (RGB[..., 0] > 100) * np.uint8(255))


@pytest.mark.parametrize("bands", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_over_white(tmp_path, bands):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 10:] = 255
    image = Image.fromarray(RGB).convert(bands[:-1])
    image.putalpha(Image.fromarray(alpha))
    found = reload(image, tmp_path / "a.png")
    assert (found[:, :10] == 255).all()
    assert np.array_equal(found[:, 10:], np.asarray(image.convert("RGB"))[:, 10:])


def test_palettes(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(reload(image, tmp_path / "a.png"), np.asarray(image.convert("RGB")))
    found = reload(image, tmp_path / "b.png", transparency=3)
    indices = np.asarray(image)
    assert (found[indices == 3] == 255).all()
    assert np.array_equal(found[indices != 3], np.asarray(image.convert("RGB"))[indices != 3])


def test_cmyk(tmp_path):
    image = Image.fromarray(RGB).resize((60, 40)).convert("CMYK")
    assert reload(image, tmp_path / "a.jpg", quality=95).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_upper_8(tmp_path, suffix):
    values = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    found = reload(Image.fromarray(values), tmp_path / f"a.{suffix}")
    assert np.array_equal(found[..., 1], (values >> 8).astype(np.uint8))


def test_32_bit_integers_only_in_the_range_of_16(tmp_path):
    values = RNG.integers(0, 65536, (20, 30), dtype=np.int32)
    found = reload(Image.fromarray(values), tmp_path / "a.tif")
    assert np.array_equal(found[..., 1], (values >> 8).astype(np.uint8))
    with pytest.raises(ImageError, match=r"b\.tif.*0\.\.65535"):
        reload(Image.fromarray(values + 70000), tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"c\.tif.*float"):
        reload(Image.fromarray(values.astype(np.float32)), tmp_path / "c.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    turns |= {4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE}
    turns |= {
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    wanted = Image.fromarray(RGB)
    if orientation in turns:
        wanted = wanted.transpose(turns[orientation])
    assert np.array_equal(
        reload(Image.fromarray(RGB), tmp_path / "a.png", exif=exif), np.asarray(wanted)
    )


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(RGB).quantize(8), Image.new("P", (30, 20))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (
        np.abs(load_image(tmp_path / "a.gif").astype(int) - np.asarray(frames[0].convert("RGB"))).max()
        < 2
    )


def test_a_pil_image_is_taken_as_it_is_seen():
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    assert np.array_equal(load_image(image), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0, 0.02, 0.5])
def test_truncated_files_are_named(tmp_path, suffix, kept):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        load_image(path)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello" * 100)
    with pytest.raises(ImageError, match=r"text\.png: not an image"):
        load_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match="directory"):
        load_image(tmp_path)


@pytest.mark.parametrize("side", [11_000, 14_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path, side):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(10_000))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    "bad",
    [
        RGB.astype(np.float32),
        RGB[..., 0],
        RGB[..., :2],
        RGB[:0],
        RGB[None],
        RGB.tolist(),
        None,
        np.lib.stride_tricks.as_strided(RGB, (20_000, 20_000, 3), (0, 0, 1)),
    ],
)
def test_arrays_that_are_no_pixels(bad):
    with pytest.raises(ImageError, match="image"):
        check_pixels(bad)
    assert 6000 * 4000 < MAX_PIXELS < 20_000**2


def reference(image, size):
    """``ResizeLongestSide.apply_image`` and ``Sam.preprocess``, restated."""
    scale = size / max(image.shape[:2])
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    x = (x - torch.tensor(PIXEL_MEAN).view(-1, 1, 1)) / torch.tensor(PIXEL_STD).view(-1, 1, 1)
    return F.pad(x, (0, size - width, 0, size - height)).numpy()


@pytest.mark.parametrize("shape", [(300, 451), (768, 512), (64, 64), (4000, 6000), (3, 200)])
@pytest.mark.parametrize("size", [256, 1024])
def test_preprocess_equals_the_reference(shape, size):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = preprocess(image, size)
    assert found.dtype == np.float32
    assert np.array_equal(found, reference(image, size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 256, 1024]))
def test_resized_shape(height, width, size):
    new_height, new_width = resized_shape(height, width, size)
    assert max(new_height, new_width) == size
    assert new_height == max(1, int(height * (size / max(height, width)) + 0.5))
    assert new_width == max(1, int(width * (size / max(height, width)) + 0.5))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 128]))
def test_preprocess_of_any_size(height, width, size):
    image = np.full((height, width, 3), 200, np.uint8)
    found = preprocess(image, size)
    new_height, new_width = resized_shape(height, width, size)
    assert found.shape == (1, 3, size, size)
    assert (found[..., :new_height, :new_width] > 1).all()
    assert not found[..., new_height:, :].any()
    assert not found[..., new_width:].any()
