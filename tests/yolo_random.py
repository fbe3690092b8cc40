"""A YOLOv8x-seg of one class with random weights, as ONNX: FastSAM-x but for its weights.

    python tests/yolo_random.py FILE.onnx [SIDE]

For latency only. It runs in an environment of its own, ``.venv-yolo``: Ultralytics' code is under the
AGPL, and neither it nor the file becomes part of pocketsam.
"""

import os
import sys
from pathlib import Path


def main(file: str, side: str = "1024") -> None:
    os.environ["YOLO_AUTOINSTALL"] = "false"
    from ultralytics import YOLO
    from ultralytics.nn.tasks import SegmentationModel

    model = YOLO("yolov8x-seg.yaml", task="segment")
    model.model = SegmentationModel("yolov8x-seg.yaml", nc=1, verbose=False)
    written = model.export(format="onnx", imgsz=int(side), opset=17, simplify=False)
    Path(written).replace(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
