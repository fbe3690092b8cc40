"""Runs the unmodified code of other tools on files that ``pocketsam export --for`` made.

    .venv-drop-in/bin/python tests/drop_in_tools.py FOLDER [TOOL ...]

``FOLDER`` gets a directory for each tool. Each of four pictures and four prompts is asked in the tool,
and the masks are compared with ``SamPredictor`` of mobilesam-mirror. Where a tool's own resize changes
masks, the second column says whether the files are at fault: there the tool's code runs with the
reference network in place of the files. ``make drop-in`` makes the environment and calls this.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conftest import import_mobile_sam
from PIL import Image
from skimage import data

from pocketsam.export.drop_in.tools import find_tool
from pocketsam.export.drop_in.write import write_drop_in
from pocketsam.export.reference import Reference as Exported
from pocketsam.models.checkpoint import DEFAULT, load_model

SIDE, THREADS = 1024, 2
ENVIRONMENT = Path(sys.prefix)
PROMPTS: dict[str, list[dict]] = {
    "click": [{"type": "point", "data": [0.5, 0.5], "label": 1}],
    "two clicks": [
        {"type": "point", "data": [0.45, 0.4], "label": 1},
        {"type": "point", "data": [0.85, 0.9], "label": 0},
    ],
    "box": [{"type": "rectangle", "data": [0.2, 0.15, 0.75, 0.85]}],
    "box and click": [
        {"type": "rectangle", "data": [0.2, 0.15, 0.75, 0.85]},
        {"type": "point", "data": [0.5, 0.5], "label": 1},
    ],
}
"""In the form of samexporter and rembg, in fractions of width and height."""


def pictures() -> dict[str, np.ndarray]:
    cat = data.chelsea()
    return {
        "landscape": cat,
        "portrait": np.ascontiguousarray(data.astronaut()[:, 100:400]),
        "panorama 4:1": np.ascontiguousarray(data.rocket()[100:260]),
        "33x47": np.asarray(Image.fromarray(cat).resize((47, 33))),
    }


def placed(marks: list[dict], image: np.ndarray) -> list[dict]:
    """Prompts in whole pixels of a picture."""
    height, width = image.shape[:2]
    scale = [width, height, width, height]
    return [
        mark | {"data": [int(n * side) for n, side in zip(mark["data"], scale, strict=False)]}
        for mark in marks
    ]


def points_of(marks: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """``[N, 2]`` points and ``[N]`` labels, a box as two points with the labels 2 and 3."""
    points, labels = [], []
    for mark in marks:
        if mark["type"] == "point":
            points.append(mark["data"])
            labels.append(mark["label"])
        else:
            points += [mark["data"][:2], mark["data"][2:]]
            labels += [2, 3]
    return np.array(points, np.float32), np.array(labels, np.float32)


class Reference:
    """The reference network, as ``SamPredictor`` and in place of a tool's sessions."""

    def __init__(self) -> None:
        self.module = import_mobile_sam()
        self.model = self.module.sam_model_registry["vit_t"]()
        self.model.load_state_dict(load_model(DEFAULT, SIDE).model.state_dict())
        self.model.eval()

    def masks(self, image: np.ndarray, prompts: list[list[dict]], three: bool) -> list[np.ndarray]:
        """``[H, W]`` masks: of a single click, or with ``three``, the best-scored of three, else the
        single mask."""
        predictor = self.module.SamPredictor(self.model)
        predictor.set_image(image)
        found = []
        for marks in prompts:
            points, labels = points_of(marks)
            clicks, corners = labels < 2, points[labels >= 2]
            several = three or bool(clicks.sum() == 1 and not len(corners))
            masks, scores, _ = predictor.predict(
                point_coords=points[clicks] if clicks.any() else None,
                point_labels=labels[clicks] if clicks.any() else None,
                box=corners.ravel() if len(corners) else None,
                multimask_output=several,
            )
            found.append(masks[scores.argmax()])
        return found

    def encoder(self, layout: str, name: str = "input_image") -> Any:
        """The encoder as a session: ``HWC`` or ``NCHW`` pictures, or ``pixels``."""

        @torch.inference_mode()
        def run(output_names: Any, input_feed: dict) -> list[np.ndarray]:
            (array,) = input_feed.values()
            values = torch.from_numpy(np.array(array, np.float32))
            if layout == "HWC":
                values = values.permute(2, 0, 1)[None]
            if layout != "pixels":
                values = self.model.preprocess(values)
            return [self.model.image_encoder(values).numpy()]

        shape = {"HWC": ["H", "W", 3], "NCHW": [1, 3, "H", "W"], "pixels": [1, 3, SIDE, SIDE]}[layout]
        kind = "tensor(uint8)" if layout == "NCHW" else "tensor(float)"
        entry = SimpleNamespace(name=name, shape=shape, type=kind)
        return SimpleNamespace(get_inputs=lambda: [entry], run=run)

    def decoder(self, answers: str = "official", three: bool = False) -> Any:
        """The decoder as a session."""

        @torch.inference_mode()
        def run(output_names: Any, input_feed: dict) -> list[np.ndarray]:
            points, labels = (
                torch.from_numpy(input_feed[name]) for name in ("point_coords", "point_labels")
            )
            labels = labels.float()
            keep = labels[0] != -1
            points, labels = points[:, keep], labels[:, keep]
            corners, clicks = points[:, labels[0] >= 2], labels[0] < 2
            sparse, dense = self.model.prompt_encoder(
                points=(points[:, clicks], labels[:, clicks]) if clicks.any() else None,
                boxes=corners.reshape(1, 4) if corners.numel() else None,
                masks=None,
            )
            low, scores = self.model.mask_decoder(
                image_embeddings=torch.from_numpy(input_feed["image_embeddings"]),
                image_pe=self.model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=three or bool(clicks.sum() == 1 and not corners.numel()),
            )
            best = scores[0].argmax()
            low, scores = low[:, best : best + 1], scores[:, best : best + 1]
            if answers == "low":
                return [scores.numpy(), low.numpy()]
            size = [int(n) for n in input_feed["orig_im_size"]]
            scale = SIDE / max(size)
            used = [max(1, int(n * scale + 0.5)) for n in size]
            whole = F.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)
            masks = F.interpolate(
                whole[..., : used[0], : used[1]], size, mode="bilinear", align_corners=False
            )
            return [masks.numpy(), scores.numpy(), low.numpy()]

        outputs = [SimpleNamespace(name=n) for n in ("masks", "iou_predictions", "low_res_masks")]
        return SimpleNamespace(get_outputs=lambda: outputs, run=run)


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


class AnyLabeling:
    package, layout = "anylabeling", "HWC"

    def __init__(self, folder: Path) -> None:
        module = module_of(self.package, "anylabeling.services.auto_labeling.sam_onnx")
        self.model = module.SegmentAnythingONNX(
            str(folder / "encoder.onnx"), str(folder / "decoder.onnx")
        )

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model.encoder_session, self.model.decoder_session = encoder, decoder

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        embedding = self.model.encode(image)
        return [self.model.predict_masks(embedding, marks)[0, 0] > 0 for marks in prompts]


class XAnyLabeling(AnyLabeling):
    package = "x-anylabeling"

    def swap(self, encoder: Any, decoder: Any) -> None:
        super().swap(encoder, decoder)
        self.encoder = encoder

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        if hasattr(self, "encoder"):  # the tool drops its session after each picture
            self.model.encoder_session = self.encoder
        return super().ask(image, prompts)


class EdgeSam:
    package, layout = "x-anylabeling", "NCHW"

    def __init__(self, folder: Path) -> None:
        module = module_of(self.package, "anylabeling.services.auto_labeling.__base__.sam")
        paths = str(folder / "encoder.onnx"), str(folder / "decoder.onnx")
        self.model = module.EdgeSAMONNX(*paths, SIDE)

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model.encoder_session, self.model.decoder_session = encoder, decoder
        self.model.encoder_input_name = "input_image"

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        embedding = self.model.encode(image)
        return [self.model.predict_masks(embedding, marks) for marks in prompts]


class Rembg:
    layout = "HWC"

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from rembg.sessions.sam import SamSession

        os.environ["U2NET_HOME"] = str(folder)
        self.session = SamSession("sam", onnxruntime.SessionOptions())

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.session.encoder, self.session.decoder = encoder, decoder

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        picture = Image.fromarray(image)
        found = [self.session.predict(picture, sam_prompt=marks)[0] for marks in prompts]
        return [np.asarray(mask) > 0 for mask in found]


class Osam:
    layout = "pixels"

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

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        from osam import types

        masks = []
        for marks in prompts:
            points, labels = points_of(marks)
            prompt = types.Prompt(points=points, point_labels=labels.astype(int))
            request = types.GenerateRequest(model="sam:100m", image=image, prompt=prompt)
            found = self.model.generate(request).annotations[0]
            box, mask = found.bounding_box, np.zeros(image.shape[:2], bool)
            mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = found.mask
            masks.append(mask)
        return masks


class Samexporter:
    layout = "HWC"

    def __init__(self, folder: Path) -> None:
        from samexporter.sam_onnx import SegmentAnythingONNX

        self.model = SegmentAnythingONNX(str(folder / "encoder.onnx"), str(folder / "decoder.onnx"))

    def swap(self, encoder: Any, decoder: Any) -> None:
        self.model.encoder_session, self.model.decoder_session = encoder, decoder
        self.model.encoder_input_name = "input_image"

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        embedding = self.model.encode(np.ascontiguousarray(image[..., ::-1]))
        return [self.model.predict_masks(embedding, marks)[0, 0] > 0 for marks in prompts]


class TransformersJs:
    """In Node; it gives three masks. ``inside`` asks the reference with the tool's own tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: list[tuple[np.ndarray, list[list[float]]]] = []

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as work:
            asked = [[part.tolist() for part in points_of(marks)] for marks in prompts]
            job = {"shape": image.shape, "prompts": asked, "model": str(self.folder.resolve())}
            Path(work, "job.json").write_text(json.dumps(job))
            Path(work, "image.raw").write_bytes(np.ascontiguousarray(image).tobytes())
            script = Path(__file__).with_name("drop_in_transformers.mjs")
            subprocess.run(["node", str(script), work], check=True, cwd=ENVIRONMENT / "node")
            raw = np.frombuffer(Path(work, "masks.raw").read_bytes(), np.uint8)
            pixels = np.frombuffer(Path(work, "pixels.raw").read_bytes(), np.float32)
            points = json.loads(Path(work, "points.json").read_text())
        self.tensors.append((pixels.reshape(1, 3, SIDE, SIDE), points))
        return list(raw.reshape(len(prompts), *image.shape[:2]) > 0)

    def inside(self, reference: "Reference", cases: dict) -> dict[str, list[np.ndarray]]:
        """The reference's masks of what the tool made of the same pictures and prompts."""
        encoder, decoder = reference.encoder("pixels"), reference.decoder(three=True)
        found = {}
        for (label, (image, prompts)), (pixels, points) in zip(
            cases.items(), self.tensors, strict=True
        ):
            (embedding,) = encoder.run(None, {"x": pixels})
            masks = []
            for marks, coords in zip(prompts, points, strict=True):
                feeds = {
                    "image_embeddings": embedding,
                    "point_coords": np.array(coords, np.float32).reshape(1, -1, 2),
                    "point_labels": points_of(marks)[1][None],
                    "orig_im_size": np.array(image.shape[:2], np.float32),
                }
                masks.append(decoder.run(None, feeds)[0][0, 0] > 0)
            found[label] = masks
        return found


class Cvat:
    """The function's ``embed``, then the plugin's worker in Node, which ``WORKER`` names."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.decoder = str((folder / "decoder.onnx").resolve())
        sys.path.insert(0, str(folder / "nuclio"))
        self.function = importlib.import_module("main")
        self.encoder = onnxruntime.InferenceSession(str(folder / "nuclio/encoder.onnx"))

    def ask(self, image: np.ndarray, prompts: list[list[dict]]) -> list[np.ndarray]:
        height, width = image.shape[:2]
        asked = []
        for marks in prompts:
            points, labels = points_of(sorted(marks, key=lambda mark: mark["type"] == "point"))
            coords = (points * (SIDE / max(height, width))).tolist()
            asked.append({"coords": coords, "labels": labels.tolist(), "refines": False})
        job = {"decoder": self.decoder, "width": width, "height": height, "prompts": asked}
        with tempfile.TemporaryDirectory() as work:
            embedding = self.function.embed(self.encoder, Image.fromarray(image))
            Path(work, "embedding.raw").write_bytes(embedding.tobytes())
            Path(work, "job.json").write_text(json.dumps(job))
            script = Path(__file__).with_name("drop_in_cvat.mjs")
            command = ["node", str(script), work, str(WORKER.resolve())]
            subprocess.run(command, check=True, cwd=ENVIRONMENT / "node")
            found = json.loads(Path(work, "found.json").read_text())
        masks = []
        for entry in found:
            (left, top, right, bottom), mask = entry["bounds"], np.zeros((height, width), bool)
            shape = bottom - top + 1, right - left + 1
            mask[top : bottom + 1, left : right + 1] = np.reshape(entry["points"], shape) > 0
            masks.append(mask)
        return masks


WORKER = Path("build/drop-in/inference.worker.ts")
"""CVAT's, of the commit that the Makefile names; where it could not be fetched, CVAT is left out."""
TOOLS: dict[str, tuple[Any, str]] = {
    "anylabeling": (AnyLabeling, "anylabeling"),
    "x-anylabeling": (XAnyLabeling, "x-anylabeling-cvhub"),
    "edge-sam": (EdgeSam, "x-anylabeling-cvhub"),
    "rembg": (Rembg, "rembg"),
    "osam": (Osam, "osam"),
    "samexporter": (Samexporter, "samexporter"),
    "transformersjs": (TransformersJs, "@huggingface/transformers"),
    "cvat": (Cvat, "199dc89"),
}


def version_of(package: str) -> str:
    """The version of a package of this environment, one of its folders, or Node's."""
    if package == TOOLS["cvat"][1]:
        return f"commit {package}"
    if package.startswith("@"):
        about = ENVIRONMENT / "node/node_modules" / package / "package.json"
        return str(json.loads(about.read_text())["version"])
    folder = ENVIRONMENT / package.removesuffix("-cvhub")
    found = sorted(folder.glob("*.dist-info")) if folder.is_dir() else []
    return found[0].name.removesuffix(".dist-info").rsplit("-", 1)[1] if found else version(package)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """The IoU of two masks; 1 where they differ by a single pixel, which is rounding."""
    if np.count_nonzero(one ^ other) <= 1:
        return 1.0
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def measure(name: str, folder: Path, reference: Reference, exported: Exported) -> dict[str, Any]:
    """IoU of each case with ``SamPredictor``, and with the reference network inside the tool."""
    make, package = TOOLS[name]
    directory = folder / name
    write_drop_in(exported, directory, find_tool(name), "fp32", force=True)
    tool = make(directory)
    cases = {
        label: (image, [placed(marks, image) for marks in PROMPTS.values()])
        for label, image in pictures().items()
    }
    found = {label: tool.ask(*case) for label, case in cases.items()}
    three = name == "transformersjs"
    official = {label: reference.masks(*case, three) for label, case in cases.items()}
    inside = tool.inside(reference, cases) if hasattr(tool, "inside") else official
    if hasattr(tool, "swap"):
        name_of_input = "x" if name == "osam" else "input_image"
        answers = "low" if name == "edge-sam" else "official"
        tool.swap(reference.encoder(tool.layout, name_of_input), reference.decoder(answers))
        inside = {label: tool.ask(*case) for label, case in cases.items()}

    def ious(others: dict) -> dict[str, float]:
        return {
            f"{label}, {prompt}": iou(mask, other)
            for label in cases
            for prompt, mask, other in zip(PROMPTS, found[label], others[label], strict=True)
        }

    version = version_of(package)
    return {"tool": name, "version": version, "with_predictor": ious(official), "inside": ious(inside)}


def main(folder: str, *names: str) -> int:
    torch.set_num_threads(THREADS)
    reference, exported, rows = Reference(), Exported(DEFAULT, SIDE), []
    if not WORKER.is_file():
        print(f"{WORKER} is not there: CVAT is left out", file=sys.stderr)
    for name in names or [name for name in TOOLS if name != "cvat" or WORKER.is_file()]:
        rows.append(measure(name, Path(folder), reference, exported))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    count = f"{len(pictures())} pictures x {len(PROMPTS)} prompts"
    print(f"canvas {SIDE}, checkpoint default, fp32, {count}\n")
    print("| tool | version | worst IoU with `SamPredictor` | with the reference in the files' place |")
    print("|---|---|---|---|")
    bad = 0
    for row in rows:
        ends = [row["with_predictor"].items(), row["inside"].items()]
        worst, inside = (min(items, key=lambda entry: entry[1]) for items in ends)
        own = "-" if row["inside"] == row["with_predictor"] else f"{inside[1]:.4f}"
        print(f"| {row['tool']} | {row['version']} | {worst[1]:.4f} ({worst[0]}) | {own} |")
        bad += not inside[1] >= 0.99
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
