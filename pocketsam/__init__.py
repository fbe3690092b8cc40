"""pocketsam: MobileSAM from a PyTorch checkpoint to devices, with proof that it arrived intact.

    >>> from pocketsam import Segmenter, export, verify
    >>> export("default", "bundle")            # needs the extra [export]
    >>> segmenter = Segmenter("bundle")        # numpy, onnxruntime, Pillow; Segmenter(): our own bundle
    >>> segmenter.set_image("photo.jpg")
    >>> masks, scores, low_res_masks = segmenter.predict([[220, 120]], [1])

The subpackages live in folders of their own at the top of the repository (see ``pyproject.toml``):

* ``pocketsam.models``   the network and its checkpoints (torch)
* ``pocketsam.export``   conversion, parity, bundles (torch and the converters)
* ``pocketsam.runtime``  masks from a bundle (numpy, onnxruntime, Pillow; no torch)

This package itself holds what all three share, and the ``pocketsam`` command.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

if sys.maxsize < 2**32:
    raise ImportError(
        "pocketsam needs a 64-bit Python: onnxruntime has no 32-bit build. On a Raspberry Pi (4 or "
        "newer), install the 64-bit Raspberry Pi OS"
    )

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

    from pocketsam.export import export, verify
    from pocketsam.export.drop_in import export_for
    from pocketsam.images import load_image
    from pocketsam.runtime.everything.generator import MaskGenerator
    from pocketsam.runtime.overlay import draw_overlay
    from pocketsam.runtime.rle import from_rle, to_rle
    from pocketsam.runtime.sam_api.predictor import SamAutomaticMaskGenerator, SamPredictor
    from pocketsam.runtime.segmenter import Segmenter

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""onnxruntime 1.29 and newer report to a server what they run; "0" lets them. Read at their import."""

__version__ = "0.1.0"
__all__ = [
    "MaskGenerator",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "Segmenter",
    "draw_overlay",
    "export",
    "export_for",
    "from_rle",
    "load_image",
    "to_rle",
    "verify",
]

_MODULES = {
    "MaskGenerator": "pocketsam.runtime.everything.generator",
    "SamAutomaticMaskGenerator": "pocketsam.runtime.sam_api.predictor",
    "SamPredictor": "pocketsam.runtime.sam_api.predictor",
    "Segmenter": "pocketsam.runtime.segmenter",
    "draw_overlay": "pocketsam.runtime.overlay",
    "export_for": "pocketsam.export.drop_in",
    "from_rle": "pocketsam.runtime.rle",
    "load_image": "pocketsam.images",
    "to_rle": "pocketsam.runtime.rle",
    "verify": "pocketsam.export",
}
"""Where the public names are defined; each is imported when it is first used. ``export`` is the package
of that name, which can be called."""


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module("pocketsam.export")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
