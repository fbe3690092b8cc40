"""What a user gets without pocketsam: a plain ``torch.onnx.export`` of the reference's encoder.

`make bench` times it beside ours. Usage: ``python tests/plain_export.py OUT.onnx [SEED]``.
"""

import sys
import warnings

import torch
from conftest import import_mobile_sam

from pocketsam.models.sam import seeded


def main(path: str, seed: int = 0) -> None:
    warnings.simplefilter("ignore")
    network = import_mobile_sam().sam_model_registry["vit_t"]()
    network.load_state_dict(seeded(1024, seed).state_dict())
    image = torch.zeros(1, 3, 1024, 1024)
    encoder = network.image_encoder.eval()
    torch.onnx.export(encoder, (image,), path, dynamo=True, external_data=False, verbose=False)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
