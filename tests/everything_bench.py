"""Segment everything, ours beside the reference's, in one run: ``make bench-everything``.

    python tests/everything_bench.py FOLDER [CHECKPOINT]

The reference is ``SamAutomaticMaskGenerator`` of mobilesam-mirror in torch, at 1024 pixels, the only
size it has, on the same weights with the same parameters. What fewer clicks find is measured at the
size that the weights were trained at: "found" is the share of the full grid's masks that have a
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
from pocketsam.models.checkpoint import DEFAULT, load_model, usual_image_size
from pocketsam.models.textures import load_textures
from pocketsam.runtime import Segmenter
from pocketsam.runtime.machine import describe_machine
from pocketsam.runtime.masks import from_rle

SIZE, THREADS = 1024, 2
PARAMETERS = {"output_mode": "coco_rle", "pred_iou_thresh": 0.6, "stability_score_thresh": 0.85}
LOOSE = PARAMETERS | {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.6}
"""Lower than the defaults: our weights, which minutes of training made, score themselves lower, and
lower still at 1024 pixels."""
BUDGETS = (1, 2, 4, 8)
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
    torch.set_num_threads(THREADS)
    usual = usual_image_size(checkpoint)
    segmenter = opened(folder, checkpoint, usual)
    rows = {}
    for name, image in pictures().items():
        rows[name] = measure(segmenter, image)
        print(name, json.dumps(rows[name]), file=sys.stderr)
    print_table(rows, usual)
    segmenter = opened(folder, checkpoint, SIZE)
    found, seconds, _ = timed(segmenter, data.astronaut(), LOOSE)
    fewer, quick, clicks = timed(segmenter, data.astronaut(), LOOSE, order="adaptive")
    theirs, masks = reference_seconds(checkpoint, data.astronaut())
    print(f"\nastronaut, canvas {SIZE}: reference in torch {theirs:.1f} s, {masks} masks; ", end="")
    print(f"grid {seconds:.1f} s, {len(found)} masks: {theirs / seconds:.1f} times as fast; ", end="")
    print(f"adaptive {quick:.1f} s, {clicks} clicks: {theirs / quick:.1f} times as fast, ", end="")
    print(f"{recall(found, fewer):.2f} found")
    path = str(Path(folder) / f"bundle-{SIZE}")
    command = [sys.executable, "-c", LARGE, path, repr(LOOSE)]
    large = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    print(f"peak memory on 12 megapixels: {int(large[1]) / 2**20:.0f} MiB, {large[0]} masks")


def opened(folder: str, checkpoint: str, size: int) -> Segmenter:
    path = Path(folder) / f"bundle-{size}"
    if not path.is_dir():
        export_bundle(checkpoint, path, image_size=size, verify=False)
    return Segmenter(path, threads=THREADS)


def pictures() -> dict[str, np.ndarray]:
    """A photograph, and scenes like those that the weights were trained on."""
    textures = load_textures()
    painted = {f"scene {n}": scenes.generate(900_000 + n, 512, textures).image for n in (1, 2, 3)}
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


def timed(
    segmenter: Segmenter, image: np.ndarray, parameters: dict = PARAMETERS, **more
) -> tuple[list, float, int]:
    """Records, seconds with the encoder, and clicks made."""
    clicks = 0
    original = segmenter.predict_low_res

    def counting(points, labels):
        nonlocal clicks
        clicks += len(points)
        return original(points, labels)

    segmenter.predict_low_res = counting
    start = time.perf_counter()
    found = segmenter.everything(image, **parameters, **more)
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
    parameters = LOOSE | {"output_mode": "uncompressed_rle"}
    generator = module.SamAutomaticMaskGenerator(network.eval(), **parameters)
    start = time.perf_counter()
    found = generator.generate(image)
    return time.perf_counter() - start, len(found)


def print_table(rows: dict, size: int) -> None:
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores; onnxruntime {machine['onnxruntime']}, ", end="")
    print(f"torch {torch.__version__}; canvas {size}, 1,024 clicks, encoder included\n")
    print("| image | masks | grid s | adaptive s | its clicks | found |", end="")
    print("".join(f" found in {budget} s |" for budget in BUDGETS))
    print("|---|---|---|---|---|---|" + "---|" * len(BUDGETS))
    for key, row in rows.items():
        shares = [row["adaptive_found"], *(row[f"budget_{budget}_found"] for budget in BUDGETS)]
        seconds = [f"{row['grid_s']:.1f}", f"{row['adaptive_s']:.1f}"]
        cells = [row["masks"], *seconds, row["adaptive_clicks"]]
        print("| " + " | ".join(map(str, [key, *cells, *(f"{share:.2f}" for share in shares)])) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
