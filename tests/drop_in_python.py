"""Tools that run ONNX in Python, each behind ``ask``; see ``drop_in_tools.py``.

``ask`` gives a mask ``[H, W]`` for each prompt; ``swap`` puts the reference network in the place of the
files.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from drop_in_reference import PROMPTS, SIDE, Prompt, points_of
from PIL import Image

ENVIRONMENT = Path(sys.prefix)


def module_of(package: str, name: str) -> Any:
    """A module of a package whose ``__init__`` opens a window, without it."""
    root = ENVIRONMENT / package
    for found in [key for key in sys.modules if key.split(".")[0] == "anylabeling"]:
        del sys.modules[found]
    sys.path.insert(0, str(root))
    parts = name.split(".")
    for depth in range(2, len(parts)):
        inner = ".".join(parts[:depth])
        empty = ModuleType(inner)
        empty.__path__ = [str(root.joinpath(*parts[:depth]))]
        sys.modules[inner] = empty
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(root))


class Tool:
    """What most tools have in common: their prompts, and which of the masks they take."""

    asks, choice = tuple(PROMPTS), "usual"
    layout, input_name, answers = "HWC", "input_image", "official"


class AnyLabeling(Tool):
    package = "anylabeling"

    def __init__(self, folder: Path) -> None:
        module = module_of(self.package, "anylabeling.services.auto_labeling.sam_onnx")
        self.model = module.SegmentAnythingONNX(
            str(folder / "encoder.onnx"), str(folder / "decoder.onnx")
        )

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model.encoder_session, self.model.decoder_session = encoder, decoder

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        embedding = self.model.encode(image)
        return [self.model.predict_masks(embedding, prompt.marks)[0, 0] > 0 for prompt in prompts]


class XAnyLabeling(AnyLabeling):
    package = "x-anylabeling"

    def swap(self, encoder: Any, decoder: Any) -> None:
        super().swap(encoder, decoder)
        self.encoder = encoder

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        if hasattr(self, "encoder"):  # the tool drops its session after each picture
            self.model.encoder_session = self.encoder
        return super().ask(image, prompts)


class EdgeSam(Tool):
    package, layout, answers = "x-anylabeling", "NCHW", "low"

    def __init__(self, folder: Path) -> None:
        module = module_of(self.package, "anylabeling.services.auto_labeling.__base__.sam")
        paths = str(folder / "encoder.onnx"), str(folder / "decoder.onnx")
        self.model = module.EdgeSAMONNX(*paths, SIDE)

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model.encoder_session, self.model.decoder_session = encoder, decoder
        self.model.encoder_input_name = "input_image"

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        embedding = self.model.encode(image)
        return [self.model.predict_masks(embedding, prompt.marks) for prompt in prompts]


class Rembg(Tool):
    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from rembg.sessions.sam import SamSession

        os.environ["U2NET_HOME"] = str(folder)
        self.session = SamSession("sam", onnxruntime.SessionOptions())

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.session.encoder, self.session.decoder = encoder, decoder

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        picture = Image.fromarray(image)
        found = [self.session.predict(picture, sam_prompt=prompt.marks)[0] for prompt in prompts]
        return [np.asarray(mask) > 0 for mask in found]


class Osam(Tool):
    layout, input_name = "pixels", "x"

    def __init__(self, folder: Path) -> None:
        os.environ["HOME"] = tempfile.mkdtemp()
        sys.path.insert(0, str(folder))
        import osam
        import pocketsam_osam

        pocketsam_osam.take_place_of("sam:100m")  # as labelme asks for it
        self.model = osam.apis.get_model_type_by_name("sam:100m")()
        assert isinstance(self.model, pocketsam_osam.PocketSam)

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model._inference_sessions = {"encoder": encoder, "decoder": decoder}

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        from osam import types

        masks = []
        for prompt in prompts:
            points, labels = points_of(prompt.marks)
            asked = types.Prompt(points=points, point_labels=labels.astype(int))
            request = types.GenerateRequest(model="sam:100m", image=image, prompt=asked)
            found = self.model.generate(request).annotations[0]
            box, mask = found.bounding_box, np.zeros(image.shape[:2], bool)
            mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = found.mask
            masks.append(mask)
        return masks


class Samexporter(Tool):
    def __init__(self, folder: Path) -> None:
        from samexporter.sam_onnx import SegmentAnythingONNX

        self.model = SegmentAnythingONNX(str(folder / "encoder.onnx"), str(folder / "decoder.onnx"))

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model.encoder_session, self.model.decoder_session = encoder, decoder
        self.model.encoder_input_name = "input_image"

    def ask(self, image: np.ndarray, prompts: list[Prompt]) -> list[np.ndarray]:
        embedding = self.model.encode(np.ascontiguousarray(image[..., ::-1]))
        return [self.model.predict_masks(embedding, prompt.marks)[0, 0] > 0 for prompt in prompts]
