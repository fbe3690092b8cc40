"""Every form of the network, ours and others', side by side in one run: ``make bench``.

Each variant is one network in one engine in a process of its own (``engine_worker.py``); rounds
interleave them, so that a machine that slows down slows all of them. Beside the latency stand the masks
that the same file gives, its size and its process's memory. ``report`` makes the tables.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.errors import ConversionError, PocketSamError, UsageError
from pocketsam.export.benchmarks.report import draw, tables
from pocketsam.export.benchmarks.suite import Suite
from pocketsam.export.benchmarks.variants import Spec, Variant, Worker
from pocketsam.export.benchmarks.work import open_work
from pocketsam.export.cases import Case, Encode, measure_encoder
from pocketsam.export.options import Options
from pocketsam.export.traced import REFERENCE_TYPES, count_macs
from pocketsam.models.checkpoint import DEFAULT
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import fill_up
from pocketsam.runtime.backends.ort import CONFIG, check_threads
from pocketsam.runtime.benchmarks.timing import GEMM_SIDE, summarise
from pocketsam.runtime.machine import describe_machine, read_state
from pocketsam.runtime.verification.metrics import mask_ious

GEMM_FILE = Path(__file__).parents[2] / "runtime/benchmarks/gemm.onnx"
PAUSE = 0.02
"""Seconds between two runs, in which the threads of the one before go to sleep."""
GROUPS = ("encoder", "decoder", "passes", "sessions", "growth")


class Benchmark(Suite):
    """A suite that is measured."""

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
                    folder = Path(root) / str(number)
                    folder.mkdir()
                    self._open(variant, folder, workers)
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

    def _open(self, variant: Variant, folder: Path, workers: dict[str, Worker]) -> None:
        terminal.say(f"{variant.group}: opening {variant.name}")
        try:
            worker = Worker(variant, folder)
            workers[variant.name] = worker
            variant.figures |= worker.start
            file = Path(variant.spec["file"])
            if variant.spec["kind"] == "ncnn":
                variant.figures["bytes"] = file.with_suffix(".bin").stat().st_size
            elif file.is_file() and variant.spec["kind"] != "torch":
                data = file.with_name(f"{file.name}.data")  # where another exporter keeps its weights
                sizes = [path.stat().st_size for path in (file, data) if path.is_file()]
                variant.figures["bytes"] = sum(sizes)
            if variant.group == "encoder":
                accuracy = measure_encoder(self.model, self.reference.cases, encoder_of(worker))
                variant.figures |= {
                    "worst_iou": accuracy.worst,
                    "miou": accuracy.mean,
                    "snr_db": accuracy.snr_db,
                }
            elif variant.group == "decoder":
                variant.figures |= decoder_figures(worker, self.reference.cases)
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


def encoder_of(worker: Worker) -> Encode:
    """Returns a worker as ``measure_encoder`` takes it; the output's name may be any."""

    def call(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        (value,) = worker.answer({c.PIXEL_VALUES: pixels}).values()
        return np.ascontiguousarray(value.reshape(1, *value.shape[-3:]), np.float32)

    return call


def decoder_figures(worker: Worker, cases: Sequence[Case]) -> dict[str, Any]:
    """Returns IoU of low-resolution masks with PyTorch's, worst and mean, over single prompts."""
    ious = []
    is_static = worker.variant.spec["kind"] == "litert"
    for prompt in (prompt for case in cases for prompt in case.prompts):
        feeds = prompt.feeds
        if len(feeds[c.POINT_LABELS]) > 1:
            continue
        if is_static:
            feeds = fill_up(feeds, 1, Options().max_points)
        else:
            feeds = feeds | {c.ORIG_IM_SIZE: np.zeros(2)}
        feeds = {name: feeds[name].astype(np.float32) for name in worker.variant.feeds}
        found = worker.answer(feeds)[c.LOW_RES_MASKS] > 0
        ious += list(mask_ious(found, prompt.outputs[c.LOW_RES_MASKS] > 0).ravel())
    return {"worst_iou": min(ious), "miou": float(np.mean(ious))}


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the JSON and the picture, prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.benchmarks.engines", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="for JSON, picture, and what is measured")
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.parse_image_size, metavar="S")
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
            raise UsageError(f"--rounds {args.rounds}: at least one")
        check_threads(args.threads)
        reference, work, name = open_work(args.checkpoint, args.image_size, args.folder)
        peers = args.peers.absolute() if args.peers else None  # not resolved: it may be a link
        benchmark = Benchmark(reference, args.checkpoint, work, peers, args.threads)
        groups = {
            "encoder": lambda: benchmark.encoders(args.file),
            "decoder": benchmark.decoders,
            "passes": benchmark.passes,
            "sessions": benchmark.sessions,
            "growth": benchmark.growth,
        }
        for group in args.group or GROUPS:
            groups[group]()
        for group in dict.fromkeys(variant.group for variant in benchmark.variants):
            benchmark.measure(group, args.rounds)
        result = benchmark.report()
        (args.folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, args.folder / f"{name}.png")
        print(tables(result))
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
