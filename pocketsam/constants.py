"""Values that every room uses: preprocessing, prompt labels, the mask threshold.

Source: ``Sam``, ``PromptEncoder`` and ``ResizeLongestSide`` of
https://github.com/facebookresearch/segment-anything; MobileSAM keeps all of them.
"""

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Of RGB pixels in 0..255."""
PIXEL_STD = (58.395, 57.12, 57.375)

LABEL_BACKGROUND, LABEL_FOREGROUND = 0, 1
LABEL_BOX_FIRST, LABEL_BOX_SECOND = 2, 3
LABEL_NOT_A_POINT = -1
"""SAM's not-a-point, which follows points without a box and takes part in attention."""
LABEL_PADDING = -2
"""Fills the points of a decoder of static shapes up to ``max_points``; left out of every attention."""

MASK_THRESHOLD = 0.0
"""Logits above it are the object."""

POINT_DISTANCES = (100, 200, 300, 400, 500)
"""Pixels between two points in an image whose longest side is 1024: the prompts of MobileSAM's paper
(arXiv:2306.14289, section 4) that ``compare`` and ``evaluate`` use."""


def resized_shape(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Returns (height, width) in pixels after scaling the longest side to ``image_size``.

    As segment-anything's ``ResizeLongestSide.get_preprocess_shape``, but never 0: there an image more
    than twice ``image_size`` times as long as it is wide cannot be used at all.
    """
    scale = image_size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
