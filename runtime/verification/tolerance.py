"""What a file's outputs may differ by from PyTorch's, and the grades of how much they do."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Grade = Literal["equivalent", "close", "lossy"]
"""``equivalent``: round-off. ``close``: masks a person cannot tell apart. ``lossy``: masks differ."""
GRADE_NAMES: tuple[Grade, ...] = get_args(Grade)
"""The best one first."""


@dataclass(frozen=True)
class Violation:
    """A figure outside its tolerance.

    Attributes:
        quantity: its name in the figures.
        value: what was found.
        limit: the tolerance.
        is_maximum: whether the value may be at most the limit; False: at least.
    """

    quantity: str
    value: float
    limit: float
    is_maximum: bool

    def __str__(self) -> str:
        name, unit = QUANTITIES[self.quantity]
        sign = "≤" if self.is_maximum else "≥"
        return f"{name} {self.value:.6g}{unit}, must be {sign} {self.limit:.6g}{unit}"


QUANTITIES = {
    "error": ("largest |Δ|", " standard deviations"),
    "snr_db": ("SNR", " dB"),
    "cosine": ("cosine", ""),
    "score": ("largest |Δ| of a predicted IoU", ""),
    "mask_iou": ("IoU of the least mask", ""),
    "mask_iou_mean": ("mean IoU of the masks", ""),
    "small_changed": ("largest share of a small mask's pixels changed", ""),
    "best_kept": ("share of prompts whose best mask is kept", ""),
}
"""Name and unit of each figure that has a tolerance, as messages give them."""


@dataclass(frozen=True)
class Tolerance:
    """What each quantity may lose, in the quantity's own unit.

    Attributes:
        error: largest |Δ| of a tensor, in standard deviations of the reference's tensor.
        snr_db: lowest signal-to-noise ratio of a tensor, in dB.
        cosine: lowest cosine of the angle between two tensors.
        score: largest |Δ| of a predicted IoU.
        mask_iou: lowest IoU of any single thresholded mask. A mask that is too small for an IoU may
            lose as many pixels as the smallest that is not: ``1 - mask_iou`` of its pixels. At 0 any
            mask may be lost, and small ones may change as they like.
        mask_iou_mean: lowest mean IoU of the masks, each counted once.
        best_kept: lowest share of the prompts whose best mask must be the reference's.
    """

    error: float
    snr_db: float
    cosine: float
    score: float
    mask_iou: float
    mask_iou_mean: float
    best_kept: float

    def limits(self) -> dict[str, tuple[float, bool]]:
        """Returns the limit of each quantity, and whether it is a maximum."""
        return {
            "error": (self.error, True),
            "snr_db": (self.snr_db, False),
            "cosine": (self.cosine, False),
            "score": (self.score, True),
            "mask_iou": (self.mask_iou, False),
            "mask_iou_mean": (self.mask_iou_mean, False),
            "small_changed": (1 - self.mask_iou if self.mask_iou > 0 else math.inf, True),
            "best_kept": (self.best_kept, False),
        }

    def violations(self, figures: Mapping[str, Any]) -> list[Violation]:
        """Returns the figures outside their limit; NaN is outside of any.

        Args:
            figures: by quantity; those without a tolerance are passed over.
        """
        return [
            Violation(quantity, figures[quantity], limit, is_maximum)
            for quantity, (limit, is_maximum) in self.limits().items()
            if quantity in figures
            and not (figures[quantity] <= limit if is_maximum else figures[quantity] >= limit)
        ]

    def or_looser(self, other: "Tolerance") -> "Tolerance":
        """Returns for each quantity the looser of two limits."""
        mine, others = asdict(self), asdict(other)
        maxima = {key: is_maximum for key, (_, is_maximum) in self.limits().items() if key in mine}
        return Tolerance(
            **{
                key: (max if is_maximum else min)(mine[key], others[key])
                for key, is_maximum in maxima.items()
            }
        )

    def to_json(self) -> dict[str, float]:
        """Returns the manifest's entry of a tolerance."""
        return asdict(self)
