"""Which converter makes the best int8 TFLite encoder: accuracy and latency of each, in one run.

``make int8-converters`` runs it, with the environment that holds onnx2tf and TensorFlow. The decoder
stays in PyTorch, so that the figures are the encoder's alone. What the slow converters wrote stays in
``build/int8-converters`` for the next time; ours are written anew.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.child import own_environment, run_child
from pocketsam.errors import ConversionError, PocketSamError
from pocketsam.export.benchmarks.work import open_work
from pocketsam.export.cases import Accuracy, Encode, measure_encoder
from pocketsam.export.options import Options
from pocketsam.export.reference import Reference
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_tflite import convert as to_tflite
from pocketsam.export.traced import Encoder
from pocketsam.models.checkpoint import DEFAULT
from pocketsam.runtime import contract as c
from pocketsam.runtime.benchmarks.timing import time_interleaved

WORKER = Path(__file__).with_name("tensorflow_worker.py")
ROUNDS, TIMEOUT, THREADS = 15, 3600.0, 2


class Converters:
    """Converts one encoder by every converter.

    Attributes:
        files: name of the converter to file; the first is the float one.
        failed: name of the converter to why there is no file.
    """

    def __init__(self, reference: Reference, environment: Path, work: Path) -> None:
        self.network = Encoder(reference.loaded.model)
        self.calibration, self.environment, self.work = reference.calibration, environment, work
        self.files: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        self.program = [
            str(environment / "bin/onnx2tf"),
            "-i",
            str(work / "network.onnx"),
            "-v",
            "error",
        ]

    def convert(self) -> None:
        """Fills ``files`` and ``failed``."""
        for precision in ("fp32", "int8-weights", "int8-dynamic", "int8"):
            name = "fp32" if precision == "fp32" else f"litert-quantizer, `{precision}`"
            self._attempt(name, self.work / f"{precision}.tflite", self._our_own, precision)
        onnx.save(to_onnx.trace_static(self.network), self.work / "network.onnx")
        photos = np.concatenate([case.feeds[c.PIXEL_VALUES] for case in self.calibration])
        np.save(self.work / "photos.npy", photos.transpose(0, 2, 3, 1))
        self._onnx2tf()
        self._tensorflow()

    def _our_own(self, path: Path, precision: str) -> None:
        to_tflite.convert(self.network, path, Options(precision), self.calibration, {})

    def _onnx2tf(self) -> None:
        """A run each for the two kinds, since one that fails takes the other's file with it."""
        integer = ["-oiqt", "-iqd", "float32", "-oqd", "float32"]
        # pixel_values are normalised already: mean 0, deviation 1
        integer += ["-cind", c.PIXEL_VALUES, str(self.work / "photos.npy"), "0", "1"]
        for name, flags, files in (
            ("dynamic range", ["-odrqt"], ["dynamic_range_quant"]),
            ("integer", integer, ["integer_quant", "full_integer_quant"]),
        ):
            folder = self.work / name.replace(" ", "_")
            for file in files:
                command = [*self.program, "-o", str(folder), *flags]
                path = folder / f"network_{file}.tflite"
                self._attempt(f"onnx2tf, {file.replace('_', ' ')}", path, self._child, *command)

    def _tensorflow(self) -> None:
        saved = self.work / "saved"
        command = [*self.program, "-o", str(saved), "-tb", "tf_converter", "-osd"]
        self._attempt("TensorFlow, SavedModel", saved / "saved_model.pb", self._child, *command)
        if not self.files.pop("TensorFlow, SavedModel", None):
            return
        python = str(self.environment / "bin/python")
        for kind in ("dynamic", "integer"):
            path = self.work / f"tensorflow_{kind}.tflite"
            arguments = [kind, str(saved), str(path), str(self.work / "photos.npy")]
            self._attempt(f"TensorFlow, {kind}", path, self._child, python, str(WORKER), *arguments)

    def _child(self, path: Path, *command: str) -> None:
        if not path.is_file():  # an earlier converter or run may have written it
            run_child(command, Path(command[0]).name, TIMEOUT, own_environment())

    def _attempt(self, name: str, path: Path, how: Callable[..., None], *arguments: str) -> None:
        terminal.say(name)
        try:
            how(path, *arguments)
            if not path.is_file():
                raise ConversionError(f"ended without writing {path.name}")
            self.files[name] = path
        except PocketSamError as error:
            self.failed[name] = str(error)


def open_encoder(path: Path) -> Encode:
    """Opens a TFLite encoder whatever its names: one input [1, S, S, 3], one output, NHWC or NCHW."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=THREADS)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter.set_tensor(source["index"], np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
        interpreter.invoke()
        found: NDArray[np.float32] = interpreter.get_tensor(result["index"])
        turned = found if found.shape[1] == 256 else found.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(turned)

    return call


def table(reference: Reference, converters: Converters) -> str:
    """Returns a line for each converter, and why for each that failed."""
    cases = reference.cases
    figures: dict[str, Accuracy] = {}
    stages: dict[str, Callable[[], object]] = {}
    for name, path in converters.files.items():
        terminal.say(f"comparing {name}")
        try:
            encoder = open_encoder(path)
            figures[name] = measure_encoder(reference.loaded.model, cases, encoder)
        except (RuntimeError, ValueError) as error:
            converters.failed[name] = f"LiteRT refuses the file: {str(error).splitlines()[0]}"
            continue
        stages[name] = partial(encoder, cases[0].feeds[c.PIXEL_VALUES])
    times = time_interleaved(stages, ROUNDS, 1)
    floor = min(times["fp32"])
    count = sum(len(case.prompts) for case in cases)
    lines = [
        f"| converter | MB | mask IoU, worst of {count} | mean | SNR dB | ms | least ms | ÷ fp32 |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, found in figures.items():
        median, least = float(np.median(times[name])), min(times[name])
        size = converters.files[name].stat().st_size / 1e6
        quality = f"{found.worst:.3f} | {found.mean:.4f} | {found.snr_db:.1f}"
        speed = f"{1e3 * median:.0f} | {1e3 * least:.0f} | {least / floor:.2f}"
        lines.append(f"| {name} | {size:.1f} | {quality} | {speed} |")
    return "\n".join(lines + [f"{name}: {why}" for name, why in converters.failed.items()])


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.benchmarks.int8_converters", description=__doc__
    )
    parser.add_argument("environment", type=Path, help="a virtual environment with onnx2tf, tensorflow")
    parser.add_argument("--folder", type=Path, default=Path("build/int8-converters"))
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.parse_image_size, metavar="S")
    args = parser.parse_args(argv)
    try:
        reference, work, _ = open_work(args.checkpoint, args.image_size, args.folder)
        converters = Converters(reference, args.environment.resolve(), work)
        converters.convert()
        print(table(reference, converters))
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
