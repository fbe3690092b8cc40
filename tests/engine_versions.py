"""Which engines run our ONNX files, in which operator set: ``python tests/engine_versions.py FOLDER``.

Old versions of onnxruntime are installed beside each other in ``FOLDER``, with the numpy that they
want, and each runs in a process of its own. OpenCV's dnn is that of this environment. ``make drop-in``
calls it.
"""

import json
import subprocess
import sys
from pathlib import Path

from docs_table import write_table

SIDE = 256
OPSETS = (15, 17, 18, 20)
TITLES = {"onnxruntime": "onnxruntime", "opencv": "OpenCV's dnn,"}
ONNXRUNTIMES = ("1.15.1", "1.16.3", "1.17.3", "1.18.1", "1.20.1")
RUN = """
import json, sys
folder, engine = sys.argv[1:3]
sys.path[:0] = sys.argv[3:]
import numpy as np
version = __import__("cv2" if engine == "opencv" else "onnxruntime").__version__
inputs = dict(np.load(f"{folder}/inputs.npz"))
def run(path, names):
    if engine == "opencv":
        import cv2
        net = cv2.dnn.readNetFromONNX(path)
        for name in names:
            net.setInput(inputs[name], name)
        outputs = net.getUnconnectedOutLayersNames()
        return dict(zip(outputs, net.forward(outputs)))
    import onnxruntime
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [entry.name for entry in session.get_outputs()]
    found = session.run(outputs, {name: inputs[name] for name in names})
    return dict(zip(outputs, found))
for opset in json.loads(open(f"{folder}/opsets.json").read()):
    worst = 0.0
    try:
        for network, names in json.loads(open(f"{folder}/names.json").read()).items():
            found = run(f"{folder}/{network}-{opset}.onnx", names)
            for name, array in np.load(f"{folder}/{network}.npz").items():
                difference = np.abs(np.reshape(found[name], array.shape) - array).max()
                worst = max(worst, float(difference / array.std()))
        print(json.dumps([opset, version, worst]))
    except Exception:
        print(json.dumps([opset, version, None]))
"""


def prepare(folder: Path) -> None:
    """Writes both networks in each operator set, inputs, and onnxruntime's answers."""
    import numpy as np
    import onnx

    from pocketsam.export import export
    from pocketsam.export.to_onnx.opset import lower_opset
    from pocketsam.runtime import contract as c
    from pocketsam.runtime.backends.ort import open_session, run_session

    export("default", folder / "bundle", image_size=SIDE, verify=False, force=True)
    inputs = {
        c.PIXEL_VALUES: np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32),
        c.POINT_COORDS: np.array([[[100, 90], [0, 0]]], np.float32),
        c.POINT_LABELS: np.array([[1, -1]], np.float32),
        c.MASK_INPUT: np.zeros((1, 1, SIDE // 4, SIDE // 4), np.float32),
        c.HAS_MASK_INPUT: np.zeros(1, np.float32),
        c.ORIG_IM_SIZE: np.array([150, 200], np.float32),
    }
    names = {}
    for network in ("encoder", "decoder"):
        model = onnx.load(folder / "bundle" / f"{network}.onnx")
        names[network] = [value.name for value in model.graph.input]
        session = open_session(model.SerializeToString(), network)
        outputs = [entry.name for entry in session.get_outputs()]
        feeds = {name: inputs[name] for name in names[network]}
        found = dict(zip(outputs, run_session(session, network, outputs, feeds), strict=True))
        inputs |= {name: found[name] for name in outputs if name == c.IMAGE_EMBEDDINGS}
        np.savez(folder / f"{network}.npz", **found)
        for opset in OPSETS:
            onnx.save(lower_opset(model, opset), folder / f"{network}-{opset}.onnx")
    np.savez(folder / "inputs.npz", **inputs)
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "opsets.json").write_text(json.dumps(OPSETS))


def install(folder: Path, *packages: str) -> str:
    """Installs packages without what they ask for into a folder of their own; returns it."""
    target = folder / packages[0]
    if not target.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, str(target), *packages], check=True)
    return str(target)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    old = [install(folder, f"onnxruntime=={version}", "numpy==1.26.4") for version in ONNXRUNTIMES]
    engines = [("onnxruntime", [path]) for path in old]
    lines = ["| engine | " + " | ".join(f"opset {opset}" for opset in OPSETS) + " |"]
    lines.append("|---" * (1 + len(OPSETS)) + "|")
    engines += [("onnxruntime", []), ("opencv", [str(Path(sys.prefix) / "opencv-4")]), ("opencv", [])]
    for engine, paths in engines:
        command = [sys.executable, "-c", RUN, str(folder), engine, *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [json.loads(line) for line in done.splitlines() if line.startswith("[")]
        version = rows[0][1]
        cells = ["no" if worst is None else f"{worst:.0e}" for _, _, worst in rows]
        lines.append(f"| {TITLES[engine]} {version} | " + " | ".join(cells) + " |")
    write_table(Path(__file__).parent.parent / "docs/other-tools.md", "engines", lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
