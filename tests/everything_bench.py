"""Segment everything, ours beside the reference's, in one run: ``make bench-everything``.

    python tests/everything_bench.py FOLDER [CHECKPOINT]

The reference is ``SamAutomaticMaskGenerator`` of mobilesam-mirror in torch, at the only size it has, on
the same weights with the same parameters. "Found" is the share of the full grid's masks that have a
counterpart with an IoU of 0.9 or more.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from skimage import data
from test_runtime_everything import plain_nms

from pocketsam.export.pipeline import export_bundle
from pocketsam.models import scenes
from pocketsam.models.checkpoint import DEFAULT, load_model
from pocketsam.runtime import Segmenter
from pocketsam.runtime.machine import describe_machine
from pocketsam.runtime.masks import from_rle

SIZE, THREADS = 1024, 2
PARAMETERS = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.9, "output_mode": "coco_rle"}
"""Lower than the defaults: our weights, which minutes of training made, score themselves lower."""
BUDGETS = (2, 4, 8, 16)
LARGE = """
import sys
import numpy as np
from pathlib import Path
from PIL import Image
from skimage import data
from pocketsam.runtime import Segmenter
photo = np.asarray(Image.fromarray(data.astronaut()).resize((4000, 3000)))
found = Segmenter(sys.argv[1], threads=2).everything(photo, points_per_side=16, **eval(sys.argv[2]))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(len(found), int(peak.split()[1]) * 1024)
"""


def main(folder: str, checkpoint: str = DEFAULT) -> None:
    path = Path(folder) / "bundle"
    if not path.is_dir():
        export_bundle(checkpoint, path, image_size=SIZE, verify=False)
    torch.set_num_threads(THREADS)
    segmenter = Segmenter(path, threads=THREADS)
    rows = {}
    for name, image in pictures().items():
        rows[name] = measure(segmenter, image)
        print(name, json.dumps(rows[name]), file=sys.stderr)
    first = next(iter(pictures().items()))
    reference, masks = reference_seconds(checkpoint, first[1])
    command = [sys.executable, "-c", LARGE, str(path), repr(PARAMETERS)]
    large = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    print_tables(rows, first[0], reference, masks, int(large[1]))


def pictures() -> dict[str, np.ndarray]:
    """A photograph, and scenes like those that the weights were trained on."""
    painted = {
        f"scene {seed}": scenes.generate(seed, 512).image for seed in (900_001, 900_002, 900_003)
    }
    return {"astronaut": data.astronaut(), "coffee": data.coffee(), **painted}


def measure(segmenter: Segmenter, image: np.ndarray) -> dict:
    grid, seconds, clicks = timed(segmenter, image)
    row = {"masks": len(grid), "grid_s": seconds}
    found, row["adaptive_s"], row["adaptive_clicks"] = timed(segmenter, image, order="adaptive")
    row["adaptive_found"] = recall(grid, found)
    for budget in BUDGETS:
        found, _, _ = timed(segmenter, image, order="adaptive", time_budget=budget)
        row[f"budget_{budget}_found"] = recall(grid, found)
    assert clicks == 1024
    return row


def timed(segmenter: Segmenter, image: np.ndarray, **more) -> tuple[list, float, int]:
    """Records, seconds with the encoder, and clicks made."""
    clicks = 0
    original = segmenter.predict_low_res

    def counting(points, labels):
        nonlocal clicks
        clicks += len(points)
        return original(points, labels)

    segmenter.predict_low_res = counting
    start = time.perf_counter()
    found = segmenter.everything(image, **PARAMETERS, **more)
    seconds = time.perf_counter() - start
    del segmenter.predict_low_res
    return found, seconds, clicks


def recall(wanted: list, found: list) -> float:
    """The share of masks that have a counterpart of IoU 0.9."""
    if not wanted:
        return 1.0
    theirs = [from_rle(one["segmentation"]) for one in found]
    hits = 0
    for one in wanted:
        mask = from_rle(one["segmentation"])
        best = max(((mask & other).sum() / (mask | other).sum() for other in theirs), default=0)
        hits += best >= 0.9
    return hits / len(wanted)


def reference_seconds(checkpoint: str, image: np.ndarray) -> tuple[float, int]:
    from conftest import import_mobile_sam

    module = import_mobile_sam()
    module.automatic_mask_generator.batched_nms = plain_nms
    network = module.sam_model_registry["vit_t"]()
    network.load_state_dict(load_model(checkpoint, SIZE).model.state_dict())
    parameters = PARAMETERS | {"output_mode": "uncompressed_rle"}
    generator = module.SamAutomaticMaskGenerator(network.eval(), **parameters)
    start = time.perf_counter()
    found = generator.generate(image)
    return time.perf_counter() - start, len(found)


def print_tables(rows: dict, name: str, reference: float, masks: int, peak: int) -> None:
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores; onnxruntime {machine['onnxruntime']}, torch ")
    print(f"{torch.__version__}; canvas {SIZE}, 1,024 clicks, encoder included")
    print("| image | masks | grid s | adaptive s | its clicks | found |", end="")
    print("".join(f" found in {budget} s |" for budget in BUDGETS))
    print("|---|---|---|---|---|---|" + "---|" * len(BUDGETS))
    for key, row in rows.items():
        shares = [row["adaptive_found"], *(row[f"budget_{budget}_found"] for budget in BUDGETS)]
        cells = [
            row["masks"],
            f"{row['grid_s']:.1f}",
            f"{row['adaptive_s']:.1f}",
            row["adaptive_clicks"],
        ]
        print("| " + " | ".join(map(str, [key, *cells, *(f"{share:.2f}" for share in shares)])) + " |")
    own = rows[name]
    print(f"\nreference in torch on {name}: {reference:.1f} s, {masks} masks; the grid is ", end="")
    print(
        f"{reference / own['grid_s']:.1f}, adaptive {reference / own['adaptive_s']:.1f} times as fast"
    )
    print(f"peak memory on a photograph of 12 megapixels: {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
