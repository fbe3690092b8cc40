"""What a bundle's golden prompts say of a machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketsam.runtime.verification.tolerance import Violation


@dataclass(frozen=True)
class GoldenResult:
    """How far this machine's answer to a golden prompt is from an answer that the bundle holds.

    Attributes:
        precision: of the files.
        prompt: the prompt's name, one of ``golden.PROMPTS``.
        against: whose answer it is: PyTorch's, or that of the same files where they were exported.
        figures: ``error`` (largest |Δ| of the logits in their standard deviations), ``snr_db``,
            ``cosine``, ``mask_iou`` (of the least mask), ``mask_iou_mean``, ``small_changed``,
            ``score`` (largest |Δ| of the scores) and ``best_kept`` (1 if the best mask is the same).
        violations: the figures outside the tolerance.
        arithmetic: what the encoder was computed in, if not as its file says: ``bf16`` or ``f16``.
        decoder: ``whole``, or ``split``: in the parts that ``everything`` runs.
    """

    precision: str
    prompt: str
    against: str
    figures: Mapping[str, float]
    violations: Sequence[Violation]
    arithmetic: str = "f32"
    decoder: str = "whole"

    @property
    def ok(self) -> bool:
        """Whether every figure is within its tolerance."""
        return not self.violations

    @property
    def where(self) -> str:
        """The prompt, and what answers it unless that is the whole decoder."""
        return self.prompt if self.decoder == "whole" else f"{self.prompt} in `everything`"

    def to_json(self) -> dict[str, Any]:
        """Returns the result as ``verify --json`` prints it."""
        about = {"precision": self.precision, "prompt": self.prompt, "against": self.against}
        about["decoder"] = self.decoder
        if self.arithmetic != "f32":
            about["arithmetic"] = self.arithmetic
        figures = {
            key: value if np.isfinite(value) else str(value) for key, value in self.figures.items()
        }
        return about | {"ok": self.ok} | figures | {"violations": list(map(str, self.violations))}
