"""``pocketsam bench``: latency of a bundle on this machine."""

import argparse
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from pocketsam import terminal
from pocketsam.errors import UsageError
from pocketsam.images import Pixels, StrPath, load_image
from pocketsam.runtime.backends.networks import open_for_device
from pocketsam.runtime.backends.ort import check_threads, provider_names
from pocketsam.runtime.backends.providers import OPENVINO, Providers, is_provider, list_providers
from pocketsam.runtime.benchmarks.timing import (
    GEMM_SIDE,
    Floor,
    LoadTimes,
    Task,
    Timing,
    bundle_tasks,
    drawn_image,
    encoder_floor,
    gemm_gflops,
    gemm_task,
    onnx_task,
    summarise,
    time_interleaved,
    time_loading,
)
from pocketsam.runtime.bundle import Bundle
from pocketsam.runtime.commands.engines import ENGINES_HELP, run_engines
from pocketsam.runtime.commands.options import add_bundle, add_device
from pocketsam.runtime.contract import ONNX_TARGETS
from pocketsam.runtime.machine import describe_machine, peak_rss_bytes, read_state
from pocketsam.runtime.segmenter import Segmenter

RUNS, WARMUP = 20, 3


class GemmResult(TypedDict):
    """Side of the square matrices, the rate of the fastest product, and the products' times."""

    side: int
    gflop_per_s: float
    seconds: Timing


class Figures(TypedDict):
    """What follows from the timed rounds.

    ``stages`` has ``encoder``, ``decoder``, ``end to end``, and ``against encoder`` and so on with a
    second bundle. ``encoder_floor`` is a lower bound of the encoder's time, see ``Floor``.
    """

    stages: dict[str, Timing]
    gemm: GemmResult
    encoder_floor: Floor | None


class BenchResult(Figures):
    """What ``bench`` returns and ``pocketsam bench --json`` prints; times are seconds.

    ``state`` is ``before`` and ``after`` the rounds: temperature, frequency, throttling. ``load_s``
    says whether the files came from the disk. ``peak_rss_bytes`` is of this process, with the bundle
    loaded and one image done.
    """

    bundle: str
    machine: dict[str, Any]
    state: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    load_s: LoadTimes
    peak_rss_bytes: int | None
    against: NotRequired[dict[str, Any]]


def check_rounds(runs: int, warmup: int) -> None:
    """Raises UsageError unless there is at least one timed round."""
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0)):
        if type(value) is not int or value < least:
            raise UsageError(f"{name} must be a whole number of at least {least}, not {value}")


def bench(
    bundle_dir: StrPath,
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    providers: Providers = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    image: StrPath | None = None,
    against: str | None = None,
) -> BenchResult:
    """Returns the latency of a bundle on this machine, and what it was measured with.

    Args:
        bundle_dir: the bundle.
        runs: number of timed rounds.
        warmup: number of untimed warm-up rounds before them.
        providers, threads, precision: as for ``Segmenter``.
        image: a file; None: a drawn image of 1024x768.
        against: a second bundle, or an encoder as ONNX file, timed in the same rounds.

    Raises:
        UsageError: ``runs`` or ``warmup`` is too small.
        BundleError, ImageError, ProviderError: what cannot be opened.
    """
    check_rounds(runs, warmup)
    pixels = drawn_image() if image is None else load_image(image)
    bundle, providers = open_for_device(bundle_dir, providers, precision, threads)
    settings = {
        "precision": bundle.manifest.precision,
        "providers": _names(bundle, providers),
        "threads": threads,
        "runs": runs,
        "warmup": warmup,
        "image_pixels": list(pixels.shape[:2]),
    }
    load = time_loading(bundle, providers, threads)
    segmenter = Segmenter(
        bundle.path, providers=providers, threads=threads, precision=bundle.manifest.precision
    )
    tasks = bundle_tasks(segmenter, pixels)
    tasks["end to end"]()
    peak = peak_rss_bytes()  # before anything else is loaded for comparison
    more, second = _second_tasks(against, pixels, providers, threads)
    tasks |= more | {"gemm": gemm_task(threads)}
    before = read_state()
    times = time_interleaved(tasks, runs, warmup)
    state = {"before": before, "after": read_state()}
    figures = _figures(times, bundle.manifest.encoder.macs)
    result: BenchResult = {
        "bundle": str(bundle_dir),
        "machine": describe_machine(),
        "state": state,
        "settings": settings,
        "load_s": load,
        "stages": figures["stages"],
        "gemm": figures["gemm"],
        "encoder_floor": figures["encoder_floor"],
        "peak_rss_bytes": peak,
    }
    if second:
        result["against"] = second | {"encoder_time_ratio": _ratios(result["stages"])}
    return result


def _names(bundle: Bundle, providers: Providers) -> list[str]:
    """Returns what the result calls providers: onnxruntime's names, others as they were given."""
    is_onnxruntime = bundle.manifest.target in ONNX_TARGETS and not is_provider(providers, OPENVINO)
    return provider_names(providers) if is_onnxruntime else list_providers(providers)


def _figures(times: dict[str, list[float]], macs: int | None) -> Figures:
    """Returns what follows from the seconds of all tasks.

    Args:
        times: of the rounds, by task; one of them is ``gemm``.
        macs: the encoder's multiply-accumulates, if the manifest has them.
    """
    stages = {name: summarise(samples) for name, samples in times.items()}
    gemm = stages.pop("gemm")
    gflops = gemm_gflops(gemm["min"])
    return {
        "stages": stages,
        "gemm": {"side": GEMM_SIDE, "gflop_per_s": gflops, "seconds": gemm},
        "encoder_floor": None if macs is None else encoder_floor(macs, stages["encoder"], gflops),
    }


def _second_tasks(
    path: str | None, pixels: Pixels, providers: Providers, threads: int | None
) -> tuple[dict[str, Task], dict[str, Any]]:
    """Returns the tasks of a second bundle or encoder, if any; its path, precision, loading times."""
    if path is None:
        return {}, {}
    if not Path(path).is_dir():
        return {"against encoder": onnx_task(path, providers, threads)}, {"path": path}
    bundle, providers = open_for_device(path, providers, None, threads)
    precision = bundle.manifest.precision
    load = time_loading(bundle, providers, threads)
    segmenter = Segmenter(path, providers=providers, threads=threads, precision=precision)
    about = {"path": path, "precision": precision, "load_s": load}
    return bundle_tasks(segmenter, pixels, "against "), about


def _ratios(stages: dict[str, Timing]) -> dict[str, float]:
    """Returns the encoder's time as a multiple of the second encoder's."""
    ours, theirs = stages["encoder"], stages["against encoder"]
    return {"min": ours["min"] / theirs["min"], "p50": ours["p50"] / theirs["p50"]}


def add_bench(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("bench", help="measure a bundle on this machine")
    add_bundle(parser)
    add_device(parser)
    parser.add_argument(
        "--runs", type=int, default=RUNS, metavar="N", help=f"timed rounds (default {RUNS})"
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=WARMUP,
        metavar="N",
        help=f"untimed warm-up rounds before them (default {WARMUP})",
    )
    parser.add_argument("--image", metavar="FILE", help="default: a drawn image of 1024x768")
    parser.add_argument(
        "--against", metavar="PATH", help="a second bundle or encoder.onnx, timed in the same rounds"
    )
    parser.add_argument("--engines", action="store_true", help=ENGINES_HELP)
    parser.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_threads(args.threads)
    check_rounds(args.runs, args.warmup)
    if args.engines:
        run_engines(args)
        return
    result = bench(
        args.bundle,
        runs=args.runs,
        warmup=args.warmup,
        providers=terminal.providers(args),
        threads=args.threads,
        precision=args.precision,
        image=args.image,
        against=args.against,
    )
    if args.json:
        terminal.print_json(result)
    else:
        print_bench(result)


def print_bench(result: BenchResult) -> None:
    """Prints the result as a table, in milliseconds."""
    _print_settings(result)
    print(f"{'ms':20}" + "".join(f"{key:>9}" for key in ("min", "p50", "p90", "p99")))
    for name, row in result["stages"].items():
        values = (row["min"], row["p50"], row["p90"], row["p99"])
        print(f"{name:20}" + "".join(f"{value * 1e3:9.1f}" for value in values))
    load = result["load_s"]
    source = "from disk" if load["page_cache_dropped"] else "page cache warm"
    print(f"load ({source}): encoder {load['encoder']:.2f} s, decoder {load['decoder']:.2f} s")
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
            f"floor (lower bound) of the encoder's time at that rate: {floor['seconds'] * 1e3:.1f} ms; "
            f"it takes {floor['ratio_min']:.2f} × that (min), {floor['ratio_p50']:.2f} × (median)"
        )
    if against := result.get("against"):
        ratio = against["encoder_time_ratio"]
        precision = f" ({against['precision']})" if "precision" in against else ""
        print(
            f"encoder time relative to {against['path']}{precision}: "
            f"{ratio['min']:.3f} (min), {ratio['p50']:.3f} (median)"
        )
    image, click = (result["stages"][name]["p50"] for name in ("encoder", "decoder"))
    print(f"one image takes {image:.2f} s, one click {click:.3f} s")


def _print_settings(result: BenchResult) -> None:
    machine, settings = result["machine"], result["settings"]
    print(f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])})")
    versions = ", ".join(f"{k} {machine[k]}" for k in ("python", "onnxruntime", "numpy", "pocketsam"))
    print(f"{machine['system']}; {versions}")
    print(
        f"{settings['precision']}; {', '.join(settings['providers'])}; "
        f"threads: {settings['threads'] or 'default'}; "
        f"{settings['runs']} timed rounds after {settings['warmup']} warm-up rounds"
    )
