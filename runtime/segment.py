"""``pocketsam segment``: objects cut out of one image, as a mask, a picture or JSON."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam.errors import PocketSamError
from pocketsam.runtime import terminal
from pocketsam.runtime.image import load_image
from pocketsam.runtime.masks import mask_box, to_rle
from pocketsam.runtime.overlay import draw_overlay, label_map
from pocketsam.runtime.prompts import read_prompt_file
from pocketsam.runtime.segmenter import Segmenter

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]
PICTURES = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Found:
    """One object: its prompt, its mask ``[H, W]`` and the score that the model gives it."""

    points: list[Point]
    boxes: list[Box]
    mask: NDArray[np.bool_]
    score: float


def add_segment(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "segment",
        help="cut objects out of an image",
        description="Points describe one object, together with a box if one is given. Several boxes "
        "and no points are one object each.",
    )
    parser.add_argument("bundle", help="directory that `pocketsam export` wrote")
    parser.add_argument("image")
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        type=parse_point,
        metavar="X,Y[,LABEL]",
        help="pixel on the object; label 0: not on it",
    )
    parser.add_argument("--box", action="append", default=[], type=parse_box, metavar="X0,Y0,X1,Y1")
    parser.add_argument(
        "--prompts", metavar="FILE.json", help="points and rectangles, as samexporter's"
    )
    parser.add_argument(
        "--output",
        action="append",
        required=True,
        metavar="OUT",
        help="mask (.png), picture (.jpg, .webp), JSON (.json), or a directory for all; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON to stdout, too")
    terminal.add_device_options(parser)
    parser.set_defaults(run=run_segment)


def _numbers(text: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise argparse.ArgumentTypeError(f"{text!r}: wants {' or '.join(map(str, counts))} numbers")
    return values


def parse_point(text: str) -> Point:
    """``X,Y`` or ``X,Y,LABEL``."""
    x, y, *label = _numbers(text, (2, 3))
    if label and label[0] not in (0, 1):
        raise argparse.ArgumentTypeError(f"{text!r}: the label must be 1 (object) or 0 (background)")
    return x, y, int(label[0]) if label else 1


def parse_box(text: str) -> Box:
    """``X0,Y0,X1,Y1``."""
    x0, y0, x1, y1 = _numbers(text, (4,))
    return x0, y0, x1, y1


def run_segment(args: argparse.Namespace) -> None:
    """Runs the command."""
    points, boxes = list(args.point), list(args.box)
    if args.prompts:
        more_points, more_boxes = read_prompt_file(args.prompts)
        points, boxes = points + more_points, boxes + more_boxes
    if not points and not boxes:
        raise PocketSamError("nothing to segment: give --point, --box or --prompts")
    if points and len(boxes) > 1:
        raise PocketSamError("points and several boxes: which box the points belong to is not clear")
    writers = [(Path(name), _writer(Path(name))) for name in args.output]

    image = load_image(args.image)
    segmenter = Segmenter(args.bundle, terminal.providers(args), args.threads)
    if not segmenter.manifest.get("model", {}).get("trained", True):
        terminal.say("note: this bundle holds untrained weights; its masks mean nothing")
    segmenter.set_image(image)
    found = find_objects(segmenter, points, boxes)
    record = to_record(args.image, segmenter, found)
    for path, write in writers:
        write(path, image, found, record)
    if args.json:
        terminal.print_json(record)
        return
    for number, (one, entry) in enumerate(zip(found, record["masks"], strict=True), start=1):
        print(f"object {number}: score {one.score:.3f}, {entry['area']} pixels, box {entry['bbox']}")
    for path, _ in writers:
        print(f"wrote {path}")


def find_objects(segmenter: Segmenter, points: list[Point], boxes: list[Box]) -> list[Found]:
    """One object for all points (and at most one box), or one for each box."""
    if points:
        prompts = [(points, boxes)]
        coords = np.array([[point[:2] for point in points]], np.float32)
        labels = np.array([[point[2] for point in points]], np.float32)
        batch: dict[str, Any] = {"point_coords": coords, "point_labels": labels}
        if boxes:
            batch["boxes"] = boxes
        tokens = len(points) + (2 if boxes else 1)
    else:
        prompts = [([], [box]) for box in boxes]
        batch, tokens = {"boxes": boxes}, 2
    # The reference's rule (SamOnnxModel.select_masks): a single click or box is ambiguous and gets the
    # best of three masks; a longer prompt gets the mask made for it.
    masks, scores, _ = segmenter.predict_batch(**batch, multimask_output=tokens < 3)
    best = scores.argmax(axis=1)
    return [
        Found(*prompt, masks[i, best[i]], float(scores[i, best[i]])) for i, prompt in enumerate(prompts)
    ]


def to_record(image: str, segmenter: Segmenter, found: list[Found]) -> dict[str, Any]:
    """What ``--json`` and ``.json`` files hold; masks as in COCO: RLE, XYWH boxes, pixel areas."""
    return {
        "image": image,
        "size": list(segmenter.original_size),
        "image_size": segmenter.image_size,
        "checkpoint_sha256": segmenter.manifest.get("model", {}).get("checkpoint_sha256"),
        "masks": [
            {
                "segmentation": to_rle(one.mask),
                "bbox": mask_box(one.mask),
                "area": int(one.mask.sum()),
                "predicted_iou": one.score,
                "point_coords": [list(point[:2]) for point in one.points],
                "point_labels": [point[2] for point in one.points],
                "boxes": [list(box) for box in one.boxes],
            }
            for one in found
        ],
    }


Writer = Callable[[Path, NDArray[np.uint8], list[Found], dict[str, Any]], None]


def _writer(path: Path) -> Writer:
    """Chooses by suffix, before any work is done, so that a bad name costs nothing."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        return _write_mask
    if suffix == ".json":
        return _write_json
    if suffix in PICTURES:
        return _write_overlay
    if not suffix or path.is_dir():
        return _write_all
    raise PocketSamError(
        f"{path}: unknown suffix {suffix!r}; known are .png, .json, {', '.join(PICTURES)}"
    )


def _write_mask(path: Path, _: NDArray[np.uint8], found: list[Found], __: dict[str, Any]) -> None:
    _atomically(path, lambda work: label_map([one.mask for one in found]).save(work))


def _write_overlay(path: Path, image: NDArray[np.uint8], found: list[Found], _: dict[str, Any]) -> None:
    points = [point for one in found for point in one.points]
    boxes = [box for one in found for box in one.boxes]
    picture = draw_overlay(image, [one.mask for one in found], points, boxes)
    _atomically(path, lambda work: picture.save(work, quality=92))


def _write_json(path: Path, _: NDArray[np.uint8], __: list[Found], record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False)
    _atomically(path, lambda work: work.write_text(text + "\n", encoding="utf-8"))


def _write_all(
    path: Path, image: NDArray[np.uint8], found: list[Found], record: dict[str, Any]
) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PocketSamError(f"{path}: {error.strerror}") from None
    _write_mask(path / "mask.png", image, found, record)
    _write_overlay(path / "overlay.png", image, found, record)
    _write_json(path / "masks.json", image, found, record)


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a sibling and renames it: the file is whole or as it was."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        work = Path(name)
        try:
            write(work)
            work.chmod(0o644)
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise PocketSamError(f"{path}: cannot be written: {error.strerror or error}") from None
