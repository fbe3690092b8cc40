"""What machine this is: a timing without it says nothing."""

import contextlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import PIL

import pocketsam

OWN_VERSIONS = {
    "pocketsam": pocketsam.__version__,
    "onnxruntime": ort.__version__,
    "numpy": np.__version__,
    "pillow": PIL.__version__,
}
"""What the runtime imports, by name on PyPI."""

FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve"),
)
"""CPU features that matrix kernels are chosen by."""


THROTTLED = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
    16: "under-voltage has occurred",
    17: "frequency capping has occurred",
    18: "throttling has occurred",
    19: "soft temperature limit has occurred",
}
"""Bits of a Raspberry Pi's ``vcgencmd get_throttled``, from its documentation."""


def describe_machine() -> dict[str, Any]:
    """Returns the CPU, cores and features, the system, and versions, for a measurement."""
    return {
        "cpu": describe_cpu(),
        "flags": cpu_flags(),
        "cores": count_cores(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: package_version(name) for name in OWN_VERSIONS},
    }


def package_version(name: str) -> str:
    """Returns the version of a package by its name on PyPI.

    Of what pocketsam itself imports, the module says it: builds of onnxruntime are installed under
    names of their own, such as ``onnxruntime-gpu``, and ``importlib.metadata`` knows only that name.
    """
    return OWN_VERSIONS.get(name) or version(name)


def describe_cpu() -> str:
    """Returns the CPU's name, on a Raspberry Pi the board's."""
    return _cpu()[0]


def cpu_flags() -> list[str]:
    """Returns the features in ``FLAGS`` that the CPU has."""
    features = _cpu()[1]
    return [flag for flag in FLAGS if flag in features]


def count_cores() -> int:
    """Returns the number of cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu() -> tuple[str, set[str]]:
    """Returns the CPU's name and features, as Linux reports them; elsewhere what ``platform`` knows."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    board = Path("/proc/device-tree/model")  # a Raspberry Pi's name
    name = board.read_text(errors="replace").strip("\0\n") if board.exists() else ""
    name = name or fields.get("model name") or platform.processor() or platform.machine()
    return name, set((fields.get("flags") or fields.get("Features") or "").split())


def read_state(system: Path = Path("/sys")) -> dict[str, Any]:
    """Returns what may slow a small computer down.

    Args:
        system: where Linux shows its devices.

    Returns:
        ``temperature_c`` of the hottest zone, ``frequency_mhz`` of the fastest core and the
        ``frequency_limit_mhz``, and on a Raspberry Pi ``throttled``: what its firmware reports, now and
        since it started. What the system does not show is missing.
    """
    state: dict[str, Any] = {}

    def numbers(pattern: str, base: int = 10) -> list[int]:
        found = []
        for path in system.glob(pattern):
            with contextlib.suppress(OSError, ValueError):
                found.append(int(path.read_text().strip(), base))
        return found

    if zones := numbers("class/thermal/thermal_zone*/temp"):
        state["temperature_c"] = max(zones) / 1000
    if now := numbers("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"):
        state["frequency_mhz"] = max(now) / 1000
    if limits := numbers("devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"):
        state["frequency_limit_mhz"] = max(limits) / 1000
    if bits := numbers("devices/platform/soc/soc:firmware/get_throttled", 16):
        state["throttled"] = [name for bit, name in THROTTLED.items() if bits[0] >> bit & 1]
    return state


def peak_rss_bytes() -> int | None:
    """Returns the largest resident size of this process so far; None where it is unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
