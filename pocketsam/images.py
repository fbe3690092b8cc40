"""Reads image files: which ones a folder holds, and their pixels. Training and the runtime share it."""

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pocketsam.errors import ImageError

Pixels = NDArray[np.uint8]
"""``[H, W, 3]`` RGB."""
StrPath = str | os.PathLike[str]
Window = tuple[float, float]
"""Values of a 16-bit image that become black and white."""

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl"),
)
"""Of the files that count as images in a folder; Pillow may be unable to read some."""
MAX_PIXELS = 100_000_000
"""Images with more pixels are refused: their masks would not fit in a small device's memory."""
MAX_SIDE = 100_000
"""Images with a longer side are refused: so would the matrices that scale masks to it."""
_DARK = 8192
"""A 16-bit image whose largest value is below this looks black without a window."""
_STRIP = 4_000_000
"""Pixels that are laid over white together."""
_ORIENTATION = 0x0112
"""EXIF's tag."""


def list_folder(folder: Path, *, deep: bool = False) -> tuple[list[Path], list[str]]:
    """Returns the image files of a folder, sorted, and a line for each that cannot be taken.

    Hidden files are passed over, macOS' ``._`` companions among them.

    Args:
        folder: the directory.
        deep: whether folders inside are searched as well.

    Raises:
        ImageError: the folder is missing or cannot be read, or holds no image.
    """
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images, skipped, seen = [], [], 0
    try:
        for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
            suffix = path.suffix.lower()
            if suffix not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            seen += 1
            if not path.is_file():
                skipped.append(f"{path}: not a file")
            elif suffix not in readable:
                skipped.append(f"{path}: Pillow cannot read {suffix} here; convert it to .jpg or .png")
            else:
                images.append(path)
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}") from None
    if not images:
        why = f"{seen} that cannot be read: {skipped[0]}" if seen else ", ".join(IMAGE_SUFFIXES)
        inside = "" if deep else describe_inside(folder)
        why = "; ".join(part for part in (why, inside) if part)
        raise ImageError(f"{folder}: a folder without images ({why})")
    return images, skipped


def describe_inside(folder: Path) -> str:
    """Returns that the folders inside a folder are not searched, and how many; "" without any."""
    names = [
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.suffix.lower() not in IMAGE_SUFFIXES
    ]
    if not names:
        return ""
    return (
        f"{len(names)} folder{'s are' if len(names) > 1 else ' is'} not searched, such as {min(names)}"
    )


def find_images(path: StrPath) -> list[Path]:
    """Returns the image files in a folder, sorted by name; of anything else, the path itself.

    Raises:
        ImageError: a folder without images, or one that cannot be read.
    """
    folder = Path(path)
    return list_folder(folder)[0] if folder.is_dir() else [folder]


def load_image(source: StrPath | Image.Image, *, window: Window | None = None) -> Pixels:
    """Returns a file's (or a PIL image's) pixels as RGB, the way a viewer shows them.

    EXIF rotation is applied. Grayscale, palette and CMYK images are converted. Transparent pixels are
    laid over white. Of an animation, the first frame.

    Args:
        source: the file or the image.
        window: of an image with 16 bits, the values that become black and white; None: 0 and 65535. A
            camera of 12 bits needs (0, 4095). Other images are read as they are, of 16-bit colours the
            upper 8 bits.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        ImageError: missing, not an image, truncated, too large (``check_size``), or of float pixels.

    Warns:
        UserWarning: 16-bit pixels that are nearly black without a window, or a window for colours.
    """
    if window is not None and not -math.inf < window[0] < window[1] < math.inf:
        raise ImageError(f"window must be (low, high), finite, with low < high, not {window}")
    name = "image" if isinstance(source, Image.Image) else os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, name, window)
        if not Path(name).is_file() and Path(name).exists():
            what = "a directory" if Path(name).is_dir() else "not a regular file"
            raise ImageError(f"{name}: {what}, and no image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS limits them
            # given a path, Pillow maps raw pixels into memory, and rotated ones with the wrong width
            with Path(name).open("rb") as stream, Image.open(stream) as image:
                return _to_rgb(image, name, window)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # Pillow's plugins raise whatever damage makes their format raise
        raise ImageError(f"{name}: cannot be read: {error}") from None


def _to_rgb(image: Image.Image, name: str, window: Window | None) -> Pixels:
    width, height = image.size
    check_size(height, width, name)
    has_upper_bits = image.mode.startswith(("RGB", "LA")) and ";16" in str(getattr(image, "tile", ""))
    if image.mode == "F":
        raise ImageError(f"{name}: float pixels have no agreed range; convert to 8 or 16 bits first")
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _to_8_bits(image, name, window)
    if image.has_transparency_data:
        pixels = np.concatenate(list(_over_white(image)))
    else:
        pixels = np.array(image.convert("RGB"))
    if has_upper_bits and (window is not None or 0 < pixels.max() < _DARK >> 8):
        text = (
            f"{name}: of 16-bit colours the upper 8 bits are read, without a window; convert to 8 bits"
        )
        warnings.warn(text, stacklevel=2)
    return pixels


def _orientation(image: Image.Image) -> int:
    """Returns what EXIF says of an image's rotation; 1, none, where its EXIF is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises what it happens to run into
        return 1


def _over_white(image: Image.Image) -> Iterator[Pixels]:
    """Yields strips of an image with transparency, laid over white."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        yield np.asarray(Image.alpha_composite(white, strip).convert("RGB"))


def check_size(height: int, width: int, name: str) -> None:
    """Raises ImageError, with the name, unless an image of this size in pixels can be used."""
    if height < 1 or width < 1:
        raise ImageError(f"{name}: an image without pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels, a side longer than {MAX_SIDE:,}")


def _to_8_bits(image: Image.Image, name: str, window: Window | None) -> Image.Image:
    """Returns 8 of 16 bits, the upper ones or a window; a transparent value becomes white."""
    values = np.asarray(image)
    largest = int(values.max())
    if values.min() < 0 or largest > 65535:
        raise ImageError(f"{name}: integer pixels outside 0..65535")
    if window is None:
        small = (values >> 8).astype(np.uint8)
        if 0 < largest < _DARK:
            text = (
                f"{name}: 16-bit pixels of at most {largest} look black; give a window (0, {largest})"
            )
            warnings.warn(text, stacklevel=2)
    else:
        low, high = window
        scaled = (values.astype(np.float32) - low) * (255 / (high - low))
        small = scaled.round().clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        small[values == transparent] = 255
    return Image.fromarray(small)
