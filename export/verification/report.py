"""The parity report: the worst that was seen of each tensor, of the scores and of the masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam import constants
from pocketsam.errors import ParityError
from pocketsam.export.verification.tolerances import grade_of
from pocketsam.runtime.verification.metrics import (
    agreements,
    mask_figures,
    score_figures,
    tensor_figures,
)
from pocketsam.runtime.verification.tolerance import Grade, Tolerance, Violation

PARTS = ("encoder", "decoder", "end to end")

HIGHEST = ("max_abs", "mean_abs", "error", "score", "small_changed")
LOWEST = ("snr_db", "cosine", "mask_iou")
"""The worst of each figure over all cases is kept; the other figures are counts, and are added."""


@dataclass
class Row:
    """The worst that was seen of one tensor, of the scores or of the masks, over all cases.

    Attributes:
        part: encoder, decoder or end to end.
        tensor: its name.
        figures: figure to value.
        cases: figure to the case that came out worst by it.
    """

    part: str
    tensor: str
    figures: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``part tensor``, as reports show it."""
        return f"{self.part} {self.tensor}"

    @property
    def worst_case(self) -> str:
        """The case that came out worst by the figure that says most."""
        leading: str = next(key for key in ("error", "score", "mask_iou") if key in self.figures)
        if self.figures.get("small_changed", 0) > 1 - self.figures.get("mask_iou", 0):
            leading = "small_changed"
        return self.cases[leading]

    def add(self, case: str, figures: Mapping[str, Any]) -> None:
        """Adds a case's figures."""
        for key, value in figures.items():
            old = self.figures.get(key)
            if key in HIGHEST or key in LOWEST:
                if old is None or (_is_worse(key, value, old) and not np.isnan(old)):
                    self.figures[key], self.cases[key] = value, case
            elif key != "scale":
                self.figures[key] = value if old is None else old + value
        if "scale" in figures and self.cases["error"] == case:
            self.figures["scale"] = figures["scale"]

    def summary(self) -> dict[str, Any]:
        """Returns the figures over all cases, means and shares instead of sums."""
        figures = dict(self.figures)
        if "iou_sum" in figures:
            total = figures.pop("iou_sum")
            figures["mask_iou_mean"] = total / figures["masks"] if figures["masks"] else 1.0
        if "kept" in figures:
            figures["best_kept"] = figures["kept"] / figures["prompts"] if figures["prompts"] else 1.0
        return figures

    def violations(self, tolerance: Tolerance) -> list[Violation]:
        """Returns the figures that are outside a tolerance."""
        return tolerance.violations(self.summary())


def _is_worse(key: str, value: float, old: float) -> bool:
    """Returns whether a figure is worse than another; NaN is worse than any."""
    return not (value <= old if key in HIGHEST else value >= old)


@dataclass(frozen=True, eq=False)
class WorstMask:
    """The mask with the lowest IoU of all cases.

    Attributes:
        case: the photograph and the prompt.
        photo: ``[H, W, 3]`` uint8.
        expected, found: ``[H, W]`` bool, the reference's mask and the file's.
        iou: of the two.
    """

    case: str
    photo: NDArray[np.uint8]
    expected: NDArray[np.bool_]
    found: NDArray[np.bool_]
    iou: float


class Report:
    """What parity found. Rows stand in the order in which the network computes their tensors.

    Args:
        precision: of the files.
        tolerance: what they may differ by.
        runtime_name: what ran them.

    Attributes:
        precision, tolerance, runtime_name: as above.
        cases: number of prompts that were compared.
        worst_mask: the mask with the lowest IoU; None before any was compared.
    """

    def __init__(self, precision: str, tolerance: Tolerance, runtime_name: str) -> None:
        self.precision = precision
        self.tolerance = tolerance
        self.runtime_name = runtime_name
        self.cases = 0
        self.worst_mask: WorstMask | None = None
        self._rows: dict[tuple[str, str], Row] = {}

    @property
    def rows(self) -> list[Row]:
        """Encoder, decoder, end to end; within each, in order of computation."""
        return sorted(self._rows.values(), key=lambda row: PARTS.index(row.part))

    @property
    def failed(self) -> list[Row]:
        """The rows outside the tolerance; the first is the first tensor that diverges."""
        return [row for row in self.rows if row.violations(self.tolerance)]

    @property
    def ok(self) -> bool:
        """Whether something was compared, and all of it is within the tolerance."""
        return bool(self.cases and self._rows) and not self.failed

    @property
    def grade(self) -> Grade:
        """What the masks are worth: the best grade whose limits every figure keeps."""
        return grade_of([row.summary() for row in self.rows])

    def add_tensor(
        self, part: str, name: str, case: str, expected: NDArray[Any], found: NDArray[Any] | None
    ) -> None:
        """Compares a tensor; one that is missing is infinitely far away."""
        absent = np.full(expected.shape, np.nan) if found is None else found
        self._row(part, name).add(case, tensor_figures(expected, absent))

    def add_scores(self, part: str, name: str, case: str, expected: Any, found: Any) -> None:
        """Compares predicted IoUs ``[B, 4]``, and which mask is the best."""
        self._row(part, name).add(case, score_figures(expected, found))

    def add_masks(
        self, part: str, case: str, photo: NDArray[np.uint8], expected: Any, found: Any
    ) -> None:
        """Compares masks ``[B, 4, H, W]`` of logits, thresholded."""
        if found.shape != expected.shape:  # the tensor's row says so
            found = np.full(expected.shape, -np.inf)
        wanted, got = (logits > constants.MASK_THRESHOLD for logits in (expected, found))
        self._row(part, "masks").add(case, mask_figures(wanted, got))
        self._keep_worst(case, photo, wanted, got)

    def _keep_worst(self, case: str, photo: NDArray[np.uint8], wanted: Any, got: Any) -> None:
        alike = agreements(wanted, got)
        index = np.unravel_index(int(alike.argmin()), alike.shape)
        iou = float(alike[index])
        if self.worst_mask is None or iou < self.worst_mask.iou:
            self.worst_mask = WorstMask(case, photo, wanted[index].copy(), got[index].copy(), iou)

    def _row(self, part: str, name: str) -> Row:
        return self._rows.setdefault((part, name), Row(part, name))

    def to_json(self) -> dict[str, Any]:
        """Returns the report for the manifest and ``--json``."""
        return {
            "reference": "pytorch fp32",
            "precision": self.precision,
            "runner": self.runtime_name,
            "passed": self.ok,
            "grade": self.grade,
            "cases": self.cases,
            "tolerance": self.tolerance.to_json(),
            "rows": [
                {
                    "part": row.part,
                    "tensor": row.tensor,
                    "ok": not row.violations(self.tolerance),
                    "worst_case": row.worst_case,
                }
                | {key: _plain(key, value) for key, value in row.summary().items()}
                for row in self.rows
            ],
        }

    def raise_if_failed(self) -> None:
        """Raises ParityError with the first tensor that diverges: value, limit and worst case."""
        if not self.cases or not self._rows:
            raise ParityError("nothing was compared: no photograph, or no prompt", self)
        if failed := self.failed:
            first = failed[0]
            violations = first.violations(self.tolerance)
            case = first.cases.get(violations[0].quantity, first.worst_case)
            values = "; ".join(map(str, violations))
            raise ParityError(
                f"{len(failed)} of {len(self._rows)} comparisons are outside the tolerance of "
                f"{self.precision}; the first that diverges is {first.name}: {values} "
                f"(case: {case})",
                self,
            )


def _plain(key: str, value: Any) -> Any:
    """Returns a figure as JSON takes it: infinity as text, shares in full, others in six digits."""
    if not isinstance(value, float) or key in ("mask_iou", "mask_iou_mean", "cosine", "best_kept"):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else str(value)
