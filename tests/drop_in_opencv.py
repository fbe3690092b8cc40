"""The class of OpenCV's zoo, behind ``ask``; see ``drop_in_tools.py``.

    PYTHONPATH=OTHER_OPENCV python tests/drop_in_opencv.py FOLDER

asks it in another version: ``FOLDER`` has ``job.json`` and ``image.npy``, and gets ``masks.npy``.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from drop_in_python import Tool
from drop_in_reference import Prompt, Reference, points_of

CLASS = "models/image_segmentation_efficientsam/efficientSAM.py"
FILE = "image_segmentation_pocketsam.onnx"


def open_class(source: Path, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("efficientSAM", source / CLASS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EfficientSAM(str(file))


def ask_class(model: Any, image: np.ndarray, prompts: list[list[list]]) -> list[np.ndarray]:
    """Masks of an RGB picture for points and labels in lists."""
    picture = np.ascontiguousarray(image[..., ::-1])
    return [model.infer(picture, points, labels) > 0 for points, labels in prompts]


def as_lists(prompts: list[Prompt]) -> list[list[list]]:
    return [[part.tolist() for part in points_of(prompt.marks)] for prompt in prompts]


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    model = open_class(Path(job["source"]), Path(job["file"]))
    np.save(folder / "masks.npy", ask_class(model, np.load(folder / "image.npy"), job["prompts"]))


class OpenCv(Tool):
    """The picture becomes a square, and the best-scored of three masks is taken."""

    choice = "three"

    def __init__(self, folder: Path, source: Path) -> None:
        self.source, self.file = source.resolve(), (folder / FILE).resolve()
        self.model = open_class(self.source, self.file)

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        return ask_class(self.model, image, as_lists(prompts))

    def inside(self, reference: Reference, cases: dict) -> dict[str, list[np.ndarray]]:
        """The masks with the reference in the place of the file."""
        self.model._model = reference.one_file()
        return {
            label: ask_class(self.model, image, as_lists(prompts))
            for label, (image, prompts) in cases.items()
        }


class OpenCv4(OpenCv):
    """The same in a version that is not this environment's, in a process of its own."""

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as work:
            job = {"source": str(self.source), "file": str(self.file), "prompts": as_lists(prompts)}
            Path(work, "job.json").write_text(json.dumps(job))
            np.save(Path(work, "image.npy"), image)
            path = os.environ | {"PYTHONPATH": str(Path(sys.prefix) / "opencv-4")}
            subprocess.run([sys.executable, __file__, work], check=True, env=path)
            return list(np.load(Path(work, "masks.npy")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
