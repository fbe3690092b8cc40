"""Tolerances that targets share, and what each grade allows."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pocketsam.runtime.verification.tolerance import Grade, Tolerance

FP32 = Tolerance(
    error=4e-4,
    snr_db=80.0,
    cosine=0.999999,
    score=1e-3,
    mask_iou=0.995,
    mask_iou_mean=0.9999,
    best_kept=1.0,
)
"""4e-4 of a scale of 5 is 2e-3 of a logit."""
FP16 = Tolerance(
    error=0.1,
    snr_db=40.0,
    cosine=0.9999,
    score=5e-3,
    mask_iou=0.9,
    mask_iou_mean=0.995,
    best_kept=0.95,
)
WEIGHTS_8_BIT = Tolerance(
    error=0.5,
    snr_db=22.0,
    cosine=0.995,
    score=0.03,
    mask_iou=0.75,
    mask_iou_mean=0.98,
    best_kept=0.9,
)
"""8-bit weights, float activations."""
LOOSE = Tolerance(
    error=1.0,
    snr_db=18.0,
    cosine=0.99,
    score=0.05,
    mask_iou=0.75,
    mask_iou_mean=0.975,
    best_kept=0.9,
)
"""8-bit weights and activations, as far as the masks stay ``close``."""
ROUGH = Tolerance(
    error=8.0,
    snr_db=6.0,
    cosine=0.9,
    score=0.3,
    mask_iou=0.0,
    mask_iou_mean=0.8,
    best_kept=0.6,
)
"""What was reached, with some room: a file that falls below it is broken."""
FLOOR = Tolerance(
    error=50.0,
    snr_db=0.0,
    cosine=0.7,
    score=0.5,
    mask_iou=0.0,
    mask_iou_mean=0.5,
    best_kept=0.3,
)
"""Whatever is outside is broken, not lossy."""

DRIFT = Tolerance(
    error=0.1,
    snr_db=40.0,
    cosine=0.9999,
    score=0.01,
    mask_iou=0.9,
    mask_iou_mean=0.98,
    best_kept=1.0,
)
"""Between devices that compute in floating point, with 8-bit or smaller weights or without."""
DRIFT_8_BIT = Tolerance(
    error=0.15,
    snr_db=35.0,
    cosine=0.9995,
    score=0.02,
    mask_iou=0.9,
    mask_iou_mean=0.97,
    best_kept=1.0,
)
"""Between CPUs that compute in 8 bits: a value that lies between two steps goes to either. Measured
here between an engine's kernels with and without its optimisations: SNR 40 dB and more."""

_ANY = float("inf")
GRADES: dict[Grade, Tolerance] = {
    "equivalent": FP32,
    "close": replace(LOOSE, error=_ANY, snr_db=-_ANY, cosine=-1.0),
}
"""What a grade allows, the best grade first; whatever exceeds it is ``lossy``. The tensors of a file
that is ``close`` may differ as they like: only its masks and scores count."""


def grade_of(rows: Iterable[Mapping[str, Any]]) -> Grade:
    """Returns the best grade whose limits all rows of figures keep."""
    kept = list(rows)
    for grade, tolerance in GRADES.items():
        if not any(tolerance.violations(figures) for figures in kept):
            return grade
    return "lossy"
