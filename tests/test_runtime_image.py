import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pocketsam import images as image_module
from pocketsam.constants import PIXEL_MEAN, PIXEL_STD, resized_shape
from pocketsam.errors import ImageError
from pocketsam.images import MAX_PIXELS, MAX_SIDE, find_images, list_folder, load_image
from pocketsam.runtime.image import as_pixels, check_pixels, preprocess

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
    colours = np.array([[255, 0, 0], [0, 255, 0], [30, 60, 200], [255, 255, 255]], np.uint8)
    wanted = colours.repeat(16, axis=0)[None].repeat(16, axis=0)
    image = Image.fromarray(wanted).convert("CMYK")
    found = reload(image, tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(found.astype(int) - wanted).max() <= 4


def test_half_transparent_pixels_mix_with_white(tmp_path):
    image = Image.new("RGBA", (5, 4), (200, 0, 100, 51))
    assert np.abs(reload(image, tmp_path / "a.png") - np.array([244, 204, 224])).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_transparent_colour_is_laid_over_white(tmp_path, mode):
    """PNG's tRNS chunk: one colour of an image without alpha means transparent."""
    values = np.full((4, 5), 77, np.uint16 if mode == "I;16" else np.uint8)
    values[0, 0] = 0
    image = Image.fromarray(values).convert(mode) if mode != "I;16" else Image.fromarray(values * 256)
    assert image.mode == mode
    found = reload(image, tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert found[0, 0].tolist() == [255] * 3
    assert found[1, 1].tolist() == [255 if mode == "1" else 77] * 3


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


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.webp", "gray.jpg", "alpha.png", "deep.png"])
def test_orientation_turns_the_stored_pixels(tmp_path, orientation, name):
    image = Image.fromarray(RGB)
    if name == "alpha.png":
        image.putalpha(Image.fromarray(RGB[..., 2]))
    elif name != f"a{name[1:]}":
        image = Image.fromarray(RGB[..., 0] * (np.uint16(256) if name == "deep.png" else np.uint8(1)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = reload(image, tmp_path / f"stored-{name}")
    found = reload(image, tmp_path / name, exif=exif)
    assert found.shape == ((30, 20, 3) if orientation > 4 else (20, 30, 3))
    assert np.array_equal(found, TURNED[orientation](stored))


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


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_other_frames_do_not_matter(tmp_path, name):
    frames = [Image.fromarray(RGB).quantize(8).convert("RGB"), Image.new("RGB", (30, 20), "red")]
    found = reload(
        frames[0], tmp_path / name, save_all=True, append_images=frames[1:], lossless=True, duration=50
    )
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 2
    assert np.array_equal(found, np.asarray(frames[0]))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "CMYK", "PA", "RGBa", "RGBX", "I;16B", "I"])
def test_a_pil_image_of_any_mode(mode):
    assert load_image(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_a_pil_image_of_floats_is_refused():
    with pytest.raises(ImageError, match="float pixels"):
        load_image(Image.new("F", (3, 2)))


def test_an_empty_pil_image_of_integers_is_refused():
    with pytest.raises(ImageError):
        load_image(Image.new("I", (0, 5)))


def test_a_pil_image_whose_file_is_damaged(tmp_path):
    """Pillow reads pixels only when they are wanted: the damage shows in load_image."""
    path = tmp_path / "cut.png"
    Image.fromarray(RGB).resize((300, 200)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ImageError, match="truncated"):
        load_image(image)


def test_the_callers_image_is_left_as_it_was():
    image = Image.fromarray(RGB)
    load_image(image)[:] = 0
    assert np.array_equal(np.asarray(image), RGB)
    assert image.mode == "RGB"


def test_a_pil_image_is_taken_as_it_is_seen():
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    assert np.array_equal(load_image(image), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_raw_pixels_are_rotated(tmp_path, mode, orientation):
    """Pillow maps those of a path into memory, with the wrong width."""
    gray = np.random.default_rng(0).integers(0, 255, (30, 20), np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = reload(image if mode == "I;16" else image.convert(mode), tmp_path / "a.tif", exif=exif)
    wanted = np.rot90(gray, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert np.array_equal(found[..., 0], wanted)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_damaged_exif_does_not_hide_the_pixels(tmp_path, suffix):
    image = Image.fromarray(RGB)
    found = reload(image, tmp_path / f"a.{suffix}", exif=b"Exif\x00\x00garbage", lossless=True)
    assert np.array_equal(found, RGB)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0, 0.02, 0.5])
def test_truncated_files_are_named(tmp_path, suffix, kept):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        load_image(path)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("a.dds", b" \x00\x00\x00\x40\x00", b" \x00\x00\x00\x00\x20"),  # the pixel format's flags
        ("a.im", b"30*20", b"3.*20"),
        ("a.bmp", b"BM", b"BX"),
        ("a.jpg", b"\xff\xda", b"\xff\xd9"),
        ("a.png", b"IHDR", b"IHDX"),
    ],
    ids=["dds", "im", "bmp", "jpg", "png"],
)
def test_damaged_headers_are_named(tmp_path, name, good, bad):
    """Pillow's plugins answer to damage with NotImplementedError and TypeError too."""
    path = tmp_path / name
    Image.fromarray(RGB).save(path)
    data = path.read_bytes()
    assert good in data
    path.write_bytes(data.replace(good, bad, 1))
    with pytest.raises(ImageError, match=name):
        load_image(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged EXIF
def test_flipped_bytes_give_pixels_or_one_error(tmp_path_factory, kind, changes):
    path = tmp_path_factory.getbasetemp() / "flipped.bin"
    exif = Image.Exif()
    exif[0x0112] = 6
    with path.open("wb") as file:
        Image.fromarray(RGB).save(file, kind, exif=exif)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_module, "MAX_PIXELS", 100_000)  # a flipped size may ask for gigabytes
        try:
            found = load_image(path)
        except ImageError as error:
            found = error
    if isinstance(found, ImageError):
        assert "flipped.bin" in str(found)
    else:
        assert found.dtype == np.uint8
        assert found.shape[2:] == (3,)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello" * 100)
    with pytest.raises(ImageError, match=r"text\.png: not an image"):
        load_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match="directory"):
        load_image(tmp_path)


def bomb(path, width, height):
    """A PNG of a few bytes that claims to be of this size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(10_000))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("width", "height", "says"),
    [
        (10_001, 10_000, "10001x10000 pixels, more than 100,000,000"),
        (11_000, 11_000, "11000x11000"),
        (14_000, 14_000, "196000000 pixels"),
        (20_000, 20_000, "400000000 pixels"),
        (60_000, 60_000, "3600000000 pixels"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path, width, height, says):
    with pytest.raises(ImageError, match=rf"bomb\.png: .*{says}"):
        load_image(bomb(tmp_path / "bomb.png", width, height))


LIMITED = """
import resource, sys
from pocketsam.errors import ImageError
from pocketsam.images import load_image
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        load_image(path)
    except ImageError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits the address space")
def test_a_decompression_bomb_needs_no_memory(tmp_path):
    sides = {"a.png": (20_000, 20_000), "b.png": (10_001, 10_000), "c.png": (13_000, 13_000)}
    paths = [bomb(tmp_path / name, *size) for name, size in sides.items()]
    command = [sys.executable, "-c", LIMITED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [str(path) for path in paths]


def test_the_limit_is_the_largest_image_taken(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(image_module, "MAX_PIXELS", 600)
    assert load_image(tmp_path / "a.png").shape == (20, 30, 3)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 599)
    with pytest.raises(ImageError, match=r"a\.png: 30x20 pixels, more than 599"):
        load_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="30x20 pixels, more than 599"):
        load_image(Image.fromarray(RGB))
    with pytest.raises(ImageError, match="image: 30x20 pixels, more than 599"):
        check_pixels(RGB)


def test_an_image_that_is_far_too_long(tmp_path):
    """Few pixels, but a matrix of gigabytes to scale masks to them."""
    long = np.lib.stride_tricks.as_strided(RGB, (1, MAX_SIDE + 1, 3), (0, 0, 1))
    with pytest.raises(ImageError, match="image: 100001x1 pixels, a side longer than 100,000"):
        check_pixels(long)
    Image.fromarray(long).save(tmp_path / "long.png")
    with pytest.raises(ImageError, match=r"long\.png: 100001x1 pixels, a side longer"):
        load_image(tmp_path / "long.png")
    assert check_pixels(long[:, :MAX_SIDE]).shape == (1, MAX_SIDE, 3)


def test_pillows_own_smaller_limit_does_not_warn(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(tmp_path / "a.png"):
        pass
    assert np.array_equal(load_image(tmp_path / "a.png"), RGB)


def test_good_pixels_come_back_as_they_are():
    assert check_pixels(RGB) is RGB
    largest = np.lib.stride_tricks.as_strided(RGB, (MAX_PIXELS // 10_000, 10_000, 3), (0, 0, 1))
    assert check_pixels(largest) is largest


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
    """``ResizeLongestSide.apply_image`` and ``Sam.preprocess``, restated; but no side is ever 0."""
    scale = size / max(image.shape[:2])
    height, width = (max(1, int(side * scale + 0.5)) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    x = (x - torch.tensor(PIXEL_MEAN).view(-1, 1, 1)) / torch.tensor(PIXEL_STD).view(-1, 1, 1)
    return F.pad(x, (0, size - width, 0, size - height)).numpy()


SHAPES = [(300, 451), (768, 512), (64, 64), (4000, 6000), (3, 200), (1, 1), (10000, 1), (1, 10000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [256, 1024])
def test_preprocess_equals_the_reference(shape, size):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = preprocess(image, size)
    assert found.dtype == np.float32
    assert np.array_equal(found, reference(image, size))
    assert found.flags.c_contiguous


def test_preprocess_of_views_that_cannot_be_written():
    view = np.broadcast_to(RGB[:1, ::-1, ::-1], (40, 30, 3))
    assert np.array_equal(preprocess(view, 64), reference(np.ascontiguousarray(view), 64))


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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 256]), st.integers(0, 2**32 - 1))
def test_preprocess_of_any_pixels_equals_the_reference(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = preprocess(image, size)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.array_equal(found, reference(image, size))


def test_a_window_of_16_bits(tmp_path):
    """A camera of 12 bits fills a sixteenth of the range."""
    values = np.array([[0, 100, 2048, 4095, 4096]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", window=(0, 4095))[0, :, 0].tolist() == [0, 6, 128, 255, 255]
    assert load_image(tmp_path / "a.png", window=(100, 101))[0, :, 0].tolist() == [0, 0, 255, 255, 255]
    with pytest.warns(UserWarning, match=r"16-bit pixels of at most 4096 .* window \(0, 4096\)"):
        assert load_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 8, 15, 16]
    for wrong in ((5, 5), (9, 2), (0, float("nan")), (0, float("inf"))):
        with pytest.raises(ImageError, match="low < high"):
            load_image(tmp_path / "a.png", window=wrong)
    assert np.array_equal(load_image(Image.fromarray(RGB), window=(0, 9)), RGB)


def test_16_bit_colours_say_that_no_window_applies(tmp_path):
    """Pillow reads the upper 8 bits: of a camera of 12 bits, nearly nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for scale, window, says in ((257, None, False), (257, (0, 4095), True), (16, None, True)):
        rows = b"".join(b"\0" + (row.astype(np.uint16) * scale).astype(">u2").tobytes() for row in RGB)
        head = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 16, 2, 0, 0, 0)
        parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = load_image(tmp_path / "a.png", window=window)
        assert np.array_equal(found, RGB if scale == 257 else RGB >> 4)
        assert any("the upper 8 bits are read" in str(each.message) for each in said) == says


def test_subclasses_of_arrays_are_their_pixels():
    """With a new axis, NumPy's own matrix class corrupted the memory."""
    grey = RGB[..., 0].copy()
    for image in (grey.view(np.matrix), np.ma.array(grey)):
        assert type(found := as_pixels(image, "GRAY")) is np.ndarray
        assert np.array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    with pytest.raises(ImageError, match="image_format must be one of"):
        as_pixels(RGB, ["RGB"])


def test_arrays_of_every_format():
    bgra = np.dstack([RGB[..., ::-1], np.full(RGB.shape[:2], 255, np.uint8)])
    bgra[:5, :, 3] = 0
    over_white = RGB.copy()
    over_white[:5] = 255
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    for image, kind, wanted in (
        (RGB[..., ::-1], "BGR", RGB),
        (bgra, "BGRA", over_white),
        (bgra[..., [2, 1, 0, 3]], "RGBA", over_white),
        (RGB[..., 0], "GRAY", grey),
        (RGB[..., :1], "GRAY", grey),
    ):
        assert np.array_equal(as_pixels(image, kind), wanted), kind
        if kind != "BGR":
            with pytest.raises(ImageError, match=f"say image_format='.*{kind}'"):
                as_pixels(image)
    for image, kind, says in (
        (RGB, "RGBA", r"RGBA has the shape \[H, W, 4\], not \[20, 30, 3\]"),
        (RGB, "HSV", "one of RGB, BGR, RGBA, BGRA, GRAY, not 'HSV'"),
        (RGB / 255, "RGB", r"not float64; .*\* 255\)\.astype"),
        (RGB.astype(np.int64), "BGRA", "not int64; convert it first"),
        (RGB[..., :2], "RGB", r"not \[20, 30, 2\]$"),
        (np.zeros((0, 5, 4), np.uint8), "RGBA", "has the shape"),
    ):
        with pytest.raises(ImageError, match=says):
            as_pixels(image, kind)


def test_images_of_a_folder(tmp_path):
    for name in ("b.png", "a.JFIF", "c.gif", "._b.png", ".hidden.png"):
        Image.fromarray(RGB).save(tmp_path / name, "GIF")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "d.heic").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    images, skipped = list_folder(tmp_path)
    assert [path.name for path in images] == ["a.JFIF", "b.png", "c.gif"]
    assert skipped == [
        f"{tmp_path / 'd.heic'}: Pillow cannot read .heic here; convert it to .jpg or .png",
        f"{tmp_path / 'x.png'}: not a file",
    ]
    assert find_images(tmp_path) == images
    for path in images:
        path.unlink()
    with pytest.raises(ImageError, match=r"without images .*2 that cannot be read: .*heic"):
        find_images(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a file"):
        find_images(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(("mode", "megabytes"), [("I;16", 1100), ("RGBA", 1300), ("P", 900)])
def test_the_memory_of_a_large_picture(tmp_path, mode, megabytes):
    """Eighty megapixels of 16-bit grey or of transparency, in a process of its own."""
    options = {"transparency": 0} if mode == "P" else {}
    Image.new(mode, (10_000, 8_000)).save(tmp_path / "a.png", compress_level=1, **options)
    code = LIMITED.replace("100 * 2**20", f"{megabytes} * 2**20").replace("print(error)", "raise")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=False)
    assert done.returncode == 0
