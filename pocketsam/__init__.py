"""pocketsam: MobileSAM from a PyTorch checkpoint to devices, with proof that it arrived intact.

The subpackages live in folders of their own at the top of the repository (see ``pyproject.toml``):

* ``pocketsam.models``   the network and its checkpoints (torch)
* ``pocketsam.export``   conversion, parity, bundles (torch and the converters)
* ``pocketsam.runtime``  masks from a bundle (numpy, onnxruntime, Pillow; no torch)

This package itself holds what all three share: the errors, and the ``pocketsam`` command.
"""

import sys

if sys.maxsize < 2**32:
    raise ImportError(
        "pocketsam needs a 64-bit Python: onnxruntime has no 32-bit build. On a Raspberry Pi (3 or "
        "newer), install the 64-bit Raspberry Pi OS"
    )
