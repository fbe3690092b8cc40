"""``pocketsam roofline``: what MobileSAM's encoder can reach on a device, from two of its figures.

The roofline model (Williams et al. 2009): an operation takes at least its arithmetic over the device's
FLOP/s, and at least its memory traffic over the bandwidth; an encoder takes the sum of the larger of
the two. That is a bound, not a prediction: kernels reach a half to nine tenths of a peak.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pocketsam import terminal
from pocketsam.errors import PocketSamError

SIZES = (256, 384, 512, 768, 1024)
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Operation:
    """Multiply-accumulates of one operation, the values that it moves, and its weights."""

    macs: float
    values: float
    weights: float


@dataclass(frozen=True)
class Device:
    """GFLOP/s in float32 and GB/s of memory, both peaks of the data sheet, and how they come about."""

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


def operations(size: int) -> Iterator[Operation]:
    """The encoder's convolutions, matrix products and elementwise passes at a canvas of ``size``."""

    def conv(
        side: int, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> Operation:
        out, weights = (side // stride) ** 2, outputs * inputs // groups * kernel**2
        return Operation(out * weights, side**2 * inputs + out * outputs, weights)

    def gelu(side: int, channels: int) -> Operation:
        return Operation(0, 2 * side**2 * channels, 0)

    def merging(side: int, inputs: int, outputs: int, stride: int) -> Iterator[Operation]:
        yield conv(side, inputs, outputs)
        yield gelu(side, outputs)
        yield conv(side, outputs, outputs, 3, stride, outputs)
        yield gelu(side // stride, outputs)
        yield conv(side // stride, outputs, outputs)

    def block(side: int, channels: int, window: int) -> Iterator[Operation]:
        tokens, padded = side**2, (-(-side // window) * window) ** 2
        keys = window**2
        yield Operation(0, 2 * tokens * channels, 0)  # LayerNorm
        yield Operation(3 * padded * channels**2, 4 * padded * channels, 3 * channels**2)
        scores = padded * keys * (channels // 32)
        yield Operation(padded * keys * channels, 2 * padded * channels + scores, 0)
        yield Operation(0, 2 * scores, 0)  # softmax
        yield Operation(padded * keys * channels, 2 * padded * channels + scores, 0)
        yield Operation(padded * channels**2, 2 * padded * channels, channels**2)
        yield conv(side, channels, channels, 3, groups=channels)
        yield Operation(0, 2 * tokens * channels, 0)  # LayerNorm
        yield Operation(4 * tokens * channels**2, 5 * tokens * channels, 4 * channels**2)
        yield Operation(0, 8 * tokens * channels, 0)  # GELU
        yield Operation(4 * tokens * channels**2, 5 * tokens * channels, 4 * channels**2)

    side = size // 4
    yield conv(size, 3, 32, 3, 2)
    yield gelu(size // 2, 32)
    yield conv(size // 2, 32, 64, 3, 2)
    for _ in range(2):
        yield conv(side, 64, 256)
        yield gelu(side, 256)
        yield conv(side, 256, 256, 3, groups=256)
        yield gelu(side, 256)
        yield conv(side, 256, 64)
        yield gelu(side, 64)
    yield from merging(side, 64, 128, 2)
    for _ in range(2):
        yield from block(size // 8, 128, 7)
    yield from merging(size // 8, 128, 160, 2)
    for _ in range(6):
        yield from block(size // 16, 160, 14)
    yield from merging(size // 16, 160, 320, 1)
    for _ in range(2):
        yield from block(size // 16, 320, 7)
    yield conv(size // 16, 320, 256)
    yield conv(size // 16, 256, 256, 3)


def encoder_macs(size: int) -> int:
    """Multiply-accumulates of the encoder: 38.8 G at 1024."""
    return int(sum(operation.macs for operation in operations(size)))


def bound(size: int, gflops: float, bandwidth: float, bytes_per_value: int = FLOAT_BYTES) -> float:
    """Seconds that the encoder takes at least.

    Args:
        size: side of the canvas in pixels.
        gflops: GFLOP/s of the device; a multiply-accumulate is two.
        bandwidth: GB/s of its memory.
        bytes_per_value: 4 for float32, 2 for float16.
    """
    return sum(
        max(
            2 * one.macs / gflops / 1e9,
            (one.values + one.weights) * bytes_per_value / bandwidth / 1e9,
        )
        for one in operations(size)
    )


def measure() -> Device:
    """This machine: the rate of a matrix product, and of copying 256 MB."""
    from pocketsam.runtime.commands.bench import GEMM_SIDE, Stage, gemm_stage

    def best(stage: Stage) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            stage()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    gflops = 2 * GEMM_SIDE**3 / best(gemm_stage(None)) / 1e9
    bandwidth = 3 * source.nbytes / best(lambda: np.copyto(target, source)) / 1e9  # write-allocate
    return Device(gflops, bandwidth, "this machine, measured: matrix product, copy")


def add_roofline(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "roofline", help="what the encoder can reach on a device, from its FLOP/s and bandwidth"
    )
    parser.add_argument("device", nargs="?", choices=sorted(DEVICES), help="default: this machine")
    parser.add_argument("--gflops", type=float, metavar="X", help="GFLOP/s of another device")
    parser.add_argument("--bandwidth", type=float, metavar="X", help="GB/s of its memory")
    parser.add_argument("--bits", type=int, choices=(32, 16), default=32, help="of each value")
    parser.add_argument(
        "--efficiency", type=float, default=0.5, metavar="X",
        help="share of the bound's speed that kernels reach, for the estimate (default 0.5)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run_roofline)


def run_roofline(args: argparse.Namespace) -> None:
    """Prints bound and estimate for each image size."""
    if (args.gflops is None) != (args.bandwidth is None):
        raise PocketSamError("--gflops and --bandwidth belong together")
    if args.device and args.gflops is not None:
        raise PocketSamError("name a device, or give --gflops and --bandwidth, not both")
    if args.gflops is not None:
        device = Device(args.gflops, args.bandwidth, "as given")
    else:
        device = DEVICES[args.device] if args.device else measure()
    if not (device.gflops > 0 and device.bandwidth > 0 and 0 < args.efficiency <= 1):
        raise PocketSamError("GFLOP/s and GB/s must be above 0, and the efficiency in 0..1")
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
