"""Parity: PyTorch and the exported files, on the same photographs and prompts, tensor by tensor.

Each case feeds both networks what PyTorch feeds them, so that an error of the encoder is not blamed on
the decoder; "end to end" then chains the exported networks, as a device does.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam import constants
from pocketsam.errors import ParityError
from pocketsam.export.cases import Case, DecoderCase
from pocketsam.export.metrics import Row, Tolerance, mask_figures, tensor_figures, tensor_ok
from pocketsam.export.target import Arrays, Call
from pocketsam.runtime import contract as c
from pocketsam.runtime.upscale import Upscaler


@dataclass(frozen=True)
class Artefact:
    """An exported bundle as callables, whatever its format: dict of arrays in, dict of arrays out.

    Attributes:
        encoder, decoder: the files as they are.
        encoder_intermediates, decoder_intermediates: the same, with the intermediate outputs among
            their outputs.
        intermediates: names of the intermediate outputs that the files say they hold.
        runtime_name: what runs them.
        tolerance: what they may differ by.
    """

    encoder: Call
    decoder: Call
    encoder_intermediates: Call
    decoder_intermediates: Call
    intermediates: frozenset[str]
    runtime_name: str
    tolerance: Tolerance


class Report:
    """Rows in the order in which the network computes their tensors."""

    def __init__(self, tolerance: Tolerance, runtime_name: str) -> None:
        self.tolerance = tolerance
        self.runtime_name = runtime_name
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
            "runner": self.runtime_name,
            "passed": not self.failed,
            "cases": self.cases,
            "tolerance": asdict(self.tolerance),
            "rows": rows,
        }

    def raise_if_failed(self) -> None:
        """Raises ParityError that names the first tensor that diverges."""
        if self.failed:
            first = self.failed[0]
            raise ParityError(
                f"{len(self.failed)} of {len(self.rows)} tensors are outside the tolerance; "
                f"the first that diverges is {first.name} (case: {first.worst_case})",
                self,
            )


def verify(
    cases: Iterable[Case],
    artefact: Artefact,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Runs the artefact on each case and compares it with the reference's answers.

    Args:
        cases: the reference's answers.
        artefact: the exported files.
        progress: called with the name of each photograph.
    """
    report = Report(artefact.tolerance, artefact.runtime_name)
    for case in cases:
        progress(case.name)
        _verify_case(report, artefact, case)
    return report


def _verify_case(report: Report, artefact: Artefact, case: Case) -> None:
    feeds = case.feeds
    if held := [name for name in case.intermediates if name in artefact.intermediates]:
        found = artefact.encoder_intermediates(feeds)
        for name in held:
            report.add_tensor("encoder", name, case.name, case.intermediates[name], found.get(name))
    embedding = artefact.encoder(feeds)[c.IMAGE_EMBEDDINGS]
    expected = case.outputs[c.IMAGE_EMBEDDINGS]
    report.add_tensor("encoder", c.IMAGE_EMBEDDINGS, case.name, expected, embedding)
    upscaler = Upscaler(case.image_size, (case.photo.shape[0], case.photo.shape[1]))
    for prompt in case.prompts:
        report.cases += 1
        _compare_decoder_intermediates(report, artefact, prompt)
        full = prompt.mask_logits
        _compare_masks(report, "decoder", prompt, full, artefact.decoder(prompt.feeds), upscaler)
        chained = artefact.decoder(prompt.feeds | {c.IMAGE_EMBEDDINGS: embedding})
        chained.pop(c.MASKS, None)  # as a device does it
        _compare_masks(report, "end to end", prompt, full, chained, upscaler)


def _compare_decoder_intermediates(report: Report, artefact: Artefact, prompt: DecoderCase) -> None:
    held = [name for name in prompt.intermediates if name in artefact.intermediates]
    if not held:
        return
    found = artefact.decoder_intermediates(prompt.feeds)
    for name in held:
        value, expected = found.get(name), prompt.intermediates[name]
        if value is not None and value.ndim == 3:  # tokens: static shapes have padding after them
            value = value[:, : expected.shape[1]]
        report.add_tensor("decoder", name, prompt.name, expected, value)


def _compare_masks(
    report: Report,
    part: str,
    prompt: DecoderCase,
    full: NDArray[np.float32],
    found: Arrays,
    upscaler: Upscaler,
) -> None:
    """Compares the decoder's outputs, and the masks ``full`` [B, 4, H, W] of logits."""
    expected = prompt.outputs
    scores = expected[c.IOU_PREDICTIONS], found[c.IOU_PREDICTIONS]
    for name in (c.IOU_PREDICTIONS, c.LOW_RES_MASKS):
        report.add_tensor(part, name, prompt.name, expected[name], found[name])
    if c.MASKS not in found:  # formats with static shapes leave the upscaling to the application
        found[c.MASKS] = np.array(
            [[upscaler.logits(low) for low in lows] for lows in found[c.LOW_RES_MASKS]]
        )
    report.add_tensor(part, "mask logits", prompt.name, full, found[c.MASKS])
    ranked = np.sort(scores[0], axis=1)
    tie = float((ranked[:, -1] - ranked[:, -2]).min())
    wanted, got = full > constants.MASK_THRESHOLD, found[c.MASKS] > constants.MASK_THRESHOLD
    report.add_masks(part, prompt.name, mask_figures(wanted, got, scores), tie)
