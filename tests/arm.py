"""The runtime on a Raspberry Pi's processors, emulated: ``make test-arm``.

Builds a 64-bit ARM Debian in ``build/arm`` with the wheel of this checkout and the aarch64 wheels of
its dependencies, and runs `verify` and `segment` there under qemu-user with the CPU models of a Pi 4
and a Pi 5. Masks must be those of this machine. Nothing is timed: an emulator's speed says nothing.

    python tests/arm.py BUNDLE IMAGE
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from pocketsam.runtime.rle import from_rle

CPUS = {"Raspberry Pi 4": ("cortex-a72", 0xD08), "Raspberry Pi 5": ("cortex-a76", 0xD0B)}
"""The processor, and the number that it goes by in /proc/cpuinfo."""
PROGRAMS = {"qemu-aarch64-static": "qemu-user-static", "debootstrap": "debootstrap"}
SUITE, PYTHON = "bookworm", "python3.11"
ONNXRUNTIME = ("1.23.2", "1.32.0")
CLICK = ("--point", "220,120")


def main(bundle: str, image: str) -> None:
    missing = sorted({PROGRAMS[name] for name in PROGRAMS if shutil.which(name) is None})
    if missing:
        sys.exit(f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    folder = Path("build/arm").resolve()
    root = make_root(folder / "root")
    here = answers(lambda *args: [sys.executable, "-m", "pocketsam", *args], {}, bundle, image, folder)
    failed = 0
    for number in ONNXRUNTIME:
        site = install(folder / f"onnxruntime-{number}", number)
        for board, (cpu, part) in CPUS.items():
            describe_processor(root, part)
            environment = {"QEMU_CPU": cpu, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
            there = answers(lambda *args: emulated(root, *args), environment, bundle, image, folder)
            iou = (there & here).sum() / (there | here).sum()
            ok = iou >= 0.999
            failed += not ok
            print(
                f"{'✓' if ok else '✗'} {board} ({cpu}), onnxruntime {number}: "
                f"mask IoU with x86 {iou:.6f}"
            )
    print(f"{len(ONNXRUNTIME) * len(CPUS) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


def emulated(root: Path, *args: str) -> list[str]:
    return [
        "qemu-aarch64-static",
        "-L",
        str(root),
        str(root / f"usr/bin/{PYTHON}"),
        "-P",  # not the checkout's folder of the same name
        "-m",
        "pocketsam",
        *args,
    ]


def answers(command, environment: dict[str, str], bundle: str, image: str, folder: Path) -> np.ndarray:
    """The mask of a click, after the bundle's golden vectors have passed."""
    output = folder / "answer.json"
    for arguments in (
        ("verify", bundle, "--threads", "1"),
        ("segment", bundle, image, *CLICK, "--threads", "1", "--output", str(output)),
    ):
        done = subprocess.run(
            command(*arguments),
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(
                f"{' '.join(arguments)} with {environment} ended with {done.returncode}:\n{done.stderr}"
            )
    (best, *_) = json.loads(output.read_text())["masks"]
    output.unlink()
    return from_rle(best["segmentation"])


def make_root(root: Path) -> Path:
    """Debian for ARM, unpacked and not configured: enough for its Python to start."""
    if (root / "done").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    packages = f"{PYTHON},libgomp1,libstdc++6,zlib1g,libexpat1,libffi8"
    subprocess.run(
        ["debootstrap", "--arch=arm64", "--foreign", f"--include={packages}", SUITE, str(root)],
        check=True,
    )
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    (root / "done").touch()
    return root


def describe_processor(root: Path, part: int) -> None:
    """/proc/cpuinfo as a Pi has it. qemu-user before 8.2 shows this machine's, and with that of an x86
    processor onnxruntime from 1.28 on ends in a segmentation fault while it is imported."""
    lines = ["BogoMIPS\t: 108.00", "Features\t: fp asimd evtstrm crc32 cpuid"]
    numbers = {"implementer": "0x41", "architecture": "8", "variant": "0x0", "part": hex(part)}
    lines += [f"CPU {key}\t: {value}" for key, value in (numbers | {"revision": "1"}).items()]
    cores = ["\n".join([f"processor\t: {n}", *lines]) for n in range(os.cpu_count() or 1)]
    (root / "proc/cpuinfo").write_text("\n\n".join(cores) + "\n")


def install(site: Path, onnxruntime: str) -> Path:
    """The wheel of this checkout and the aarch64 wheels that pip would choose, unpacked in a folder."""
    wheels = site / "wheels"
    shutil.rmtree(site, ignore_errors=True)
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."], check=True
    )
    (ours,) = wheels.glob("pocketsam-*.whl")
    platforms = [f"--platform=manylinux_2_{n}_aarch64" for n in (17, 27, 28)] + [
        "--platform=manylinux2014_aarch64"
    ]
    subprocess.run(
        [*pip, "download", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp",
         *platforms, "-d", str(wheels), str(ours), f"onnxruntime=={onnxruntime}"],
        check=True,
    )  # fmt: skip
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return site


if __name__ == "__main__":
    main(*sys.argv[1:])
