"""Tools that run MobileSAM in PyTorch, from a ``.pt``, behind ``ask``; see ``drop_in_tools.py``."""

import importlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from drop_in_python import ENVIRONMENT, Tool
from drop_in_reference import REFINED, Prompt, Reference, points_of
from PIL import Image

FILE = "mobile_sam.pt"


class LabelStudio(Tool):
    """The backend's ``SAMPredictor``, without the server; it takes the single mask of any prompt."""

    choice = "single"

    def __init__(self, folder: Path, source: Path) -> None:
        os.environ["MOBILESAM_CHECKPOINT"] = str(folder / FILE)
        example = source / "label_studio_ml/examples/segment_anything_model"
        sys.path[:0] = [str(source), str(example)]
        self.module = importlib.import_module("sam_predictor")
        self.predictor = self.module.SAMPredictor("MobileSAM")

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        masks = []
        with tempfile.TemporaryDirectory() as work:
            photo = str(Path(work) / "photo.png")
            Image.fromarray(image).save(photo)
            for prompt in prompts:
                points, labels = points_of(prompt.marks)
                clicks, corners = labels < 2, points[labels >= 2]
                found = self.predictor.predict(
                    photo,
                    points[clicks].tolist(),
                    labels[clicks].tolist(),
                    corners.ravel().tolist(),
                    task={"id": 1},
                    path_resolver=lambda path, task_id: path,
                )
                masks.append(found["masks"][0] > 0)
        return masks

    def inside(self, reference: Reference, cases: dict) -> dict[str, list[np.ndarray]]:
        """The masks with the reference's weights in the place of the file: the backend never calls
        ``eval`` after it has loaded them, so TinyViT's attention runs without its biases."""
        with tempfile.TemporaryDirectory() as work:
            self.module.MOBILESAM_CHECKPOINT = Path(work) / FILE
            torch.save(reference.model.state_dict(), self.module.MOBILESAM_CHECKPOINT)
            self.predictor = self.module.SAMPredictor("MobileSAM")
        return {label: self.ask(*case) for label, case in cases.items()}


class Isat(Tool):
    """Of clicks, the tool asks again with the best mask of the first answer; a box is asked alone."""

    asks, choice = ("box", *REFINED), "points"

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(ENVIRONMENT / "isat"))
        from ISAT.segment_any.segment_any import SegAny

        self.model = SegAny(str(folder / FILE), use_bfloat16=False)  # as its settings have it

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        self.model.set_image(image)
        masks = []
        for prompt in prompts:
            points, labels = points_of(prompt.marks)
            if prompt.refines:
                found = self.model.predict_with_point_prompt(points, labels)
            else:
                found = self.model.predict_with_box_prompt(points.ravel())
            masks.append(found[0])
        return masks
