"""Masks from a bundle, with numpy, onnxruntime and Pillow. Imports nothing of models or export."""

from pocketsam.runtime.image import load_image
from pocketsam.runtime.masks import from_rle, to_rle
from pocketsam.runtime.segmenter import Segmenter

__all__ = ["Segmenter", "from_rle", "load_image", "to_rle"]
