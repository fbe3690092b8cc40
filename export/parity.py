"""Parity: PyTorch and the exported files, on the same photographs and prompts, stage by stage.

Each case feeds both halves what PyTorch feeds them, so that an error of the encoder is not blamed on
the decoder; "end to end" then chains the exported halves, as a device does.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pocketsam import constants
from pocketsam.errors import ParityError
from pocketsam.export.metrics import Row, Tolerance, mask_figures, tensor_figures, tensor_ok
from pocketsam.export.traced import Decoder, Encoder, run
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.image import preprocess, preprocess_raw
from pocketsam.runtime.masks import Upscaler
from pocketsam.runtime.prompts import assemble

Arrays = dict[str, NDArray[Any]]
Call = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Artefact:
    """An exported bundle as callables, whatever its format: dict of arrays in, dict of arrays out.

    Attributes:
        encoder, decoder: the files as they are.
        encoder_stages, decoder_stages: the same, with the stages among their outputs.
        stages: names of the stages that the files say they hold.
        runner: what runs them.
    """

    encoder: Call
    decoder: Call
    encoder_intermediates: Call
    decoder_intermediates: Call
    intermediates: frozenset[str]
    runner: str


@dataclass(frozen=True)
class Prompt:
    """B prompts in fractions of the image's width and height."""

    name: str
    points: list[list[tuple[float, float, int]]] | None = None  # [B][N] (x, y, label)
    boxes: list[tuple[float, float, float, float]] | None = None  # [B]
    with_mask: bool = False
    has_mask: float = 0.0


PROMPTS = (
    Prompt("point", [[(0.5, 0.5, 1)]]),
    Prompt("corner points", [[(0, 0, 1), (1, 1, 1)]]),
    Prompt("foreground and background", [[(0.4, 0.3, 1), (0.8, 0.9, 0)]]),
    Prompt("nine points", [[(x / 4, y / 4, (x + y) % 2) for x in (1, 2, 3) for y in (1, 2, 3)]]),
    Prompt("box", boxes=[(0.2, 0.1, 0.7, 0.9)]),
    Prompt("whole image as box", boxes=[(0, 0, 1, 1)]),
    Prompt("box and points", [[(0.5, 0.4, 1), (0.6, 0.6, 0)]], [(0.3, 0.2, 0.8, 0.8)]),
    Prompt("point and mask", [[(0.5, 0.5, 1)]], with_mask=True, has_mask=1.0),
    Prompt("mask alone", with_mask=True, has_mask=1.0),
    Prompt("no prompt"),
    Prompt("has_mask_input -1", [[(0.5, 0.5, 1)]], with_mask=True, has_mask=-1.0),
    Prompt("batch of points", [[(0.2, 0.3, 1)], [(0.5, 0.6, 1)], [(0.9, 0.8, 0)]]),
    Prompt("batch of boxes", boxes=[(0.1, 0.1, 0.4, 0.5), (0.5, 0.2, 0.9, 0.9)]),
)


class Report:
    """Rows in the order in which the network computes their tensors."""

    def __init__(self, tolerance: Tolerance, runner: str) -> None:
        self.tolerance = tolerance
        self.runner = runner
        self.cases = 0
        self._rows: dict[tuple[str, str], Row] = {}

    @property
    def rows(self) -> list[Row]:
        """Encoder, decoder, end to end; within each, in order of computation."""
        order = ["encoder", "decoder", "end to end"]
        return sorted(self._rows.values(), key=lambda row: order.index(row.part))

    @property
    def failed(self) -> list[Row]:
        """The rows outside the tolerance; the first is the first tensor that diverges."""
        return [row for row in self.rows if not row.ok]

    def add_tensor(
        self, part: str, name: str, case: str, expected: NDArray[Any], found: NDArray[Any] | None
    ) -> None:
        """Compares a tensor, and keeps the figures if they are the worst so far."""
        absent = np.full(expected.shape, np.nan) if found is None else found
        figures = tensor_figures(expected, absent)
        row = self._rows.setdefault((part, name), Row(part, name))
        row.ok &= tensor_ok(figures, self.tolerance)
        if not row.figures or figures["error"] > row.figures["error"]:
            row.figures, row.worst_case = figures, case

    def add_masks(self, part: str, case: str, figures: dict[str, Any], tie: float) -> None:
        """Adds a case's masks; ``tie`` is how near to each other the reference's best scores are."""
        row = self._rows.setdefault((part, "masks"), Row(part, "masks"))
        # Scores nearer to each other than the error they may have are a tie, and either may win.
        same = figures["same_best"] == figures["prompts"] or tie <= self.tolerance.error
        row.ok &= figures["iou"] >= self.tolerance.mask_iou and same
        if not row.figures or figures["iou"] < row.figures["iou"]:
            row.worst_case = case
        old = row.figures or {"iou": 1.0}
        row.figures = {key: old.get(key, 0) + value for key, value in figures.items()}
        row.figures["iou"] = min(old["iou"], figures["iou"])

    def to_json(self) -> dict[str, Any]:
        """For the manifest and ``--json``; figures to three significant digits."""

        def short(value: Any) -> Any:
            if isinstance(value, float):
                return float(f"{value:.3g}") if np.isfinite(value) else str(value)
            return value

        rows = [
            {"part": r.part, "tensor": r.tensor, "ok": r.ok, "worst_case": r.worst_case}
            | {
                k: v if k in ("iou", "cosine") and np.isfinite(v) else short(v)
                for k, v in r.figures.items()
            }
            for r in self.rows
        ]
        return {
            "reference": "pytorch fp32",
            "runner": self.runner,
            "passed": not self.failed,
            "cases": self.cases,
            "tolerance": asdict(self.tolerance),
            "rows": rows,
        }

    def raise_if_failed(self) -> None:
        """Raises ParityError that names the first tensor that diverges."""
        if self.failed:
            raise ReportedParityError(self)


class ReportedParityError(ParityError):
    """Parity failed; ``report`` holds the figures."""

    def __init__(self, report: Report) -> None:
        first = report.failed[0]
        super().__init__(
            f"{len(report.failed)} of {len(report.rows)} tensors are outside the tolerance; "
            f"the first that diverges is {first.name} (case: {first.worst_case})"
        )
        self.report = report


@torch.inference_mode()
def reference_masks(
    low_res: NDArray[np.float32], original_size: tuple[int, int], image_size: int
) -> NDArray[np.float32]:
    """``Sam.postprocess_masks`` in torch: ``[B, C, S/4, S/4]`` to ``[B, C, H, W]`` logits."""
    height, width = constants.resized_shape(*original_size, image_size)
    canvas = F.interpolate(torch.from_numpy(low_res), (image_size, image_size), mode="bilinear")
    masks = F.interpolate(canvas[..., :height, :width], original_size, mode="bilinear")
    return masks.numpy()


def encoder_feeds(photo: NDArray[np.uint8], image_size: int) -> Arrays:
    """The inputs of any encoder of ours: the normalised tensor, and the picture as it is."""
    return {c.PIXEL_VALUES: preprocess(photo, image_size)} | preprocess_raw(photo, image_size)


def decoder_feeds(
    prompt: Prompt,
    embedding: NDArray[np.float32],
    mask: NDArray[np.float32],
    size: tuple[int, int],
    image_size: int,
) -> Arrays:
    """The decoder's inputs for a prompt on an image of ``size`` (H, W).

    Args:
        prompt: what to ask.
        embedding: ``[1, 256, S/16, S/16]``.
        mask: ``[1, 1, S/4, S/4]`` logits, used if the prompt wants a mask input.
        size: (H, W) of the image.
        image_size: S.
    """
    height, width = size
    points = labels = boxes = None
    if prompt.points is not None:
        array = np.array(prompt.points, np.float32)
        points, labels = array[..., :2] * (width, height), array[..., 2]
    if prompt.boxes is not None:
        boxes = np.array(prompt.boxes, np.float32) * (width, height, width, height)
    coords, labels = assemble(points, labels, boxes, size, image_size)
    batch = len(coords)
    mask_input = mask if prompt.with_mask else np.zeros_like(mask)
    return {
        c.IMAGE_EMBEDDINGS: embedding,
        c.POINT_COORDS: coords,
        c.POINT_LABELS: labels,
        c.MASK_INPUT: np.repeat(mask_input, batch, axis=0),
        c.HAS_MASK_INPUT: np.full(batch, prompt.has_mask, np.float32),
        c.ORIG_IM_SIZE: np.array(size, np.float32),
    }


def verify(
    model: Sam,
    artefact: Artefact,
    photos: Iterable[tuple[str, NDArray[np.uint8]]],
    tolerance: Tolerance,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Runs PyTorch and the artefact on each photograph with each of ``PROMPTS``.

    Args:
        model: the reference, in eval mode.
        artefact: the exported files.
        photos: names and ``[H, W, 3]`` uint8 images.
        tolerance: what they may differ by.
        progress: called with the name of each photograph.
    """
    report = Report(tolerance, artefact.runner)
    for name, photo in photos:
        progress(name)
        _verify_photo(report, model, artefact, name, photo)
    return report


def _verify_photo(
    report: Report, model: Sam, artefact: Artefact, name: str, photo: NDArray[np.uint8]
) -> None:
    size = (photo.shape[0], photo.shape[1])
    feeds = encoder_feeds(photo, model.image_size)
    outputs, intermediates = run(Encoder(model), feeds)
    _compare_intermediates(report, artefact, "encoder", name, intermediates, feeds)
    embedding = artefact.encoder(feeds)[c.IMAGE_EMBEDDINGS]
    report.add_tensor("encoder", c.IMAGE_EMBEDDINGS, name, outputs[c.IMAGE_EMBEDDINGS], embedding)

    side = model.image_size // 4
    mask = np.zeros((1, 1, side, side), np.float32)
    upscaler = Upscaler(model.image_size, size)
    for prompt in PROMPTS:
        report.cases += 1
        case = f"{name}, {prompt.name}"
        feeds = decoder_feeds(prompt, outputs[c.IMAGE_EMBEDDINGS], mask, size, model.image_size)
        expected_outputs, intermediates = run(Decoder(model), feeds)
        _compare_intermediates(report, artefact, "decoder", case, intermediates, feeds)
        low_res = expected_outputs[c.LOW_RES_MASKS]
        full = reference_masks(low_res, size, model.image_size)
        _compare_masks(
            report, "decoder", case, expected_outputs, full, artefact.decoder(feeds), upscaler
        )

        chained = artefact.decoder(feeds | {c.IMAGE_EMBEDDINGS: embedding})
        chained.pop(c.MASKS, None)  # as a device does it
        _compare_masks(report, "end to end", case, expected_outputs, full, chained, upscaler)
        mask = low_res[:1, 1:2]  # the next prompt that takes a mask gets a real one


def _compare_intermediates(
    report: Report, artefact: Artefact, part: str, case: str, intermediates: Arrays, feeds: Arrays
) -> None:
    held = [intermediate for intermediate in intermediates if intermediate in artefact.intermediates]
    if held:
        found = getattr(artefact, f"{part}_intermediates")(feeds)
        for intermediate in held:
            value, expected = found.get(intermediate), intermediates[intermediate]
            if value is not None and value.ndim == 3:  # tokens: static shapes have places to spare
                value = value[:, : expected.shape[1]]
            report.add_tensor(part, intermediate, case, expected, value)


def _compare_masks(
    report: Report,
    part: str,
    case: str,
    expected: Arrays,
    full: NDArray[np.float32],
    found: Arrays,
    upscaler: Upscaler,
) -> None:
    scores = expected[c.IOU_PREDICTIONS], found[c.IOU_PREDICTIONS]
    for name in (c.IOU_PREDICTIONS, c.LOW_RES_MASKS):
        report.add_tensor(part, name, case, expected[name], found[name])
    if c.MASKS not in found:  # formats with static shapes leave the upscaling to the application
        found[c.MASKS] = np.array(
            [[upscaler.logits(low) for low in lows] for lows in found[c.LOW_RES_MASKS]]
        )
    report.add_tensor(part, "mask logits", case, full, found[c.MASKS])
    ranked = np.sort(scores[0], axis=1)
    tie = float((ranked[:, -1] - ranked[:, -2]).min())
    figures = mask_figures(
        full > constants.MASK_THRESHOLD, found[c.MASKS] > constants.MASK_THRESHOLD, scores
    )
    report.add_masks(part, case, figures, tie)
