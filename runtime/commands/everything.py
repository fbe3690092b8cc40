"""``pocketsam everything``: finds all objects of an image, or of each image of a folder."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pocketsam import terminal
from pocketsam.errors import ImageError, PromptError, UsageError
from pocketsam.files import write_bytes
from pocketsam.runtime.backends.ort import check_threads
from pocketsam.runtime.commands import results
from pocketsam.runtime.commands.folders import run_folder
from pocketsam.runtime.commands.options import (
    add_bundle,
    add_device,
    add_window,
    check_is_no_bundle,
    open_segmenter,
    read_image,
)
from pocketsam.runtime.everything.coco import join_datasets
from pocketsam.runtime.everything.generator import MaskGenerator
from pocketsam.runtime.everything.grid import ORDERS, Parameters, make_parameters
from pocketsam.runtime.segmenter import Segmenter
from pocketsam.thresholds import Thresholds

PARAMETERS: dict[str, tuple[type, str]] = {
    "points_per_side": (int, "clicks along each side of the grid"),
    "points_per_batch": (int, "clicks between two checks of the time budget"),
    "pred_iou_thresh": (float, "minimum predicted IoU"),
    "stability_score_thresh": (float, "minimum stability of the mask's outline"),
    "stability_score_offset": (
        float,
        "logits by which thresholds are shifted for stability",
    ),
    "box_nms_thresh": (float, "overlap of boxes above which the worse mask is suppressed"),
    "crop_n_layers": (int, "layers of crops that are searched as well"),
    "crop_nms_thresh": (float, "the same, between masks of different crops"),
    "crop_overlap_ratio": (float, "overlap of crops, as a share of the image's short side"),
    "crop_n_points_downscale_factor": (
        int,
        "factor by which each layer's grid is coarser",
    ),
    "min_mask_region_area": (int, "pixels below which islands and holes are removed"),
    "time_budget": (float, "seconds after which no further click is made"),
}
"""The types and descriptions of the options that are parameters of ``MaskGenerator``."""


DATASET = "dataset.json"
"""COCO dataset of all images of a folder."""
OF_BUNDLE = [field.name for field in fields(Thresholds)]
"""Parameters whose defaults a bundle's manifest gives."""


def add_everything(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "everything",
        help="find all objects of an image, without a prompt",
        description="A grid of clicks, filtered as segment-anything's SamAutomaticMaskGenerator does.",
    )
    add_bundle(parser)
    add_device(parser)
    add_window(parser)
    parser.add_argument(
        "image",
        help="an image, or a folder, without the folders inside it; images done before are skipped",
    )
    parser.add_argument(
        "--output",
        action="append",
        required=True,
        metavar="OUT",
        help="label map (.png), picture (.jpg, .webp), COCO dataset (.json), or a directory for all; "
        "repeatable. For a folder of images: one COCO dataset (.json), or a directory, for a directory "
        f"of each image and {DATASET} of them all",
    )
    defaults = {field.name: field.default for field in fields(Parameters)}
    for name, (type_, description) in PARAMETERS.items():
        default = "" if defaults[name] is None else f" (default {defaults[name]:.4g})"
        if name in OF_BUNDLE:
            default = " (default: what the bundle's manifest says)"
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type_, metavar="N", help=description + default)
    parser.add_argument(
        "--order",
        choices=ORDERS,
        help="adaptive: no clicks where masks already lie (default grid)",
    )
    parser.add_argument(
        "--polygons",
        action="store_true",
        help="segmentations in JSON as polygons along the edges of pixels, for readers that refuse RLE",
    )
    parser.add_argument("--json", action="store_true", help="print the COCO dataset to stdout as well")
    parser.set_defaults(run=run_everything)


def run_everything(args: argparse.Namespace) -> None:
    """Runs the command; ``--json`` prints ``Dataset.record``."""
    check_threads(args.threads)
    check_is_no_bundle(args.image)
    chosen = _parameters(args)
    if Path(args.image).is_dir():
        _run_folder(args, chosen)
        return
    planned = results.plan_outputs(args.output, args.image)
    image = read_image(args, args.image)
    results.check_sides(planned, image)
    segmenter = open_segmenter(args)
    made = _find(segmenter, args.image, image, chosen, args.polygons)
    written = [file for path, write in planned for file in write(path, made)]
    if args.json:
        terminal.print_json(made.record)
        return
    print(_count(made))
    for file in written:
        print(f"wrote {file}")


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the parameters that are given, after checking them."""
    values = {name: getattr(args, name) for name in (*PARAMETERS, "order")}
    chosen = {name: value for name, value in values.items() if value is not None}
    try:
        make_parameters(**chosen)
    except PromptError as error:
        raise UsageError(str(error)) from None
    return chosen


def _run_folder(args: argparse.Namespace, chosen: dict[str, Any]) -> None:
    """Searches each image of a folder, less those whose masks are there, and joins the datasets."""
    planned = results.plan_outputs(args.output, args.image)
    output, write = planned[0]
    if len(planned) > 1 or write not in (results.write_all, results.write_json) or args.json:
        raise UsageError(
            "for a folder of images, --output is a single directory or .json file, without --json"
        )
    segmenter = open_segmenter(args)
    if write is results.write_json:
        _run_into_dataset(args, output, segmenter, chosen)
        return
    records: list[dict[str, Any]] = []

    def search(file: Path, name: str) -> str:
        if (output / name).resolve() == file.parent.resolve():
            raise ImageError(f"{file}: its masks would go among the images; choose another --output")
        image, shown = read_image(args, file), _inside(args.image, file)
        before = _read_record(output / name / results.LAST)
        parameters = _shown(segmenter, MaskGenerator(segmenter, **chosen).parameters, args.polygons)
        info = results.Dataset.info(image, segmenter.manifest, parameters)
        if before and (before["info"], before["images"][0].get("file_name")) == (info, shown):
            records.append(before)
            return "done before"
        made = _find(segmenter, shown, image, chosen, args.polygons)
        results.write_all(output / name, made)
        records.append(made.record)
        return _count(made)

    with _then_write_dataset(output / DATASET, records):
        run_folder(Path(args.image), search)


def _run_into_dataset(
    args: argparse.Namespace, output: Path, segmenter: Segmenter, chosen: dict[str, Any]
) -> None:
    """Searches each image of a folder, and writes one dataset, whose file names are the folder's."""
    records: list[dict[str, Any]] = []

    def search(file: Path, _name: str) -> str:
        image, name = read_image(args, file), _inside(args.image, file)
        made = _find(segmenter, name, image, chosen, args.polygons)
        records.append(made.record)
        return _count(made)

    with _then_write_dataset(output, records):
        run_folder(Path(args.image), search)


@contextmanager
def _then_write_dataset(path: Path, records: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Writes a dataset of the records that a run over a folder collects.

    A run that was cut short does not replace what a whole one wrote: it writes ``NAME.partial.json``.
    """
    partial = path.with_name(f"{path.stem}.partial.json")
    target = partial
    try:
        yield
        target = path
    except ImageError:  # all images were tried, some were skipped
        target = path
        raise
    finally:
        if records:
            write_bytes(target, json.dumps(join_datasets(records)).encode())
            print(f"wrote {target}")
            if target is path:
                _remove_dataset(partial)


def _remove_dataset(path: Path) -> None:
    """Removes a dataset that an earlier run wrote; a file of somebody else stays."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        is_ours = found.keys() >= {"images", "annotations"}
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if is_ours:
        path.unlink()


def _inside(folder: str, file: Path) -> str:
    """Returns an image's name in a dataset: its path in the folder, with slashes."""
    return file.relative_to(folder).as_posix()


def _read_record(path: Path) -> dict[str, Any]:
    """Returns what an earlier run wrote; nothing if there is none, or if it is damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        join_datasets([record])
        return record
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return {}


def _shown(segmenter: Segmenter, parameters: Parameters, polygons: bool) -> dict[str, Any]:
    """Returns parameters as JSON holds them: less what is usual of ``polygons`` and ``arithmetic``."""
    values = {field.name: getattr(parameters, field.name) for field in fields(parameters)}
    shown = {name: v for name, v in values.items() if name not in ("output_mode", "point_grids")}
    shown |= {"polygons": True} if polygons else {}
    return shown | ({} if segmenter.arithmetic == "f32" else {"arithmetic": segmenter.arithmetic})


def _count(made: results.Dataset) -> str:
    return f"{len(made.found)} object{'' if len(made.found) == 1 else 's'}"


def _find(
    segmenter: Segmenter, name: str, image: Any, chosen: dict[str, Any], polygons: bool
) -> results.Dataset:
    """Returns the objects of an image; says what to try if there are none."""

    def bar(done: int, total: int) -> None:
        terminal.show_progress(f"{name}: {done} of {total} clicks", done == total)

    generator = MaskGenerator(segmenter, output_mode="coco_rle", **chosen)
    records = generator.generate(image, progress=bar)
    # large masks first, so that small ones lie on top where they are drawn
    records.sort(key=lambda record: -record["area"])
    if not records:
        terminal.say(f"{name}: no mask passed: {_hint(generator)}")
    found = [results.Outlined(record) for record in records]
    parameters = _shown(segmenter, generator.parameters, polygons)
    return results.Dataset(name, image, found, segmenter.manifest, parameters)


def _hint(generator: MaskGenerator) -> str:
    """Returns what to try after a search that found nothing."""
    best, parameters = generator.best_score, generator.parameters
    wanted, stable = parameters.pred_iou_thresh, parameters.stability_score_thresh
    if best is None:
        return "the time budget ended before the first click; try a longer --time-budget"
    if best <= wanted:
        return (
            f"the best predicted IoU is {best:.2f}, and --pred-iou-thresh is {wanted:.2f}; "
            f"try {max(0.0, best - 0.1):.2f}"
        )
    return (
        f"the best predicted IoU is {best:.2f}, which is enough, but outlines of such masks are less "
        f"stable than --stability-score-thresh {stable:.2f}; try {max(0.0, stable - 0.1):.2f}"
    )
