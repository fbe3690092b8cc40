"""What machine this is: a timing without it says nothing."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve"),
)
"""CPU features that matrix kernels choose by; the rest of the long list is left out."""


def describe_machine() -> dict[str, Any]:
    """CPU, its cores and features, system, and the versions that take part in a measurement."""
    model, features = _cpu()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": model,
        "flags": [flag for flag in FLAGS if flag in features],
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("pocketsam", "onnxruntime", "numpy", "pillow")},
    }


def _cpu() -> tuple[str, set[str]]:
    """Name and features as Linux tells them; elsewhere only what ``platform`` knows."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    board = Path("/proc/device-tree/model")  # the name of a Raspberry Pi stands here
    name = board.read_text(errors="replace").strip("\0\n") if board.exists() else ""
    name = name or fields.get("model name") or platform.processor() or platform.machine()
    return name, set((fields.get("flags") or fields.get("Features") or "").split())


def peak_rss_bytes() -> int | None:
    """Largest resident size of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
