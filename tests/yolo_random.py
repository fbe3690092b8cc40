"""A YOLOv8x-seg of one class with random weights, as ONNX: FastSAM-x but for its weights.

    python tests/yolo_random.py SITE_PACKAGES FILE.onnx [SIDE]

For latency only. Ultralytics' code is under the AGPL: it lies in an environment of its own, and neither
it nor the file becomes part of pocketsam. It is found there after everything that is here, since it
would bring a torch of its own.
"""

import os
import sys
import tempfile
from pathlib import Path

from conftest import import_mobile_sam


def main(site: str, file: str, side: str = "1024") -> None:
    destination = Path(file).resolve()
    import_mobile_sam()  # so that torchvision can be imported
    sys.path.append(site)
    os.environ["YOLO_AUTOINSTALL"] = "false"
    import ultralytics

    known = Path(ultralytics.__file__).parent / "cfg/models/v8/yolov8-seg.yaml"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes where it is
        description = Path("yolov8x-seg.yaml")  # its size is read from its name
        description.write_text(known.read_text().replace("nc: 80", "nc: 1"))
        network = ultralytics.YOLO(description, task="segment")
        written = network.export(format="onnx", imgsz=int(side), opset=17, simplify=False)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(Path(written).read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
