"""``pocketsam bench``: latency, measured so that the figure means something.

Everything is interleaved: each round times every stage once, and a matrix product beside them, so that
a machine that slows down slows all of them. The matrix product gives the floor: the time that the
encoder's multiplications alone would take at the rate this machine reaches in this very run.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pocketsam import terminal
from pocketsam.errors import BundleError, PocketSamError
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.backends.ort import open_session, provider_names
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.image import load_image
from pocketsam.runtime.machine import describe_machine, peak_rss_bytes, read_state
from pocketsam.runtime.segmenter import Segmenter

GEMM_SIDE = 2048
Stage = Callable[[], object]


def bench(
    bundle_dir: str | os.PathLike[str],
    runs: int = 20,
    warmup: int = 3,
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
    image: str | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Measures a bundle on this machine.

    Args:
        bundle_dir: the bundle.
        runs, warmup: rounds that count, and rounds before them that do not.
        providers, threads: as for ``Segmenter``.
        image: a file; otherwise a drawn image of 1024x768.
        against: a second bundle, or an encoder as ONNX file, timed in the same rounds.

    Returns:
        ``machine``, ``state`` (temperature, frequency, throttling, before and after), ``settings``,
        ``cold_load_s``, ``stages`` (seconds: n, min, p50, p90, p99, mean),
        ``gemm``, ``encoder_floor``, ``peak_rss_bytes`` (of this process, with the bundle loaded and one
        image done), and ``against`` with the second's figures.
    """
    if runs < 1 or warmup < 0:
        raise PocketSamError(f"bench needs runs >= 1 and warmup >= 0, not {runs} and {warmup}")
    pixels = drawn_image() if image is None else load_image(image)
    cold = cold_load(bundle_dir, providers, threads)
    stages = bundle_stages(bundle_dir, pixels, providers, threads, "")
    stages["end to end"]()
    peak = peak_rss_bytes()  # before anything else is loaded for comparison
    second: dict[str, Any] | None = None
    if against is not None:
        second = {"path": against}
        if Path(against).is_dir():
            second["cold_load_s"] = cold_load(against, providers, threads)
            stages |= bundle_stages(against, pixels, providers, threads, "against ")
        else:
            stages["against encoder"] = onnx_stage(against, providers, threads)
    stages["gemm"] = gemm_stage(threads)
    before = read_state()
    times = time_interleaved(stages, runs, warmup)
    state = {"before": before, "after": read_state()}

    gflops = 2 * GEMM_SIDE**3 / min(times["gemm"]) / 1e9
    figures = {name: summarise(samples) for name, samples in times.items()}
    gemm = figures.pop("gemm")
    result = {
        "bundle": str(bundle_dir),
        "machine": describe_machine(),
        "state": state,
        "settings": {
            "providers": provider_names(providers),
            "threads": threads or "onnxruntime's choice",
            "runs": runs,
            "warmup": warmup,
            "image_pixels": list(pixels.shape[:2]),
        },
        "cold_load_s": cold,
        "stages": figures,
        "gemm": {"side": GEMM_SIDE, "gflop_per_s": gflops, **gemm},
        "encoder_floor": _floor(open_bundle(bundle_dir).manifest.encoder.macs, figures, gflops),
        "peak_rss_bytes": peak,
    }
    if second is not None:
        ours, theirs = figures["encoder"], figures["against encoder"]
        second["encoder_time_ratio"] = {key: ours[key] / theirs[key] for key in ("min", "p50")}
        result["against"] = second
    return result


def drawn_image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Gradients and noise, 768x1024: latency does not depend on what is in a picture."""
    y, x = np.mgrid[0:768, 0:1024]
    noise = np.random.default_rng(0).integers(0, 64, (768, 1024, 3))
    ramps = np.stack([x * 191 // 1024, y * 191 // 768, (x + y) * 191 // 1792], axis=-1)
    return (ramps + noise).astype(np.uint8)


def cold_load(
    bundle_dir: str | os.PathLike[str], providers: str | Sequence[str], threads: int | None
) -> dict[str, Any]:
    """Seconds from files to sessions, read from the disk where the system lets us drop its cache."""
    bundle = open_bundle(bundle_dir)
    seconds: dict[str, Any] = {}
    dropped = hasattr(os, "posix_fadvise")
    for network in ("encoder", "decoder"):
        if dropped:
            descriptor = os.open(bundle.path / bundle.manifest.network(network).file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        start = time.perf_counter()
        open_network(bundle, network, providers, threads)
        seconds[network] = time.perf_counter() - start
    return seconds | {"page_cache_dropped": dropped}


def bundle_stages(
    bundle_dir: str | os.PathLike[str],
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
    providers: str | Sequence[str],
    threads: int | None,
    prefix: str,
) -> dict[str, Stage]:
    """Encoder, decoder (one click, low-resolution masks) and end to end, as functions to time."""
    segmenter = Segmenter(bundle_dir, providers, threads)
    feeds = segmenter.encoder_feeds(pixels)
    height, width = pixels.shape[:2]
    points, labels = [[[width / 2, height / 2]]], [[1]]
    segmenter.set_image(pixels)

    def end_to_end() -> None:
        segmenter.set_image(pixels)
        segmenter.predict_batch(points, labels)

    return {
        f"{prefix}encoder": lambda: segmenter.encode(feeds),
        f"{prefix}decoder": lambda: segmenter.predict_low_res(points, labels),
        f"{prefix}end to end": end_to_end,
    }


def onnx_stage(path: str, providers: str | Sequence[str], threads: int | None) -> Stage:
    """Any ONNX file with static float32 inputs, fed with noise."""
    try:
        session = open_session(Path(path).read_bytes(), path, providers, threads)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    rng = np.random.default_rng(0)
    feeds = {}
    for tensor in session.get_inputs():
        if tensor.type != "tensor(float)" or not all(type(n) is int for n in tensor.shape):
            raise BundleError(
                f"{path}: input {tensor.name} is {tensor.type} {tensor.shape}; "
                "bench feeds float32 of static shapes"
            )
        feeds[tensor.name] = rng.standard_normal(tensor.shape, np.float32)
    return lambda: session.run(None, feeds)


def gemm_stage(threads: int | None) -> Stage:
    """A product of two square matrices through onnxruntime, on the CPU, with as many threads."""
    model = files("pocketsam.runtime").joinpath("gemm.onnx").read_bytes()
    session: ort.InferenceSession = open_session(model, "gemm.onnx", threads=threads)
    matrix = np.random.default_rng(0).standard_normal((GEMM_SIDE, GEMM_SIDE), np.float32)
    return lambda: session.run(None, {"a": matrix, "b": matrix})


def time_interleaved(stages: dict[str, Stage], runs: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each stage in each round; a round runs every stage once."""
    times: dict[str, list[float]] = {name: [] for name in stages}
    for number in range(warmup + runs):
        for name, stage in stages.items():
            start = time.perf_counter()
            stage()
            seconds = time.perf_counter() - start
            if number >= warmup:
                times[name].append(seconds)
    return times


def summarise(samples: list[float]) -> dict[str, float]:
    """n, min, p50, p90, p99 and mean of some seconds."""
    p50, p90, p99 = np.percentile(samples, [50, 90, 99]).tolist()
    return {
        "n": len(samples),
        "min": min(samples),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": sum(samples) / len(samples),
    }


def _floor(
    macs: int | None, figures: dict[str, dict[str, float]], gflops: float
) -> dict[str, float] | None:
    if macs is None:
        return None
    seconds = 2 * macs / gflops / 1e9
    encoder = figures["encoder"]
    return {
        "seconds": seconds,
        "ratio_min": encoder["min"] / seconds,
        "ratio_p50": encoder["p50"] / seconds,
    }


def add_bench(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("bench", help="measure a bundle on this machine")
    parser.add_argument("bundle")
    parser.add_argument("--runs", type=int, default=20, metavar="N")
    parser.add_argument("--warmup", type=int, default=3, metavar="N")
    parser.add_argument("--image", metavar="FILE", help="default: a drawn image of 1024x768")
    parser.add_argument(
        "--against", metavar="PATH", help="a second bundle or encoder.onnx, timed in the same rounds"
    )
    parser.add_argument("--json", action="store_true")
    terminal.add_device_options(parser)
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> None:
    """Runs the command."""
    result = bench(
        args.bundle,
        args.runs,
        args.warmup,
        terminal.providers(args),
        args.threads,
        args.image,
        args.against,
    )
    if args.json:
        terminal.print_json(result)
    else:
        print_bench(result)


def print_bench(result: dict[str, Any]) -> None:
    """The result as a table, in milliseconds."""
    machine, settings = result["machine"], result["settings"]
    print(f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])})")
    versions = ", ".join(f"{k} {machine[k]}" for k in ("python", "onnxruntime", "numpy", "pocketsam"))
    print(f"{machine['system']}; {versions}")
    print(
        f"{', '.join(settings['providers'])}; threads: {settings['threads']}; "
        f"{settings['runs']} rounds after {settings['warmup']} for warming up"
    )
    print(f"{'ms':20}" + "".join(f"{key:>9}" for key in ("min", "p50", "p90", "p99")))
    for name, row in result["stages"].items():
        print(f"{name:20}" + "".join(f"{row[key] * 1e3:9.1f}" for key in ("min", "p50", "p90", "p99")))
    cold = result["cold_load_s"]
    source = "from disk" if cold["page_cache_dropped"] else "page cache warm"
    print(f"load ({source}): encoder {cold['encoder']:.2f} s, decoder {cold['decoder']:.2f} s")
    if result["peak_rss_bytes"]:
        print(f"peak memory after the first image: {result['peak_rss_bytes'] / 2**20:.0f} MiB")
    print(
        f"matrix product {GEMM_SIDE}³ in the same rounds: {result['gemm']['gflop_per_s']:.0f} GFLOP/s"
    )
    for when, state in result["state"].items():
        if state:
            print(f"{when}: " + ", ".join(f"{key} {value}" for key, value in state.items()))
    if floor := result["encoder_floor"]:
        print(
            f"floor of the encoder at that rate: {floor['seconds'] * 1e3:.1f} ms; "
            f"it takes {floor['ratio_min']:.2f} × that (min), {floor['ratio_p50']:.2f} × (median)"
        )
    if against := result.get("against"):
        ratio = against["encoder_time_ratio"]
        print(
            f"encoder time over that of {against['path']}: "
            f"{ratio['min']:.3f} (min), {ratio['p50']:.3f} (median)"
        )
