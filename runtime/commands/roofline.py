"""``pocketsam roofline``: how fast MobileSAM's encoder can be on a device.

The roofline model (Williams et al. 2009) divides each operation's arithmetic by the device's FLOP/s,
and its memory traffic by the bandwidth, and adds up the larger of the two. The sum is a bound, not a
prediction: kernels reach 50 to 90 % of a peak.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pocketsam import terminal
from pocketsam.errors import UsageError
from pocketsam.runtime.benchmarks.timing import gemm_gflops, gemm_task, time_interleaved

SIZES = (256, 384, 512, 768, 1024)
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Operation:
    """An operation's multiply-accumulates, the values that it moves, and its weights, as numbers."""

    macs: float
    values: float
    weights: float


@dataclass(frozen=True)
class Device:
    """Peak GFLOP/s in float32 and GB/s of memory, and the data sheet that they come from."""

    gflops: float
    bandwidth: float
    about: str


DEVICES = {
    "pi4": Device(57.6, 12.8, "Raspberry Pi 4: 4 Cortex-A72, 1.8 GHz x 8 flop; LPDDR4-3200, 32 bit"),
    "pi5": Device(153.6, 17.1, "Raspberry Pi 5: 4 Cortex-A76, 2.4 GHz x 16 flop; LPDDR4X-4267, 32 bit"),
    "t4": Device(8_100, 320, "NVIDIA T4, float32"),
    "rtx4090": Device(82_600, 1_008, "NVIDIA GeForce RTX 4090, float32"),
    "h100": Device(67_000, 3_350, "NVIDIA H100 SXM, float32 without tensor cores"),
}


def _conv(
    side: int, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> Operation:
    out, weights = (side // stride) ** 2, outputs * inputs // groups * kernel**2
    return Operation(out * weights, side**2 * inputs + out * outputs, weights)


def _gelu(side: int, channels: int) -> Operation:
    return Operation(0, 2 * side**2 * channels, 0)


def _merging(side: int, inputs: int, outputs: int, stride: int) -> Iterator[Operation]:
    yield _conv(side, inputs, outputs)
    yield _gelu(side, outputs)
    yield _conv(side, outputs, outputs, 3, stride, outputs)
    yield _gelu(side // stride, outputs)
    yield _conv(side // stride, outputs, outputs)


def _block(side: int, channels: int, window: int) -> Iterator[Operation]:
    tokens, padded = side**2, (-(-side // window) * window) ** 2
    keys = window**2
    yield Operation(0, 2 * tokens * channels, 0)  # LayerNorm
    yield Operation(3 * padded * channels**2, 4 * padded * channels, 3 * channels**2)
    scores = padded * keys * (channels // 32)
    yield Operation(padded * keys * channels, 2 * padded * channels + scores, 0)
    yield Operation(0, 2 * scores, 0)  # softmax
    yield Operation(padded * keys * channels, 2 * padded * channels + scores, 0)
    yield Operation(padded * channels**2, 2 * padded * channels, channels**2)
    yield _conv(side, channels, channels, 3, groups=channels)
    yield Operation(0, 2 * tokens * channels, 0)  # LayerNorm
    yield Operation(4 * tokens * channels**2, 5 * tokens * channels, 4 * channels**2)
    yield Operation(0, 8 * tokens * channels, 0)  # GELU
    yield Operation(4 * tokens * channels**2, 5 * tokens * channels, 4 * channels**2)


def operations(size: int) -> Iterator[Operation]:
    """Yields the encoder's operations at a canvas of ``size`` pixels."""
    side = size // 4
    yield _conv(size, 3, 32, 3, 2)
    yield _gelu(size // 2, 32)
    yield _conv(size // 2, 32, 64, 3, 2)
    for _ in range(2):
        yield _conv(side, 64, 256)
        yield _gelu(side, 256)
        yield _conv(side, 256, 256, 3, groups=256)
        yield _gelu(side, 256)
        yield _conv(side, 256, 64)
        yield _gelu(side, 64)
    yield from _merging(side, 64, 128, 2)
    for _ in range(2):
        yield from _block(size // 8, 128, 7)
    yield from _merging(size // 8, 128, 160, 2)
    for _ in range(6):
        yield from _block(size // 16, 160, 14)
    yield from _merging(size // 16, 160, 320, 1)
    for _ in range(2):
        yield from _block(size // 16, 320, 7)
    yield _conv(size // 16, 320, 256)
    yield _conv(size // 16, 256, 256, 3)


def encoder_macs(size: int) -> int:
    """Returns the encoder's multiply-accumulates: 38.8 G at 1024."""
    return int(sum(operation.macs for operation in operations(size)))


def bound(size: int, gflops: float, bandwidth: float, bytes_per_value: int = FLOAT_BYTES) -> float:
    """Returns the minimum number of seconds that the encoder takes.

    Args:
        size: side of the canvas in pixels.
        gflops: GFLOP/s of the device; a multiply-accumulate is two.
        bandwidth: GB/s of its memory.
        bytes_per_value: 4 for float32, 2 for float16.
    """
    return sum(
        max(
            2 * operation.macs / gflops / 1e9,
            (operation.values + operation.weights) * bytes_per_value / bandwidth / 1e9,
        )
        for operation in operations(size)
    )


def measure() -> Device:
    """Returns this machine's rate of a matrix product, and of copying 128 MB."""
    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    tasks = {"gemm": gemm_task(None), "copy": lambda: np.copyto(target, source)}
    times = time_interleaved(tasks, rounds=6, warmup=1)
    bandwidth = 3 * source.nbytes / min(times["copy"]) / 1e9  # a write reads the target first
    return Device(
        gemm_gflops(min(times["gemm"])), bandwidth, "this machine, measured: matrix product, copy"
    )


def add_roofline(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "roofline", help="what the encoder can reach on a device, from its FLOP/s and bandwidth"
    )
    parser.add_argument("device", nargs="?", choices=sorted(DEVICES), help="default: this machine")
    parser.add_argument("--gflops", type=float, metavar="X", help="GFLOP/s of another device")
    parser.add_argument("--bandwidth", type=float, metavar="X", help="GB/s of its memory")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(32, 16),
        default=32,
        help="of each value in memory; FLOP/s stay float32's",
    )
    parser.add_argument(
        "--efficiency", type=float, default=0.5, metavar="X",
        help="share of the bound's speed that kernels reach, for the estimate (default 0.5)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
    parser.set_defaults(run=run_roofline)


def run_roofline(args: argparse.Namespace) -> None:
    """Prints bound and estimate for each image size.

    ``--json`` prints an object: ``device``, ``bits``, and ``rows``, each with ``image_size``, ``gmac``,
    ``bound_s`` and ``estimate_s``.
    """
    if (args.gflops is None) != (args.bandwidth is None):
        raise UsageError("give --gflops and --bandwidth together")
    if args.device and args.gflops is not None:
        raise UsageError("name a device, or give --gflops and --bandwidth, not both")
    if not 0 < args.efficiency <= 1:
        raise UsageError(f"--efficiency {args.efficiency}: must be above 0, and at most 1")
    if args.gflops is not None:
        for name, value in (("gflops", args.gflops), ("bandwidth", args.bandwidth)):
            if not 0 < value < math.inf:
                raise UsageError(f"--{name} {value}: must be above 0, and finite")
        device = Device(args.gflops, args.bandwidth, "as given")
    else:
        device = DEVICES[args.device] if args.device else measure()
    rows = []
    for size in SIZES:
        seconds = bound(size, device.gflops, device.bandwidth, args.bits // 8)
        rows.append(
            {
                "image_size": size,
                "gmac": encoder_macs(size) / 1e9,
                "bound_s": seconds,
                "estimate_s": seconds / args.efficiency,
            }
        )
    if args.json:
        terminal.print_json({"device": vars(device), "bits": args.bits, "rows": rows})
        return
    print(f"{device.about}: {device.gflops:.4g} GFLOP/s, {device.bandwidth:.4g} GB/s")
    print(f"{'image size':>10} {'GMAC':>7} {'at least ms':>12} {f'at {args.efficiency:.0%} ms':>12}")
    for row in rows:
        print(
            f"{row['image_size']:>10} {row['gmac']:>7.1f} {1e3 * row['bound_s']:>12.1f} "
            f"{1e3 * row['estimate_s']:>12.1f}"
        )
    print("estimates from the data sheet, not measurements" if args.device else "an estimate")
