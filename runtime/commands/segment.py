"""``pocketsam segment``: cuts objects out of an image, as a mask, a picture or JSON."""

import argparse
import os
from typing import Any

import numpy as np

from pocketsam import terminal
from pocketsam.errors import UsageError
from pocketsam.runtime.backends.ort import check_threads
from pocketsam.runtime.commands import results
from pocketsam.runtime.commands.options import (
    add_bundle,
    add_device,
    add_window,
    check_is_no_bundle,
    open_segmenter,
    read_image,
)
from pocketsam.runtime.commands.results import Found
from pocketsam.runtime.prompts import Box, Point, is_ambiguous, read_prompt_file
from pocketsam.runtime.segmenter import Segmenter

SURE = 0.4
"""Predicted IoU below which a person is told that the mask may not be what was meant."""


def add_segment(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "segment",
        help="cut objects out of an image",
        description="All points, with a box if there is one, describe a single object. Several boxes "
        "without points are an object each.",
    )
    add_bundle(parser)
    add_device(parser)
    add_window(parser)
    parser.add_argument("image", help="one image; `embed` and `everything` take folders")
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
        "--prompt-file", metavar="FILE.json", help="points and rectangles, as samexporter writes them"
    )
    parser.add_argument(
        "--output",
        action="append",
        required=True,
        metavar="OUT",
        help="mask (.png), picture (.jpg, .webp), JSON (.json), or a directory for all; repeatable",
    )
    parser.add_argument(
        "--embedding",
        metavar="FILE.npz",
        help="from `pocketsam embed`; the encoder does not run",
    )
    parser.add_argument("--json", action="store_true", help="print what .json holds to stdout as well")
    parser.set_defaults(run=run_segment)


def _numbers(text: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be {' or '.join(map(str, counts))} numbers, separated by commas"
        )
    return values


def parse_point(text: str) -> Point:
    """Returns the point of ``X,Y`` or ``X,Y,LABEL``; without a label, it is foreground."""
    x, y, *label = _numbers(text, (2, 3))
    if label and label[0] not in (0, 1):
        raise argparse.ArgumentTypeError(f"{text!r}: the label must be 1 (object) or 0 (background)")
    return x, y, int(label[0]) if label else 1


def parse_box(text: str) -> Box:
    """Returns the box of ``X0,Y0,X1,Y1``."""
    x0, y0, x1, y1 = _numbers(text, (4,))
    return x0, y0, x1, y1


def run_segment(args: argparse.Namespace) -> None:
    """Runs the command; ``--json`` prints ``Results.record``."""
    check_threads(args.threads)
    check_is_no_bundle(args.image)
    if os.path.isdir(args.image):
        raise UsageError(f"{args.image}: a folder; name one image in it, prompts are for a single one")
    read = [path for path in (args.prompt_file, args.embedding) if path]
    planned = results.plan_outputs(args.output, args.image, *map(str, read))
    points, boxes = list(args.point), list(args.box)
    if args.prompt_file:
        more_points, more_boxes = read_prompt_file(args.prompt_file)
        points, boxes = points + more_points, boxes + more_boxes
    if not points and not boxes:
        raise UsageError("nothing to segment: give --point, --box or --prompt-file")
    if points and len(boxes) > 1:
        raise UsageError("points and several boxes: it is not clear which box the points belong to")

    image = read_image(args, args.image)
    results.check_sides(planned, image)
    segmenter = open_segmenter(args)
    if args.embedding:
        segmenter.set_embedding(args.embedding, image)
    else:
        segmenter.set_image(image)
    found = find_objects(segmenter, points, boxes)
    made = results.Results(args.image, image, found, segmenter.manifest)
    del segmenter  # its memory is wanted for the pictures of a large image
    written = [file for path, write in planned for file in write(path, made)]
    if args.json:
        terminal.print_json(made.record)
        return
    for number, entry in enumerate(made.record["masks"], start=1):
        score, area = entry["predicted_iou"], entry["area"]
        hint = "" if score >= SURE else "; the network is unsure: try a box, or more points"
        print(f"object {number}: score {score:.3f}, {area} pixels, box {entry['bbox']}{hint}")
    for file in written:
        print(f"wrote {file}")


def find_objects(segmenter: Segmenter, points: list[Point], boxes: list[Box]) -> list[Found]:
    """Returns an object for all points (and at most one box), or an object for each box."""
    if points:
        prompts = [(points, boxes)]
        coords = np.array([[point[:2] for point in points]], np.float32)
        labels = np.array([[point[2] for point in points]], np.float32)
        batch: dict[str, Any] = {"point_coords": coords, "point_labels": labels}
        if boxes:
            batch["boxes"] = boxes
    else:
        prompts = [([], [box]) for box in boxes]
        batch = {"boxes": boxes}
    multimask = segmenter.manifest.multimask and is_ambiguous(len(points), bool(boxes))
    scores, low_res = segmenter.predict_low_res(**batch, multimask_output=multimask)
    best = scores.argmax(axis=1)
    return [
        Found.encoded(*prompt, segmenter.upscaler.mask(low_res[i, best[i]]), float(scores[i, best[i]]))
        for i, prompt in enumerate(prompts)
    ]
