"""What a damage changes for a user: masks, scores, and which mask is the best."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from pocketsam.runtime import contract as c
from pocketsam.runtime.verification.metrics import agreements, score_figures

Answers = Sequence[Sequence[Mapping[str, NDArray[Any]]]]
"""By photograph and prompt, what the decoder returns."""


def effect_of(wanted: Answers, found: Answers) -> tuple[float, float, float]:
    """Returns the least mask's IoU, the score's largest change and the share of best masks kept.

    Args:
        wanted: answers of the healthy files, or of PyTorch.
        found: answers of the damaged files to the same prompts.
    """
    least, score, prompts, kept = 1.0, 0.0, 0, 0
    for others, photograph in zip(wanted, found, strict=True):
        for before, after in zip(others, photograph, strict=True):
            agreed = agreements(before[c.LOW_RES_MASKS] > 0, after[c.LOW_RES_MASKS] > 0)
            least = min(least, float(agreed.min()))
            figures = score_figures(before[c.IOU_PREDICTIONS], after[c.IOU_PREDICTIONS])
            score = max(score, figures["score"])
            prompts, kept = prompts + figures["prompts"], kept + figures["kept"]
    return max(least, 0.0), score, kept / prompts if prompts else 1.0
