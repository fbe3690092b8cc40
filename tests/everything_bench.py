"""Segment everything, ours beside the reference's, in one run: ``make bench-everything``.

    python tests/everything_bench.py FOLDER [CHECKPOINT] [YOLOV8X_SEG.onnx]

The reference is ``SamAutomaticMaskGenerator`` of mobilesam-mirror in torch, on the same weights with
the bundle's thresholds: at 1024 pixels all of it, at the size that the weights were trained at with our
encoder, since its own knows no other size. "found" is the share of the full grid's masks that have a
counterpart with an IoU of 0.9 or more.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import import_mobile_sam
from skimage import data
from test_runtime_everything import plain_nms

from pocketsam.export import export
from pocketsam.models.checkpoint import DEFAULT, default_image_size, load_model
from pocketsam.models.sam import Sam
from pocketsam.runtime import Segmenter
from pocketsam.runtime.benchmarks.timing import time_interleaved
from pocketsam.runtime.compare.fastsam import FastSam
from pocketsam.runtime.everything.generator import MaskGenerator
from pocketsam.runtime.machine import describe_machine
from pocketsam.runtime.rle import from_rle
from pocketsam.runtime.verification.metrics import mask_ious

SIZE, THREADS = 1024, 2
PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "chelsea", "coins", "camera")
"""Of scikit-image, which its package holds."""
BUDGETS = (1, 2, 4)
PARTS = ("encoder", "scores", "masks")
"""Of the grid's seconds: the encoder, the decoder up to clicks' scores, the masks of good clicks."""
LARGE = """
import sys
import numpy as np
from pathlib import Path
from PIL import Image
from skimage import data
from pocketsam import MaskGenerator, Segmenter
photo = np.asarray(Image.fromarray(data.astronaut()).resize((4000, 3000)))
segmenter = Segmenter(sys.argv[1], threads=2)
found = MaskGenerator(segmenter, points_per_side=16, output_mode="coco_rle").generate(photo)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(len(found), int(peak.split()[1]) * 1024)
"""


def main(folder: str, checkpoint: str = DEFAULT, fastsam: str = "") -> None:
    torch.set_num_threads(THREADS)
    print(machine(), "\n")
    usual = default_image_size(checkpoint)
    segmenter = opened(folder, checkpoint, usual)
    print("thresholds of the bundle:", json.dumps(vars(segmenter.manifest.thresholds)), "\n")
    rows = []
    for name, image in pictures().items():
        theirs = reference_seconds(checkpoint, image, segmenter)
        rows.append({"name": name, "reference_s": theirs[0]} | measure(segmenter, image))
        assert rows[-1]["masks"] == theirs[1], f"{name}: the reference found {theirs[1]} masks"
        print(json.dumps(rows[-1]), file=sys.stderr)
    print_table(rows, usual)
    segmenter = opened(folder, checkpoint, SIZE)
    theirs = reference_seconds(checkpoint, data.astronaut(), segmenter)
    row = measure(segmenter, data.astronaut(), budgets=())
    assert row["masks"] == theirs[1], f"the reference found {theirs[1]} masks"
    print_table([{"name": "astronaut", "reference_s": theirs[0]} | row], SIZE, budgets=())
    if fastsam:
        beside_fastsam(segmenter, FastSam(fastsam, threads=THREADS), data.astronaut())
    path = str(Path(folder) / f"bundle-{SIZE}")
    command = [sys.executable, "-c", LARGE, path]
    large = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    print(f"peak memory on 12 megapixels: {int(large[1]) / 2**20:.0f} MiB, {large[0]} masks")


def opened(folder: str, checkpoint: str, size: int) -> Segmenter:
    path = Path(folder) / f"bundle-{size}"
    export(checkpoint, path, image_size=size, verify=False, force=True)
    return Segmenter(path, threads=THREADS)


def pictures() -> dict[str, np.ndarray]:
    """The photographs, grey ones as RGB."""
    found = {name: getattr(data, name)() for name in PHOTOGRAPHS}
    return {name: x if x.ndim == 3 else np.stack([x] * 3, -1) for name, x in found.items()}


def measure(segmenter: Segmenter, image: np.ndarray, budgets=BUDGETS) -> dict:
    parts: Counter[str] = Counter()
    with timing(segmenter, parts):
        grid, seconds, clicks = timed(segmenter, image)
    assert clicks == 1024
    row = {"masks": len(grid), "grid_s": seconds, "single": found_by_one_click(segmenter, image, grid)}
    row |= {f"{name}_s": parts[name] for name in PARTS}
    found, row["adaptive_s"], row["clicks"] = timed(segmenter, image, order="adaptive")
    row["found"] = recall(grid, found)
    for budget in budgets:
        found, _, _ = timed(segmenter, image, order="adaptive", time_budget=budget)
        row[f"budget_{budget}"] = recall(grid, found)
    return row


@contextmanager
def timing(segmenter: Segmenter, parts: Counter[str]) -> Iterator[None]:
    """Adds up the seconds of the encoder, and of the decoder's two halves, by ``PARTS``."""

    def timed_call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                parts[name] += time.perf_counter() - start

        return call

    split = segmenter._split_decoder()
    segmenter.set_image = timed_call("encoder", segmenter.set_image)
    for name in ("scores", "masks"):
        setattr(split, name, timed_call(name, getattr(split, name)))
    try:
        yield
    finally:
        del segmenter.set_image, split.scores, split.masks


def timed(segmenter: Segmenter, image: np.ndarray, **more) -> tuple[list, float, int]:
    """Records, seconds with the encoder, and clicks made."""
    clicks = 0
    original = segmenter.predict_above

    def counting(points, labels, min_score):
        nonlocal clicks
        clicks += len(points)
        return original(points, labels, min_score)

    segmenter.predict_above = counting
    start = time.perf_counter()
    found = MaskGenerator(segmenter, output_mode="coco_rle", **more).generate(image)
    seconds = time.perf_counter() - start
    del segmenter.predict_above
    return found, seconds, clicks


def found_by_one_click(segmenter: Segmenter, image: np.ndarray, masks: list) -> int:
    """How many masks have near-duplicates (an IoU of 0.9) at no other click of the grid: an order that
    leaves out clicks finds these by luck only."""
    generator = MaskGenerator(segmenter, output_mode="coco_rle", box_nms_thresh=1.0)
    every = [
        (from_rle(one["segmentation"]), tuple(one["point_coords"][0]))
        for one in generator.generate(image)
    ]
    count = 0
    for one in masks:
        mask = from_rle(one["segmentation"])
        alike = {click for other, click in every if mask_ious(mask, other) >= 0.9}
        count += len(alike) == 1
    return count


def recall(wanted: list, found: list) -> float:
    """The share of masks that have a counterpart of IoU 0.9."""
    if not wanted:
        return 1.0
    theirs = [from_rle(one["segmentation"]) for one in found]
    hits = 0
    for one in wanted:
        mask = from_rle(one["segmentation"])
        best = max((mask_ious(mask, other) for other in theirs), default=0)
        hits += best >= 0.9
    return hits / len(wanted)


def beside_fastsam(segmenter: Segmenter, fastsam: FastSam, image: np.ndarray, rounds: int = 7) -> None:
    """Medians of interleaved rounds. Random weights find nothing, so the threshold of 0 adds what
    drawing the most masks that FastSAM gives, 300, costs."""
    tasks = {
        "MobileSAM, image": lambda: segmenter.set_image(image),
        "and a click": lambda: segmenter.predict([[200, 200]], [1]),
        "YOLOv8x-seg, image": lambda: fastsam.set_image(image),
        "and with 300 masks": lambda: fastsam.set_image(image, conf=0, iou=1),
        "a prompt's choice among them": lambda: fastsam.predict([[200, 200]]),
    }
    times = time_interleaved(tasks, rounds, 1)
    print(f"canvas {SIZE} and {fastsam.canvas[0]}, random weights in YOLOv8x-seg")
    print("\n| | ms |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * np.median(seconds):.0f} |")
    print()


class Encoder(torch.nn.Module):
    """Ours, as the reference's network takes one."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.model, self.img_size = model, model.image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode(images)


def reference_seconds(checkpoint: str, image: np.ndarray, segmenter: Segmenter) -> tuple[float, int]:
    """How long the reference takes with the bundle's canvas and thresholds, and how many masks it
    finds."""
    size, thresholds = segmenter.manifest.image_size, vars(segmenter.manifest.thresholds)
    module = import_mobile_sam()
    module.automatic_mask_generator.batched_nms = plain_nms
    network = module.sam_model_registry["vit_t"]()
    model = load_model(checkpoint, size).model
    network.load_state_dict(model.state_dict())
    if size != SIZE:
        network.image_encoder = Encoder(model)
        prompts = network.prompt_encoder
        prompts.input_image_size, prompts.image_embedding_size = (size, size), (size // 16, size // 16)
    generator = module.SamAutomaticMaskGenerator(
        network.eval(), **thresholds, output_mode="uncompressed_rle"
    )
    start = time.perf_counter()
    found = generator.generate(image)
    return time.perf_counter() - start, len(found)


def machine() -> str:
    about = describe_machine()
    flags = " ".join(about["flags"])
    return (
        f"{about['cpu']}, {about['cores']} cores ({flags}); onnxruntime {about['onnxruntime']}, "
        f"torch {torch.__version__}"
    )


def print_table(rows: list[dict], size: int, budgets=BUDGETS) -> None:
    """The last line has sums of seconds and the share found of all masks."""
    keys = ("reference_s", "grid_s", "adaptive_s", "masks", "single", "clicks")
    whole = {"name": "together"} | {key: sum(row[key] for row in rows) for key in keys}
    for key in ("found", *(f"budget_{budget}" for budget in budgets)):
        whole[key] = sum(row[key] * row["masks"] for row in rows) / max(whole["masks"], 1)
    print(f"canvas {size}, encoder included, {THREADS} threads\n")
    print(
        "| image | masks | of one click | reference s | grid s | | adaptive s | | its clicks | found |",
        end="",
    )
    print("".join(f" found in {budget} s |" for budget in budgets))
    print("|---|---|---|---|---|---|---|---|---|---|" + "---|" * len(budgets))
    for row in [*rows, whole] if len(rows) > 2 else rows:
        cells = [row["name"], row["masks"], row["single"], f"{row['reference_s']:.1f}"]
        for key in ("grid_s", "adaptive_s"):
            cells += [f"{row[key]:.1f}", f"{row['reference_s'] / row[key]:.1f} x"]
        cells += [row["clicks"], f"{row['found']:.2f}"]
        cells += [f"{row[f'budget_{budget}']:.2f}" for budget in budgets]
        print("| " + " | ".join(map(str, cells)) + " |")
    shares = [f"{name} {sum(row[f'{name}_s'] for row in rows) / whole['grid_s']:.0%}" for name in PARTS]
    print(f"\nof the grid's time: {', '.join(shares)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
