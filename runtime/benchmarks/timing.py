"""Measures latency so that the figure means something.

All tasks are timed in turns, so that a machine that slows down slows all of them. A matrix product
among them gives a floor, a lower bound of a network's time: what its multiplications alone take at the
rate of this run.
"""

import os
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TypedDict

import numpy as np
import onnxruntime as ort

from pocketsam import terminal
from pocketsam.errors import BundleError
from pocketsam.images import Pixels
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.backends.ort import open_session
from pocketsam.runtime.backends.providers import Providers
from pocketsam.runtime.bundle import NETWORKS, Bundle, read_model
from pocketsam.runtime.segmenter import Segmenter

GEMM_SIDE = 2048
Task = Callable[[], object]


class Timing(TypedDict):
    """Number of samples, and their minimum, percentiles and mean in seconds."""

    n: int
    min: float
    p50: float
    p90: float
    p99: float
    mean: float


class Floor(TypedDict):
    """A lower bound of the encoder's time, and how many times as long the encoder takes.

    The bound is the seconds that the encoder's multiplications alone take.
    """

    seconds: float
    ratio_min: float
    ratio_p50: float


class LoadTimes(TypedDict):
    """Seconds to open each network, and whether the system's cache of the files was dropped before."""

    encoder: float
    decoder: float
    page_cache_dropped: bool


def time_interleaved(tasks: Mapping[str, Task], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Runs every task once in each round; returns the seconds of each task in each round.

    Shows its progress on stderr.

    Args:
        tasks: by name.
        rounds: number of timed rounds.
        warmup: number of untimed warm-up rounds before them.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(warmup + rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds = time.perf_counter() - start
            if number >= warmup:
                times[name].append(seconds)
        total = warmup + rounds
        terminal.show_progress(f"round {number + 1} of {total}", last=number + 1 == total)
    return times


def summarise(samples: list[float]) -> Timing:
    """Returns number, minimum, percentiles and mean of samples in seconds."""
    p50, p90, p99 = np.percentile(samples, [50, 90, 99]).tolist()
    mean = sum(samples) / len(samples)
    return {"n": len(samples), "min": min(samples), "p50": p50, "p90": p90, "p99": p99, "mean": mean}


def gemm_task(threads: int | None) -> Task:
    """Returns a task that multiplies two square matrices of ``GEMM_SIDE`` in onnxruntime on a CPU."""
    model = files("pocketsam.runtime.benchmarks").joinpath("gemm.onnx").read_bytes()
    session: ort.InferenceSession = open_session(model, "gemm.onnx", threads=threads)
    matrix = np.random.default_rng(0).standard_normal((GEMM_SIDE, GEMM_SIDE), np.float32)
    return lambda: session.run(None, {"a": matrix, "b": matrix})


def gemm_gflops(seconds: float) -> float:
    """Returns the GFLOP/s of a ``gemm_task`` that took some seconds."""
    return float(2 * GEMM_SIDE**3 / seconds / 1e9)


def encoder_floor(macs: int, encoder: Timing, gflops: float) -> Floor:
    """Returns the lower bound of the encoder's time, and the encoder's multiples of it.

    Args:
        macs: the encoder's multiply-accumulates.
        encoder: its figures.
        gflops: rate of the matrix product in the same rounds.
    """
    seconds = 2 * macs / gflops / 1e9
    return {
        "seconds": seconds,
        "ratio_min": encoder["min"] / seconds,
        "ratio_p50": encoder["p50"] / seconds,
    }


def drawn_image() -> Pixels:
    """Returns gradients and noise, 768x1024: latency does not depend on what is in a picture."""
    y, x = np.mgrid[0:768, 0:1024]
    noise = np.random.default_rng(0).integers(0, 64, (768, 1024, 3))
    ramps = np.stack([x * 191 // 1024, y * 191 // 768, (x + y) * 191 // 1792], axis=-1)
    return (ramps + noise).astype(np.uint8)


def bundle_tasks(segmenter: Segmenter, pixels: Pixels, prefix: str = "") -> dict[str, Task]:
    """Returns a bundle's tasks by name: ``encoder``, ``decoder`` (one click) and ``end to end``.

    Args:
        segmenter: the bundle; the image is set afterwards.
        pixels: the image, ``[H, W, 3]`` uint8.
        prefix: of the tasks' names.
    """
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


def onnx_task(path: str, providers: Providers, threads: int | None) -> Task:
    """Returns a task that runs any ONNX file with static float32 inputs, fed with noise.

    Raises:
        BundleError: the file cannot be read, or has other inputs.
    """
    session = open_session(read_model(path), path, providers, threads, foreign=True)
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


def time_loading(bundle: Bundle, providers: Providers, threads: int | None) -> LoadTimes:
    """Returns the seconds to open each network, from the disk where the system can drop its cache.

    Raises:
        BundleError, IntegrityError: a file is missing, damaged or not the one that the manifest
            describes.
    """
    seconds = {}
    dropped = hasattr(os, "posix_fadvise")
    for network in NETWORKS:
        bundle.source(network)  # checks the file
        if dropped:
            descriptor = os.open(bundle.path / bundle.manifest.network(network).file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        start = time.perf_counter()
        open_network(bundle, network, providers, threads)
        seconds[network] = time.perf_counter() - start
    encoder, decoder = (seconds[network] for network in NETWORKS)
    return {"encoder": encoder, "decoder": decoder, "page_cache_dropped": dropped}
