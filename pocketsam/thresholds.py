"""What a mask must reach to count as an object in ``everything``."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that suit the scores of a checkpoint; the defaults are SAM's.

    Attributes:
        pred_iou_thresh: predicted IoU, 0..1, that a mask must exceed; 0 keeps all masks.
        stability_score_thresh: least IoU, 0..1, of the mask with its logits shifted up and down.

    Raises:
        ValueError: a value out of range.
    """

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95

    def __post_init__(self) -> None:
        """Checks the values."""
        if not all(0 <= value <= 1 for value in astuple(self)):
            raise ValueError(f"thresholds must lie in 0..1, not {astuple(self)}")
