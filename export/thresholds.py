"""Finishes trained weights: chooses their thresholds of ``everything``, and writes the checkpoint.

``python -m pocketsam.export.thresholds WEIGHTS PHOTOS --output FILE.safetensors``. PHOTOS is
a folder that ``photographs.prepare`` wrote; only photographs that the weights were trained on count.
SAM's thresholds suit SAM's scores. For others, the rule is: of all pairs that leave ``OBJECTS``
masks on half of the photographs, the pair whose masks match best what people drew there.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.errors import PocketSamError, UsageError
from pocketsam.export import export
from pocketsam.models.checkpoint import DEFAULT_IMAGE_SIZE, Settings, load_model, save_checkpoint
from pocketsam.models.training.photographs.photo import TrainingPhoto
from pocketsam.models.training.photographs.prepare import load_photo_set
from pocketsam.runtime.everything.candidates import is_suppressed
from pocketsam.runtime.everything.generator import MaskGenerator, MaskRecord
from pocketsam.runtime.everything.grid import Parameters
from pocketsam.runtime.rle import from_rle
from pocketsam.runtime.segmenter import Segmenter
from pocketsam.thresholds import Thresholds

OBJECTS = 24
"""Masks on a photograph, in the median."""
STABILITIES = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
LOWEST_SCORE = 0.3
_SMALLEST = 0.002
"""Share of the photograph below which nobody asks that a drawn object is found."""


@dataclass(frozen=True)
class Choice:
    """A pair of thresholds and what it gives.

    Attributes:
        thresholds: the pair.
        counts: objects on each photograph.
        iou: mean, over the objects that people drew, of the IoU of the mask that matches best.
        recall: share of these objects with an IoU of 0.5 or more.
    """

    thresholds: Thresholds
    counts: tuple[int, ...]
    iou: float
    recall: float

    def __str__(self) -> str:
        """Returns a row of the table."""
        least, middle = min(self.counts), int(np.median(self.counts))
        shown = " | ".join(f"{value:.2f}" for value in vars(self.thresholds).values())
        enough = np.mean(np.array(self.counts) >= 10)
        return f"| {shown} | {least} | {middle} | {enough:.0%} | {self.iou:.3f} | {self.recall:.3f} |"


HEADER = """\
| predicted IoU | stability | objects, least | median | photographs with 10 or more | mean IoU | found |
|---|---|---|---|---|---|---|"""


def find_all(segmenter: Segmenter, photo: TrainingPhoto) -> list[MaskRecord]:
    """Returns every mask that any of the thresholds may keep, best first, duplicates among them."""
    generator = MaskGenerator(
        segmenter,
        pred_iou_thresh=LOWEST_SCORE,
        stability_score_thresh=min(STABILITIES),
        box_nms_thresh=1.0,
        output_mode="coco_rle",
    )
    return generator.generate(photo.image)


def keep(records: Sequence[MaskRecord], stability: float) -> list[MaskRecord]:
    """Returns the records that are stable enough and that no better one suppresses."""
    kept: list[MaskRecord] = []
    boxes: list[tuple[int, int, int, int]] = []
    for record in records:
        x, y, width, height = record["bbox"]
        box = (x, y, x + width, y + height)
        is_stable = record["stability_score"] >= stability
        if is_stable and not is_suppressed(box, boxes, Parameters.box_nms_thresh):
            kept.append(record)
            boxes.append(box)
    return kept


def drawn_objects(photo: TrainingPhoto) -> list[NDArray[np.bool_]]:
    """Returns what people drew on a photograph, less the smallest."""
    objects = [layer == value for layer in photo.layers for value in np.unique(layer) if value]
    return [mask for mask in objects if mask.mean() >= _SMALLEST]


def best_ious(found: Sequence[MaskRecord], wanted: Sequence[NDArray[np.bool_]]) -> list[float]:
    """Returns, for each wanted mask, the IoU of the found mask that matches it best."""
    masks = [from_rle(record["segmentation"]) for record in found]
    return [
        max((np.count_nonzero(a & b) / np.count_nonzero(a | b) for b in masks), default=0.0)
        for a in wanted
    ]


def choose(
    stability: float, records: Sequence[Sequence[MaskRecord]], wanted: Sequence[list[NDArray[np.bool_]]]
) -> Choice:
    """Returns what a stability gives, with the predicted IoU that leaves ``OBJECTS`` masks.

    Args:
        stability: the threshold.
        records: of each photograph, from ``find_all``.
        wanted: of each photograph, from ``drawn_objects``.
    """
    kept = [keep(each, stability) for each in records]
    scores = [[record["predicted_iou"] for record in each] for each in kept]
    last = [each[OBJECTS - 1] if len(each) >= OBJECTS else LOWEST_SCORE for each in scores]
    score = float(np.floor(100 * np.median(last)) / 100)
    kept = [[r for r in each if r["predicted_iou"] > score] for each in kept]
    ious = [iou for pair in zip(kept, wanted, strict=True) for iou in best_ious(*pair)]
    return Choice(
        Thresholds(score, stability),
        tuple(map(len, kept)),
        float(np.mean(ious)),
        float(np.mean(np.array(ious) >= 0.5)),
    )


def choose_thresholds(weights: str, photos: Sequence[TrainingPhoto]) -> Thresholds:
    """Returns the thresholds that suit a checkpoint, and prints what others give.

    Args:
        weights: the checkpoint.
        photos: with masks that people drew.
    """
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(weights, bundle, image_size=DEFAULT_IMAGE_SIZE, verify=False)
        segmenter, records = Segmenter(bundle), []
        for done, photo in enumerate(photos, start=1):
            records.append(find_all(segmenter, photo))
            terminal.show_progress(f"{done} of {len(photos)} photographs", done == len(photos))
    wanted = [drawn_objects(photo) for photo in photos]
    choices = [choose(stability, records, wanted) for stability in STABILITIES]
    print(HEADER, *choices, sep="\n")
    return max(choices, key=lambda choice: choice.iou).thresholds


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Choose thresholds, write a checkpoint.")
    parser.add_argument("weights", help="checkpoint that `photographs.train` wrote")
    parser.add_argument("photos", type=Path, help="folder that `photographs.prepare` wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="photographs (24)")
    args = parser.parse_args()
    try:
        photos = [photo for photo in load_photo_set(args.photos).photos if photo.has_masks]
        if not photos:
            raise UsageError(f"{args.photos}: no photograph has masks that people drew")
        step = max(1, len(photos) // args.count)
        thresholds = choose_thresholds(args.weights, photos[::step][: args.count])
        state = load_model(args.weights, DEFAULT_IMAGE_SIZE, terminal.say).model.state_dict()
        save_checkpoint(args.output, state, Settings(DEFAULT_IMAGE_SIZE, thresholds))
    except PocketSamError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"wrote {args.output} with {thresholds}")


if __name__ == "__main__":
    main()
