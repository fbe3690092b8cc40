"""What is damaged: a function per kind takes one seeded damage to the product.

Each returns, which is a result, or raises. ``PocketSamError`` is what a user should see; anything else
is a fault.
"""

import argparse
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import tiny_bundle
from fuzz_damage import (
    HOSTILE,
    NUMBERS,
    WILD,
    damage_array,
    damage_bytes,
    damage_graph,
    damage_json,
    damaged_npz,
)
from PIL import Image

from pocketsam.errors import PocketSamError
from pocketsam.images import load_image
from pocketsam.runtime import Segmenter
from pocketsam.runtime.commands.info import run_info
from pocketsam.runtime.everything.generator import MaskGenerator
from pocketsam.runtime.everything.grid import ORDERS, OUTPUT_MODES, Parameters
from pocketsam.runtime.prompts import read_prompt_file
from pocketsam.runtime.verification.golden import check_golden, raise_if_failed

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


@cache
def sound(folder: Path) -> Path:
    """Returns a bundle without damage."""
    return tiny_bundle.write_tiny(folder / "sound")


@cache
def segmenter(folder: Path) -> Segmenter:
    """Returns its segmenter, with an image."""
    opened = Segmenter(sound(folder), threads=1)
    opened.set_image(PICTURE)
    return opened


def _files(folder: Path) -> dict[str, bytes]:
    return {part: (sound(folder) / name).read_bytes() for part, name in tiny_bundle.FILES.items()}


def _use(bundle: Path, random: Random) -> None:
    """Does with a bundle what users do."""
    what = random.randrange(3)
    if what == 0:
        run_info(argparse.Namespace(bundle=str(bundle), json=random.random() < 0.5))
    elif what == 1:
        raise_if_failed(check_golden(bundle, threads=1))
    else:
        opened = Segmenter(bundle, threads=1)
        opened.set_image(PICTURE)
        masks, _, _ = opened.predict([[20, 20]], [1])
        assert masks.shape == (3, 40, 60)
        opened.predict_above([[[20, 20]], [[9, 9]]], [[1], [1]], -1.0)


def fuzz_manifest(random: Random, folder: Path) -> None:
    """Manifests: fields, and bytes."""
    manifest = json.loads((sound(folder) / "manifest.json").read_text())
    text = json.dumps(damage_json(random, manifest)).encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        text = damage_bytes(random, (sound(folder) / "manifest.json").read_bytes())
    bundle = folder / "manifest"
    tiny_bundle.write(bundle, manifest={p: {} for p in tiny_bundle.FILES}, **_files(folder))
    (bundle / "manifest.json").write_bytes(text)
    _use(bundle, random)


def fuzz_onnx(random: Random, folder: Path) -> None:
    """ONNX files: bytes, nodes, weights and shapes."""
    files, part = _files(folder), random.choice(("encoder", "decoder"))
    if random.random() < 0.4:
        files[part] = damage_bytes(random, files[part])
    else:
        model = onnx.ModelProto.FromString(files[part])
        for _ in range(random.choice((1, 1, 2))):
            damage_graph(random, model.graph)
        files[part] = model.SerializeToString()
    manifest = json.loads((sound(folder) / "manifest.json").read_text())
    _use(tiny_bundle.write(folder / "onnx", manifest, **files), random)


def fuzz_golden(random: Random, folder: Path) -> None:
    """Golden vectors whose hashes are right."""
    with np.load(sound(folder) / "golden.npz") as file:
        data = damaged_npz(random, dict(file))
    manifest = json.loads((sound(folder) / "manifest.json").read_text())
    bundle = tiny_bundle.write(folder / "golden", manifest, **(_files(folder) | {"golden": data}))
    raise_if_failed(check_golden(bundle, threads=1))


def fuzz_embedding(random: Random, folder: Path) -> None:
    """Files of embeddings; what was set before stays."""
    opened, path = segmenter(folder), folder / "embedding.npz"
    opened.embedding().save(path)
    with np.load(path) as file:
        path.write_bytes(damaged_npz(random, dict(file)))
    try:
        opened.set_embedding(path, PICTURE if random.random() < 0.3 else None)
        opened.predict([[0, 0]], [1])
    except PocketSamError:
        assert opened.original_size == (40, 60)
        raise
    finally:
        opened.set_image(PICTURE)


FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")


@cache
def pictures() -> list[bytes]:
    """Returns files of all formats and some modes."""
    found = []
    for mode in ("RGB", "L", "P", "RGBA", "1", "CMYK", "I", "F", "LA"):
        for name in FORMATS:
            stream = io.BytesIO()
            try:
                Image.fromarray(PICTURE).convert(mode).save(stream, name)
            except (OSError, KeyError, ValueError):
                continue
            found.append(stream.getvalue())
    return found


def fuzz_image(random: Random, folder: Path) -> None:
    """Pictures, as files."""
    path = folder / f"picture.{random.choice(('png', 'jpg', 'tif', 'x'))}"
    path.write_bytes(damage_bytes(random, random.choice(pictures())))
    pixels = load_image(path)
    segmenter(folder).set_image(pixels)
    segmenter(folder).set_image(PICTURE)


def _values(random: Random, shape: tuple[int, ...]) -> Any:
    sizes = [max(0, size + random.choice((*[0] * 20, 1, -1))) for size in shape]
    count = int(np.prod(sizes))
    whole = np.array(random.choices((5, 20, 39, 1, 0, 2, 3, -1), k=count), float).reshape(sizes)
    choice = random.randrange(20)
    if choice == 0:
        return random.choice(HOSTILE)
    if choice == 1:
        return damage_array(random, whole)
    if choice == 2 and whole.size:
        whole.flat[0] = random.choice(NUMBERS[:16] + WILD[:5])
    return whole.tolist() if choice == 3 else whole


def fuzz_prompt(random: Random, folder: Path) -> None:
    """Prompts, as arrays and as files."""
    opened = segmenter(folder)
    batch, count = random.choice((1, 2, 9)), random.choice((1, 2, 5))
    low = tiny_bundle.LOW
    shapes: list[tuple[int, ...]] = [(count, 2), (count,), (4,), (1, low, low)]
    kind = random.randrange(4)
    if kind:
        shapes = [(batch, *shape) for shape in shapes]
    with_points, with_box, with_mask = (random.random() < share for share in (0.7, 0.5, 0.3))
    used = (with_points, with_points or random.random() < 0.05, with_box, with_mask)
    given = [_values(random, shape) if use else None for shape, use in zip(shapes, used, strict=True)]
    if kind == 0:
        opened.predict(*given, multimask_output=random.random() < 0.5)
    elif kind == 1:
        opened.predict_batch(*given, return_logits=random.random() < 0.5)
    elif kind == 2:
        opened.predict_above(given[0], given[1], random.choice((0.0, 0.5, 2, float("nan"))))
    else:
        point = {"type": "point", "data": [5, 6], "label": 1}
        good = [point, {"type": "rectangle", "data": [1, 2, 3, 4]}]
        text = json.dumps(damage_json(random, good)).encode("utf-8", "surrogatepass")
        text = damage_bytes(random, text) if random.random() < 0.3 else text
        (folder / "prompts.json").write_bytes(text)
        read_prompt_file(folder / "prompts.json")


def fuzz_everything(random: Random, folder: Path) -> None:
    """Parameters of ``everything``."""
    names = list(Parameters.__dataclass_fields__)
    given: dict[str, Any] = {"points_per_side": 2, "time_budget": 0.05}
    grids: Any = [[[0.5, 0.5]], [[0.5, 0.5], [0.5]], "x", 5, np.full((1, 2), 0.5), np.zeros((0, 2))]
    for name in random.sample(names, random.choice((1, 1, 2, 4))):
        small: tuple[Any, ...] = (0, 1, 2, 3, 0.0, 0.5, 1.0)
        small = {"order": ORDERS, "output_mode": OUTPUT_MODES}.get(name, small)
        given[name] = random.choice(small if random.random() < 0.8 else HOSTILE)
        if name == "point_grids":
            given |= {"points_per_side": None, name: random.sample(grids, random.randrange(3))}
    if given["time_budget"] != 0.05:
        given |= {"points_per_side": 2}
    MaskGenerator(segmenter(folder), **given).generate(PICTURE)


KINDS: dict[str, Callable[[Random, Path], None]] = {
    "manifest": fuzz_manifest,
    "onnx": fuzz_onnx,
    "golden": fuzz_golden,
    "embedding": fuzz_embedding,
    "image": fuzz_image,
    "prompt": fuzz_prompt,
    "everything": fuzz_everything,
}
