"""The variants of ``make bench``: every form of the network that we write, and other engines."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.child import own_environment, run_child
from pocketsam.errors import PocketSamError, UsageError
from pocketsam.export.benchmarks.variants import WORKER, Spec, Variant
from pocketsam.export.cases import Case
from pocketsam.export.options import Options
from pocketsam.export.reference import Reference
from pocketsam.export.target import Arrays, Target
from pocketsam.export.to_onnx import TARGET as ONNX
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_onnx.passes import PASSES
from pocketsam.export.to_tflite import TARGET as TFLITE
from pocketsam.export.to_tflite import convert as to_tflite
from pocketsam.export.traced import REFERENCE_TYPES
from pocketsam.models.checkpoint import load_model
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.litert import CHANNELS_LAST
from pocketsam.runtime.backends.networks import fill_up
from pocketsam.runtime.backends.ort import CONFIG
from pocketsam.runtime.machine import cpu_flags

TIMEOUT = 1800.0
SIZES = (256, 512, 768, 1024)
PROMPTS = (1, 2, 4, 8, 16, 32, 64)
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
"""CPU features without which OpenVINO computes in float32 whatever it is told."""
SPINNING = {
    "threads stop spinning": {"session.force_spinning_stop": "1"},
    "threads spin on": {"session.force_spinning_stop": "0"},
    "threads never spin": {"session.intra_op.allow_spinning": "0"},
}


class Suite:
    """All variants of one checkpoint at one size.

    Attributes:
        variants: in the order of the tables.
        failed: name to why there is no figure.
    """

    def __init__(
        self, reference: Reference, checkpoint: str, folder: Path, peers: Path | None, threads: int
    ) -> None:
        self.reference, self.model = reference, reference.loaded.model
        self.checkpoint, self.folder, self.threads = checkpoint, folder, threads
        self.peers = str(peers / "bin/python") if peers else None
        self.size = self.model.image_size
        self.variants: list[Variant] = []
        self.failed: dict[str, str] = {}

    @property
    def _pixels(self) -> NDArray[np.float32]:
        """``pixel_values`` of the first photograph."""
        return self.reference.cases[0].feeds[c.PIXEL_VALUES]

    def _calibration(self, target: Target, precision: str) -> Sequence[Case]:
        return self.reference.calibration if target.precision(precision).calibrated else ()

    def add(
        self,
        name: str,
        group: str,
        feeds: Arrays,
        write: Callable[..., Spec],
        *arguments: Any,
        ours: bool = True,
        in_peers: bool = False,
    ) -> None:
        """A variant whose file ``write`` makes, or the reason why there is none."""
        if in_peers and not self.peers:
            return
        terminal.say(f"{group}: {name}")
        python = self.peers if in_peers and self.peers else sys.executable
        try:
            spec = {"threads": self.threads} | write(*arguments)
            self.variants.append(Variant(name, group, spec, feeds, python, ours))
        except PocketSamError as error:
            self.failed[f"{group}: {name}"] = str(error)

    def onnx(
        self, network: str, options: Options, size: int | None = None, kind: str = "onnxruntime"
    ) -> Spec:
        """One of our ONNX files; written once."""
        without = "".join(f"-no-{name}" for name in options.disabled_passes)
        path = self.folder / f"{network}-{options.precision}{without}-{size or self.size}.onnx"
        if is_stale(path):
            model = load_model(self.checkpoint, size).model if size else self.model
            traced = to_onnx.traced_networks(model, options)[network]
            to_onnx.convert(traced, path, options, self._calibration(ONNX, options.precision))
        return {"kind": kind, "file": str(path), "config": CONFIG}

    def tflite(self, network: str, precision: str) -> Spec:
        """One of our TFLite files; written once."""
        path = self.folder / f"{network}-{precision}-{self.size}.tflite"
        options = Options(precision)
        if is_stale(path):
            traced = to_tflite.traced_networks(self.model, options)[network]
            to_tflite.convert(traced, path, options, self._calibration(TFLITE, precision), {})
        return {"kind": "litert", "file": str(path), "channels_last": list(CHANNELS_LAST)}

    def torch(self, network: str, compiled: bool) -> Spec:
        """PyTorch itself."""
        spec = {"kind": "torch", "file": self.checkpoint, "image_size": self.size}
        return spec | {"network": network, "compile": compiled}

    def plain(self) -> Path:
        """What ``torch.onnx.export`` makes of the encoder as it is written in PyTorch."""
        path = self.folder / f"plain_{self.size}.onnx"  # pnnx makes _ of anything else
        if is_stale(path):
            to_onnx.trace_plain(REFERENCE_TYPES["encoder"](self.model), path)
        return path

    def peer(self, engine: str) -> Spec:
        """The plain export as another engine wants it."""
        assert self.peers is not None
        plain, programs = self.plain(), Path(self.peers).parent
        if engine == "mnn":
            path = plain.with_suffix(".mnn")
            command = [str(programs / "mnnconvert"), "-f", "ONNX", "--modelFile", str(plain)]
            command += ["--MNNModel", str(path), "--bizCode", "pocketsam"]
        elif engine == "ncnn":
            path = plain.with_suffix(".ncnn.param")
            shape = f"inputshape=[1,3,{self.size},{self.size}]"
            # its script imports torch, which the program itself does without
            (program,) = programs.parent.glob("lib/python3.*/site-packages/pnnx/pnnx")
            command = [str(program), str(plain), shape, "fp16=0"]
        else:
            path, command = plain, []
        if command and is_stale(path, plain):
            run_child(command, Path(command[0]).name, TIMEOUT, own_environment())
        return {"kind": engine, "file": str(path)}

    def encoders(self, files: Sequence[str]) -> None:
        """Ours in every precision that runs here, then the peers."""
        others = [parse_file(text) for text in files]
        feeds = {c.PIXEL_VALUES: self._pixels}
        for precision in ("fp32", "fp16", "int8", "int8-static", "int8-weights"):
            self.add(f"ONNX {precision}", "encoder", feeds, self.onnx, "encoder", Options(precision))
        fp32 = ("encoder", Options(), None, "openvino")
        self.add("ONNX fp32 in OpenVINO", "encoder", feeds, self.onnx, *fp32, in_peers=True)
        if BFLOAT16.intersection(cpu_flags()):
            name, bf16 = "ONNX fp32 in OpenVINO, bf16", self.onnx(*fp32) | {"precision": "bf16"}
            self.add(name, "encoder", feeds, dict, bf16, in_peers=True)
        for precision in ("fp32", "int8-dynamic", "int8"):
            self.add(f"TFLite {precision}", "encoder", feeds, self.tflite, "encoder", precision)
        for name, compiled in (("eager", False), ("torch.compile", True)):
            self.add(f"PyTorch, {name}", "encoder", feeds, self.torch, "encoder", compiled, ours=False)
        for name, path in [("plain export", self.plain()), *others]:
            spec = {"kind": "onnxruntime", "file": str(path)}
            self.add(name, "encoder", feeds, dict, spec, ours=False)
        for name, engine in (("OpenVINO", "openvino"), ("MNN", "mnn"), ("ncnn", "ncnn")):
            label = f"plain export in {name}"
            self.add(label, "encoder", feeds, self.peer, engine, ours=False, in_peers=True)

    def decoders(self) -> None:
        """One click, low-resolution masks, unless the name says otherwise."""
        click = self._clicks(1)
        for precision in ("fp32", "fp16", "int8-weights"):
            self.add(f"ONNX {precision}", "decoder", click, self.onnx, "decoder", Options(precision))
        full = click | {c.ORIG_IM_SIZE: np.array([768, 1024], np.float32)}
        name = "ONNX fp32, and masks of 1024x768"
        self.add(name, "decoder", full, self.onnx, "decoder", Options())
        fp32 = ("decoder", Options(), None, "openvino")
        self.add("ONNX fp32 in OpenVINO", "decoder", click, self.onnx, *fp32, in_peers=True)
        padded = fill_up(click, 1, Options().max_points)
        del padded[c.ORIG_IM_SIZE]
        self.add("TFLite fp32, 16 points", "decoder", padded, self.tflite, "decoder", "fp32")
        for name, compiled in (("eager", False), ("torch.compile", True)):
            self.add(f"PyTorch, {name}", "decoder", click, self.torch, "decoder", compiled, ours=False)

    def passes(self) -> None:
        """All of them, without each, and without any."""
        names = [entry.name for entry in PASSES]
        for without in [(), *((name,) for name in names), tuple(names)]:
            label = f"without {' and '.join(without)}" if without else "all passes"
            options = Options(disabled_passes=without)
            self.add(label, "passes", self._clicks(1), self.onnx, "decoder", options)

    def sessions(self) -> None:
        """What onnxruntime lets one choose: for a click just after an image, and for the encoder."""
        feeds, click = {c.PIXEL_VALUES: self._pixels}, self._clicks(1)
        encoder, decoder = (self.onnx(network, Options()) for network in REFERENCE_TYPES)
        image = self.folder / "image.npz"
        np.savez(image, **feeds)  # type: ignore[arg-type]
        for name, config in SPINNING.items():
            settings = {"config": CONFIG | config, "threads": self.threads}
            first = encoder | settings | {"feeds": str(image)}
            self.add(name, "click after an image", click, dict, decoder | settings | {"before": first})
        changes: dict[str, Spec] = {
            "as it is": {},
            "without the arena": {"arena": False},
            "without prepacking": {"config": CONFIG | {"session.disable_prepacking": "1"}},
        }
        for name, change in changes.items():
            self.add(name, "session of the encoder", feeds, dict, encoder | change)

    def growth(self) -> None:
        """By the size of the canvas, the threads, and the number of prompts."""
        rng = np.random.default_rng(0)
        for size in SIZES:
            feeds = {c.PIXEL_VALUES: rng.standard_normal((1, 3, size, size), np.float32)}
            self.add(str(size), "canvas", feeds, self.onnx, "encoder", Options(), size)
        feeds = {c.PIXEL_VALUES: self._pixels}
        encoder = self.onnx("encoder", Options())
        for threads in range(1, self.threads + 1):
            self.add(str(threads), "threads", feeds, dict, encoder | {"threads": threads})
        for prompts in PROMPTS:
            clicks = self._clicks(prompts)
            self.add(str(prompts), "prompts", clicks, self.onnx, "decoder", Options())

    def _clicks(self, count: int) -> Arrays:
        """``count`` prompts of a click each, on the first photograph."""
        feeds = dict(self.reference.cases[0].prompts[0].feeds)
        steps = np.linspace(0.2, 1.0, count, dtype=np.float32)[::-1, None, None]
        feeds |= {
            c.POINT_COORDS: feeds[c.POINT_COORDS][:1] * steps,
            c.POINT_LABELS: np.repeat(feeds[c.POINT_LABELS][:1], count, axis=0),
            c.ORIG_IM_SIZE: np.zeros(2, np.float32),
        }
        return {name: value.astype(np.float32) for name, value in feeds.items()}


def is_stale(path: Path, *sources: Path) -> bool:
    """Whether a converted file has to be made: it is missing, or older than what makes it."""
    rooms = WORKER.parents[2]
    code = [file for room in ("export", "models") for file in (rooms / room).rglob("*.py")]
    code = [file for file in code if WORKER.parent not in file.parents]
    newest = max(file.stat().st_mtime for file in sources or code)
    return not path.is_file() or path.stat().st_mtime < newest


def parse_file(text: str) -> tuple[str, Path]:
    """NAME=FILE."""
    name, equals, file = text.partition("=")
    path = Path(file)
    if not equals or not name or not path.is_file():
        raise UsageError(f"--file {text}: wanted NAME=FILE, of a file that is there")
    return name, path.resolve()
