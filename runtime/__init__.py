"""Runs bundles with numpy, onnxruntime and Pillow; imports nothing of models or export."""

from pocketsam.images import load_image
from pocketsam.runtime.everything.generator import MaskGenerator
from pocketsam.runtime.rle import from_rle, to_rle
from pocketsam.runtime.segmenter import Segmenter

__all__ = ["MaskGenerator", "Segmenter", "from_rle", "load_image", "to_rle"]
