"""Tools that run in Node, each behind ``ask``; see ``drop_in_tools.py``."""

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from drop_in_python import ENVIRONMENT, Tool
from drop_in_reference import CASES, SIDE, Prompt, Reference, points_of
from PIL import Image

WORKER = "cvat-ui/plugins/sam/src/ts/inference.worker.ts"


class TransformersJs(Tool):
    """It gives three masks. ``inside`` asks the reference with the tool's own tensors, and takes the
    picture's size on the canvas from it: it rounds 718.98 pixels down."""

    choice = "three"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: list[tuple[np.ndarray, dict]] = []

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as work:
            asked = [[part.tolist() for part in points_of(prompt.marks)] for prompt in prompts]
            job = {"shape": image.shape, "prompts": asked, "model": str(self.folder.resolve())}
            Path(work, "job.json").write_text(json.dumps(job))
            Path(work, "image.raw").write_bytes(np.ascontiguousarray(image).tobytes())
            script = Path(__file__).with_name("drop_in_transformers.mjs")
            subprocess.run(["node", str(script), work], check=True, cwd=ENVIRONMENT / "node")
            raw = np.frombuffer(Path(work, "masks.raw").read_bytes(), np.uint8)
            pixels = np.frombuffer(Path(work, "pixels.raw").read_bytes(), np.float32)
            made = json.loads(Path(work, "made.json").read_text())
        self.tensors.append((pixels.reshape(1, 3, SIDE, SIDE), made))
        return list(raw.reshape(len(prompts), *image.shape[:2]) > 0)

    def inside(self, reference: Reference, cases: dict) -> dict[str, list[np.ndarray]]:
        """The reference's masks of what the tool made of the same pictures and prompts."""
        encoder, decoder = reference.encoder("pixels"), reference.decoder(choice="three")
        found = {}
        for (label, (image, prompts)), (pixels, made) in zip(cases.items(), self.tensors, strict=True):
            (embedding,) = encoder.run(None, {"x": pixels})
            masks = []
            for prompt, coords in zip(prompts, made["points"], strict=True):
                feeds = {
                    "image_embeddings": embedding,
                    "point_coords": np.array(coords, np.float32).reshape(1, -1, 2),
                    "point_labels": points_of(prompt.marks)[1][None],
                    "orig_im_size": np.array(image.shape[:2], np.float32),
                    "used": made["used"],
                }
                masks.append(decoder.run(None, feeds)[0][0, 0] > 0)
            found[label] = masks
        return found


class Cvat(Tool):
    """The function's ``embed``, then the plugin's worker in Node, in ``source``; it refines masks."""

    asks = tuple(CASES)

    def __init__(self, folder: Path, source: Path) -> None:
        import onnxruntime

        self.worker = str((source / WORKER).resolve())

        self.decoder = str((folder / "decoder.onnx").resolve())
        sys.path.insert(0, str(folder / "nuclio"))
        self.function = importlib.import_module("main")
        self.encoder = onnxruntime.InferenceSession(str(folder / "nuclio/encoder.onnx"))

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        height, width = image.shape[:2]
        asked, kept = [], []
        for prompt in prompts:
            marks = sorted(prompt.marks, key=lambda mark: mark["type"] == "point")
            points, labels = points_of(marks)
            coords = (points * (SIDE / max(height, width))).tolist()
            for refines in (False, True)[: 1 + prompt.refines]:
                asked.append({"coords": coords, "labels": labels.tolist(), "refines": refines})
            kept.append(len(asked) - 1)
        job = {"decoder": self.decoder, "width": width, "height": height, "prompts": asked}
        with tempfile.TemporaryDirectory() as work:
            embedding = self.function.embed(self.encoder, Image.fromarray(image))
            Path(work, "embedding.raw").write_bytes(embedding.tobytes())
            Path(work, "job.json").write_text(json.dumps(job))
            script = Path(__file__).with_name("drop_in_cvat.mjs")
            command = ["node", str(script), work, self.worker]
            subprocess.run(command, check=True, cwd=ENVIRONMENT / "node")
            found = json.loads(Path(work, "found.json").read_text())
        masks = []
        for entry in (found[number] for number in kept):
            (left, top, right, bottom), mask = entry["bounds"], np.zeros((height, width), bool)
            shape = bottom - top + 1, right - left + 1
            mask[top : bottom + 1, left : right + 1] = np.reshape(entry["points"], shape) > 0
            masks.append(mask)
        return masks
