"""MobileSAM's encoder as samexporter writes it, of our weights: one more file for ``make bench``.

    python tests/samexporter_file.py CHECKPOINT SITE_PACKAGES FILE.onnx

samexporter pins a torch of its own, so it is installed without what it asks for, in the environment of
the other peers, and found there after everything that is here.
"""

import sys
import tempfile
from pathlib import Path

import torch
from conftest import import_mobile_sam

from pocketsam.models.checkpoint import load_model


def main(checkpoint: str, site: str, file: str) -> None:
    import_mobile_sam()  # so that torchvision can be imported
    sys.path.append(site)
    sys.argv[1:] = []  # it reads them when it is imported
    from samexporter import export_encoder

    torch.manual_seed(0)  # it draws the input that it traces with
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(load_model(checkpoint, 1024).model.state_dict(), weights)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        export_encoder.run_export("mobile", str(weights), file, use_preprocess=False, opset=18)


if __name__ == "__main__":
    main(*sys.argv[1:])
