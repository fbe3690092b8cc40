"""The cases of the drop-in matrix, and the reference's answers to them; see ``drop_in_tools.py``."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conftest import import_mobile_sam
from PIL import Image
from skimage import data

from pocketsam.models.checkpoint import DEFAULT, load_model

SIDE = 1024


@dataclass(frozen=True)
class Prompt:
    """Marks in the form of samexporter and rembg; ``refines``: asked again with the mask of the first
    answer as mask input."""

    marks: list[dict]
    refines: bool = False


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
REFINED = {"click, refined": "click", "two clicks, refined": "two clicks"}
"""Prompts that are asked again with the mask of the first answer; tools have it for points only."""
CASES = {name: (marks, False) for name, marks in PROMPTS.items()} | {
    name: (PROMPTS[first], True) for name, first in REFINED.items()
}
CHOICES: dict[str, Callable[[int, bool], bool]] = {
    "usual": lambda clicks, box: clicks == 1 and not box,
    "three": lambda clicks, box: True,
    "single": lambda clicks, box: False,
    "points": lambda clicks, box: not box,
}
"""When a tool takes the best-scored of three masks, by the number of clicks and whether there is a box;
otherwise it takes the single mask."""


def pictures() -> dict[str, np.ndarray]:
    cat = data.chelsea()
    return {
        "landscape": cat,
        "portrait": np.ascontiguousarray(data.astronaut()[:, 100:400]),
        "panorama 4:1": np.ascontiguousarray(data.rocket()[100:260]),
        "33x47": np.asarray(Image.fromarray(cat).resize((47, 33))),
    }


def prompts_on(image: np.ndarray, names: Iterable[str]) -> list[Prompt]:
    """Prompts in whole pixels of a picture."""
    height, width = image.shape[:2]
    scale = [width, height, width, height]
    found = []
    for name in names:
        marks, refines = CASES[name]
        placed = [
            mark | {"data": [int(n * side) for n, side in zip(mark["data"], scale, strict=False)]}
            for mark in marks
        ]
        found.append(Prompt(placed, refines))
    return found


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


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """The IoU of two masks; 1 where they differ by a single pixel, which is rounding."""
    if np.count_nonzero(one ^ other) <= 1:
        return 1.0
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


class Reference:
    """The reference network, as ``SamPredictor`` and in place of a tool's sessions."""

    def __init__(self) -> None:
        self.module = import_mobile_sam()
        self.model = self.module.sam_model_registry["vit_t"]()
        self.model.load_state_dict(load_model(DEFAULT, SIDE).model.state_dict())
        self.model.eval()
        self.predictors: dict[bytes, Any] = {}
        self.calls: Counter[str] = Counter()
        """How often the sessions were asked that stand in a tool's place."""

    def predictor(self, image: np.ndarray) -> Any:
        """A ``SamPredictor`` that has seen a picture; kept, as every tool is asked about the same."""
        key = image.tobytes()
        if key not in self.predictors:
            self.predictors[key] = self.module.SamPredictor(self.model)
            self.predictors[key].set_image(image)
        return self.predictors[key]

    def masks(self, image: np.ndarray, prompts: list[Prompt], choice: str) -> list[np.ndarray]:
        """``[H, W]`` masks, chosen as ``CHOICES`` says; a refined one is the single mask."""
        predictor, found = self.predictor(image), []
        for prompt in prompts:
            points, labels = points_of(prompt.marks)
            clicks, corners = labels < 2, points[labels >= 2]
            asked = {
                "point_coords": points[clicks] if clicks.any() else None,
                "point_labels": labels[clicks] if clicks.any() else None,
                "box": corners.ravel() if len(corners) else None,
            }
            several = CHOICES[choice](int(clicks.sum()), len(corners) > 0)
            masks, scores, low = predictor.predict(**asked, multimask_output=several)
            if prompt.refines:
                best = low[scores.argmax()][None]
                masks, scores, _ = predictor.predict(**asked, mask_input=best, multimask_output=False)
            found.append(masks[scores.argmax()])
        return found

    def encoder(self, layout: str, name: str = "input_image") -> Any:
        """The encoder as a session: ``HWC`` or ``NCHW`` pictures, or ``pixels``."""

        @torch.inference_mode()
        def run(output_names: Any, input_feed: dict) -> list[np.ndarray]:
            self.calls["encoder"] += 1
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

    def decode(
        self, embedding: torch.Tensor, points: torch.Tensor, labels: torch.Tensor, choice: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution masks and scores of points ``[1, N, 2]``, labels ``[1, N]``; -1 left out."""
        keep = labels[0] != -1
        points, labels = points[:, keep], labels[:, keep].float()
        corners, clicks = points[:, labels[0] >= 2], labels[0] < 2
        sparse, dense = self.model.prompt_encoder(
            points=(points[:, clicks], labels[:, clicks]) if clicks.any() else None,
            boxes=corners.reshape(1, 4) if corners.numel() else None,
            masks=None,
        )
        low, scores = self.model.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=CHOICES[choice](int(clicks.sum()), corners.numel() > 0),
        )
        return low, scores

    def decoder(self, answers: str = "official", choice: str = "usual") -> Any:
        """The decoder as a session."""

        @torch.inference_mode()
        def run(output_names: Any, input_feed: dict) -> list[np.ndarray]:
            self.calls["decoder"] += 1
            names = ("image_embeddings", "point_coords", "point_labels")
            low, scores = self.decode(*(torch.from_numpy(input_feed[name]) for name in names), choice)
            best = scores[0].argmax()
            low, scores = low[:, best : best + 1], scores[:, best : best + 1]
            if answers == "low":
                return [scores.numpy(), low.numpy()]
            size = [int(n) for n in input_feed["orig_im_size"]]
            scale = SIDE / max(size)
            used = input_feed.get("used") or [max(1, int(n * scale + 0.5)) for n in size]
            whole = F.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)
            masks = F.interpolate(
                whole[..., : used[0], : used[1]], size, mode="bilinear", align_corners=False
            )
            return [masks.numpy(), scores.numpy(), low.numpy()]

        outputs = [SimpleNamespace(name=n) for n in ("masks", "iou_predictions", "low_res_masks")]
        return SimpleNamespace(get_outputs=lambda: outputs, run=run)

    def one_file(self) -> Any:
        """Both networks as OpenCV's class asks its own."""
        fed: dict[str, torch.Tensor] = {}

        @torch.inference_mode()
        def forward(_names: list[str]) -> list[np.ndarray]:
            self.calls.update(("encoder", "decoder"))
            image, points, labels = fed.values()
            embedding = self.model.image_encoder(self.model.preprocess(image * 255))
            low, scores = self.decode(embedding, points[0], labels[0, ..., 0], "three")
            masks = F.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)
            return [masks[None].numpy(), scores[None].numpy()]

        def feed(array: np.ndarray, name: str) -> None:
            fed[name] = torch.from_numpy(np.array(array, np.float32))

        return SimpleNamespace(setInput=feed, forward=forward)
