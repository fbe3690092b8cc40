"""Every form of the network, ours and others', side by side in one run: ``make bench``.

Each variant is one network in one engine in a process of its own (``engine_worker.py``); rounds
interleave them, so that a machine that slows down slows all of them. Beside the latency stand the masks
that the same file gives, its size and its process's memory. ``benchmark_report`` makes the tables.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.errors import ConversionError, PocketSamError
from pocketsam.export import parity
from pocketsam.export.benchmarks.report import draw, tables
from pocketsam.export.cases import Photo, answers, judge, work_folder
from pocketsam.export.child import own_environment, run_child
from pocketsam.export.metrics import mask_ious
from pocketsam.export.options import Options
from pocketsam.export.photos import CALIBRATION, load_photos
from pocketsam.export.to_onnx import convert as to_onnx
from pocketsam.export.to_onnx.passes import PASSES
from pocketsam.export.to_tflite import convert as to_tflite
from pocketsam.export.traced import REFERENCE_TYPES, Decoder, count_macs, run
from pocketsam.models.checkpoint import DEFAULT, load_model
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.litert import CHANNELS_LAST
from pocketsam.runtime.backends.networks import pad_points
from pocketsam.runtime.backends.ort import CONFIG, check_threads
from pocketsam.runtime.commands.bench import GEMM_SIDE, summarise
from pocketsam.runtime.machine import describe_machine, read_state

WORKER = Path(__file__).with_name("engine_worker.py")
GEMM_FILE = Path(__file__).parents[2] / "runtime/gemm.onnx"
LIMIT = 1800.0
PAUSE = 0.02
"""Seconds between two runs, in which the threads of the one before go to sleep."""
SIZES = (256, 512, 768, 1024)
PROMPTS = (1, 2, 4, 8, 16, 32, 64)
GROUPS = ("encoder", "decoder", "passes", "sessions", "growth")
SPINNING = {
    "threads stop spinning": {"session.force_spinning_stop": "1"},
    "threads spin on": {"session.force_spinning_stop": "0"},
    "threads never spin": {"session.intra_op.allow_spinning": "0"},
}

Arrays = dict[str, NDArray[Any]]
Spec = dict[str, Any]


@dataclass
class Variant:
    """A network in an engine.

    Attributes:
        name: what tables call it.
        group: "encoder", "decoder", "passes", or one of those whose rows follow from the first.
        spec: what the worker is told, see ``benchmark_worker``.
        feeds: what it is timed with.
        python: the interpreter that has the engine.
        ours: whether the file is one of ours.
        figures: what was measured.
    """

    name: str
    group: str
    spec: Spec
    feeds: Arrays
    python: str = sys.executable
    ours: bool = True
    figures: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A variant's process; raises ConversionError where its engine fails.

    Args:
        variant: what it runs.
        folder: for its files, and its log.
    """

    def __init__(self, variant: Variant, folder: Path) -> None:
        self.variant, self.folder = variant, folder
        np.savez(folder / "feeds.npz", **variant.feeds)  # type: ignore[arg-type]
        spec = variant.spec | {"feeds": str(folder / "feeds.npz")}
        (folder / "spec.json").write_text(json.dumps(spec))
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [variant.python, str(WORKER), str(folder / "spec.json")], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=own_environment(),
        )  # fmt: skip
        try:
            self.start = self._read()
        except ConversionError:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = [text for text in self.log.read().splitlines() if text.strip()]
            told = lines[-1] if lines else "ended without a word"
            traced = [i for i, text in enumerate(lines) if text.startswith("Traceback")]
            for text in lines[traced[-1] + 1 :] if traced else []:
                if not text.startswith(" "):  # the exception; its message may go on below
                    told = text
                    break
            raise ConversionError(told.strip()[:200])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, words: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reason is what its log ends with
            self.process.stdin.write(words + "\n")
        return self._read()

    def seconds(self) -> float:
        """Of one run on the variant's own inputs."""
        return float(self._ask("time")["seconds"])

    def answer(self, feeds: Arrays) -> Arrays:
        """What the network gives for other inputs."""
        source, result = self.folder / "in.npz", self.folder / "out.npz"
        np.savez(source, **feeds)  # type: ignore[arg-type]
        self._ask(f"answer {source} {result}")
        with np.load(result) as file:
            return {name: file[name] for name in file.files}

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()


class Benchmark:
    """All variants of one checkpoint at one size, and what became of them.

    Attributes:
        variants: in the order of the tables.
        failed: name to why there is no figure.
    """

    def __init__(self, model: Sam, checkpoint: str, folder: Path, peers: Path | None, threads: int):
        self.model, self.checkpoint, self.folder, self.threads = model, checkpoint, folder, threads
        self.peers = str(peers / "bin/python") if peers else None
        self.size = model.image_size
        self.photos = [answers(model, photo) for _, photo in load_photos()]
        calibration = [photo for _, photo in load_photos(bundled=CALIBRATION)]
        self.samples = {"encoder": [parity.encoder_feeds(photo, self.size) for photo in calibration]}
        self.samples["decoder"] = [feeds for photo in self.photos for feeds, _, _ in photo.cases[:1]]
        self.variants: list[Variant] = []
        self.failed: dict[str, str] = {}

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
            half = to_onnx.traced_networks(model, options)[network]
            to_onnx.convert(half, path, options, self.samples[network])
        return {"kind": kind, "file": str(path), "config": CONFIG}

    def tflite(self, network: str, precision: str) -> Spec:
        """One of our TFLite files; written once."""
        path = self.folder / f"{network}-{precision}-{self.size}.tflite"
        options = Options(precision)
        if is_stale(path):
            half = to_tflite.traced_networks(self.model, options)[network]
            to_tflite.convert(half, path, options, self.samples[network], {})
        return {"kind": "litert", "file": str(path), "channels_last": list(CHANNELS_LAST)}

    def torch(self, network: str, compiled: bool) -> Spec:
        """PyTorch itself."""
        spec = {"kind": "torch", "file": self.checkpoint, "image_size": self.size}
        return spec | {"part": network, "compile": compiled}

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
            run_child(command, Path(command[0]).name, LIMIT, own_environment())
        return {"kind": engine, "file": str(path)}

    def encoders(self, files: Sequence[str]) -> None:
        """Ours in every precision that runs here, then the peers."""
        others = [parse_file(text) for text in files]
        feeds = {c.PIXEL_VALUES: self.photos[0].pixels}
        for precision in ("fp32", "fp16", "int8", "int8-weights"):
            self.add(f"ONNX {precision}", "encoder", feeds, self.onnx, "encoder", Options(precision))
        fp32 = ("encoder", Options(), None, "openvino")
        self.add("ONNX fp32 in OpenVINO", "encoder", feeds, self.onnx, *fp32, in_peers=True)
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
        one = self._clicks(1)
        for precision in ("fp32", "fp16", "int8-weights"):
            self.add(f"ONNX {precision}", "decoder", one, self.onnx, "decoder", Options(precision))
        full = one | {c.ORIG_IM_SIZE: np.array([768, 1024], np.float32)}
        name = "ONNX fp32, and masks of 1024x768"
        self.add(name, "decoder", full, self.onnx, "decoder", Options())
        fp32 = ("decoder", Options(), None, "openvino")
        self.add("ONNX fp32 in OpenVINO", "decoder", one, self.onnx, *fp32, in_peers=True)
        places = pad_points(one, Options().points)
        del places[c.ORIG_IM_SIZE]
        self.add("TFLite fp32, 16 places", "decoder", places, self.tflite, "decoder", "fp32")
        for name, compiled in (("eager", False), ("torch.compile", True)):
            self.add(f"PyTorch, {name}", "decoder", one, self.torch, "decoder", compiled, ours=False)

    def passes(self) -> None:
        """All of them, without each, and without any."""
        names = [one.name for one in PASSES]
        for without in [(), *((name,) for name in names), tuple(names)]:
            label = f"without {' and '.join(without)}" if without else "all passes"
            options = Options(disabled_passes=without)
            self.add(label, "passes", self._clicks(1), self.onnx, "decoder", options)

    def sessions(self) -> None:
        """What onnxruntime lets one choose: for a click just after an image, and for the encoder."""
        feeds, click = {c.PIXEL_VALUES: self.photos[0].pixels}, self._clicks(1)
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
        feeds = {c.PIXEL_VALUES: self.photos[0].pixels}
        encoder = self.onnx("encoder", Options())
        for threads in range(1, self.threads + 1):
            self.add(str(threads), "threads", feeds, dict, encoder | {"threads": threads})
        for prompts in PROMPTS:
            clicks = self._clicks(prompts)
            self.add(str(prompts), "prompts", clicks, self.onnx, "decoder", Options())

    def _clicks(self, count: int) -> Arrays:
        """``count`` prompts of a click each, on the first photograph."""
        feeds = dict(self.photos[0].cases[0][0])
        steps = np.linspace(0.2, 1.0, count, dtype=np.float32)[::-1, None, None]
        feeds |= {
            c.POINT_COORDS: feeds[c.POINT_COORDS][:1] * steps,
            c.POINT_LABELS: np.repeat(feeds[c.POINT_LABELS][:1], count, axis=0),
            c.ORIG_IM_SIZE: np.zeros(2, np.float32),
        }
        return {name: value.astype(np.float32) for name, value in feeds.items()}

    def measure(self, group: str, rounds: int) -> None:
        """Fills the figures of a group's variants: accuracy, then interleaved rounds."""
        square = np.random.default_rng(0).standard_normal((GEMM_SIDE, GEMM_SIDE), np.float32)
        spec: Spec = {"kind": "onnxruntime", "file": str(GEMM_FILE)}
        spec |= {"threads": self.threads, "config": CONFIG}
        gemm = Variant("matrix product", "floor", spec, {"a": square, "b": square})
        chosen = [variant for variant in self.variants if variant.group == group]
        workers: dict[str, Worker] = {}
        with tempfile.TemporaryDirectory(prefix="pocketsam-") as root:
            try:
                for number, variant in enumerate([*chosen, gemm]):
                    place = Path(root) / str(number)
                    place.mkdir()
                    self._open(variant, place, workers)
                times: dict[str, list[float]] = {name: [] for name in workers}
                for number in range(rounds + 1):
                    terminal.say(f"{group}: round {number} of {rounds}")
                    order = list(workers.items())
                    turn = number % len(order)  # what comes before leaves its traces in caches
                    for name, worker in order[turn:] + order[:turn]:
                        seconds = worker.seconds()
                        if number:
                            times[name].append(seconds)
                        time.sleep(PAUSE)
            finally:
                for worker in workers.values():
                    worker.close()
        for variant in chosen:
            if variant.name in times:
                variant.figures |= summarise(times[variant.name])
                floor = 2 * GEMM_SIDE**3 / min(times[gemm.name])
                variant.figures["gemm_gflop_per_s"] = floor / 1e9

    def _open(self, variant: Variant, place: Path, workers: dict[str, Worker]) -> None:
        terminal.say(f"{variant.group}: opening {variant.name}")
        try:
            worker = Worker(variant, place)
            workers[variant.name] = worker
            variant.figures |= worker.start
            file = Path(variant.spec["file"])
            if variant.spec["kind"] == "ncnn":
                variant.figures["bytes"] = file.with_suffix(".bin").stat().st_size
            elif file.is_file() and variant.spec["kind"] != "torch":
                data = file.with_name(f"{file.name}.data")  # where another exporter keeps its weights
                sizes = [one.stat().st_size for one in (file, data) if one.is_file()]
                variant.figures["bytes"] = sum(sizes)
            if variant.group == "encoder":
                verdict = judge(self.model, self.photos, encoder_of(worker))
                variant.figures |= {
                    "worst_iou": verdict.worst,
                    "miou": verdict.mean,
                    "snr_db": verdict.snr_db,
                }
            elif variant.group == "decoder":
                variant.figures |= decoder_figures(worker, self.model, self.photos)
        except ConversionError as error:
            self.failed[f"{variant.group}: {variant.name}"] = str(error)
            if variant.name in workers:
                workers.pop(variant.name).close()

    def report(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "machine": describe_machine(),
            "state": read_state(),
            "checkpoint": self.checkpoint,
            "image_size": self.size,
            "threads": self.threads,
            "gmacs": {
                network: count_macs(kind(self.model)) / 1e9 for network, kind in REFERENCE_TYPES.items()
            },
            "variants": [
                {
                    "name": v.name,
                    "group": v.group,
                    "engine": v.spec["kind"],
                    "ours": v.ours,
                    **v.figures,
                }
                for v in self.variants
                if "p50" in v.figures
            ],
            "failed": self.failed,
        }


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
        raise PocketSamError(f"--file {text}: wanted NAME=FILE, of a file that is there")
    return name, path.resolve()


def encoder_of(worker: Worker) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A worker as ``judge`` takes it; the output's name may be any."""

    def call(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        (value,) = worker.answer({c.PIXEL_VALUES: pixels}).values()
        return np.ascontiguousarray(value.reshape(1, *value.shape[-3:]), np.float32)

    return call


def decoder_figures(worker: Worker, model: Sam, photos: Sequence[Photo]) -> dict[str, Any]:
    """IoU of low-resolution masks with PyTorch's, worst and mean, over the prompts that come singly."""
    ious = []
    places = Options().points if worker.variant.spec["kind"] == "litert" else 0
    for photo in photos:
        for feeds, _, _ in photo.cases:
            if len(feeds[c.POINT_LABELS]) > 1:
                continue
            wanted = run(Decoder(model), feeds)[0][c.LOW_RES_MASKS] > 0
            names = worker.variant.feeds
            asked = pad_points(feeds, places) if places else feeds | {c.ORIG_IM_SIZE: np.zeros(2)}
            asked = {name: asked[name].astype(np.float32) for name in names}
            found = worker.answer(asked)[c.LOW_RES_MASKS] > 0
            ious += list(mask_ious(found, wanted).ravel())
    return {"worst_iou": min(ious), "miou": float(np.mean(ious))}


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the JSON and the picture, prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.benchmarks.engines", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="for JSON, picture, and what is measured")
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.image_size, metavar="S")
    parser.add_argument(
        "--file", action="append", default=[], metavar="NAME=FILE.onnx", help="another encoder"
    )
    parser.add_argument("--peers", type=Path, metavar="DIR", help="environment with other engines")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--group", action="append", choices=GROUPS, help="only these; may be repeated")
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1:
            raise PocketSamError(f"--rounds {args.rounds}: at least one")
        check_threads(args.threads)
        model, work = work_folder(args.checkpoint, args.image_size, args.folder)
        peers = args.peers.absolute() if args.peers else None  # not resolved: it may be a link
        benchmark = Benchmark(model, args.checkpoint, work, peers, args.threads)
        groups = args.group or GROUPS
        if "encoder" in groups:
            benchmark.encoders(args.file)
        if "decoder" in groups:
            benchmark.decoders()
        if "passes" in groups:
            benchmark.passes()
        if "sessions" in groups:
            benchmark.sessions()
        if "growth" in groups:
            benchmark.growth()
        for group in dict.fromkeys(variant.group for variant in benchmark.variants):
            benchmark.measure(group, args.rounds)
        result = benchmark.report()
        (args.folder / f"{work.name}.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, args.folder / f"{work.name}.png")
        print(tables(result))
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
