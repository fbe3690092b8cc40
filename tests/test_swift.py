"""``PocketSam.swift`` compiled and run on Linux: ``make test-swift``."""

import base64
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pocketsam import export
from pocketsam.export.artefact import open_networks
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.image import preprocess
from pocketsam.runtime.upscale import Upscaler

pytest.importorskip("coremltools")
SIZE = 128
SWIFT_ROOT = os.environ.get("SWIFT_ROOT")
"""A Debian system with Swift, as ``make test-swift`` makes one, where this one has none."""
SWIFT_MODULES = ("CoreGraphics", "CoreVideo", "CoreML", "ImageIO")


def swift_command(folder: Path, script: str) -> list[str]:
    """Returns what runs a shell script in a folder where Swift is."""
    if SWIFT_ROOT is None:
        return ["sh", "-ec", f"cd '{folder}'; {script}"]
    inside = "/" + folder.relative_to(SWIFT_ROOT).as_posix()
    script = f"export LD_LIBRARY_PATH=/usr/libexec/swift/lib/swift/linux; cd {inside}; {script}"
    enter = f'mount -t proc proc {SWIFT_ROOT}/proc; exec chroot {SWIFT_ROOT} sh -ec "$0"'
    return ["unshare", "--mount", "sh", "-ec", enter, script]


@pytest.fixture
def swift_folder(tmp_path):
    folder = Path(SWIFT_ROOT, "tmp", tmp_path.name) if SWIFT_ROOT else tmp_path / "swift"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def run_swift(folder: Path, networks: dict) -> tuple[list[list[str]], list[dict]]:
    """Runs the program on ``golden.npz`` and ``photo`` in its folder, and predicts for it.

    Returns:
        The words of each line that it prints, and the encoder's and decoder's inputs in order.
    """
    printed, asked = [], []
    with subprocess.Popen(
        swift_command(folder, "./program . photo"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while line := process.stdout.readline():
            words = line.split()
            if words[0] != "run":
                printed.append(words)
                continue
            feeds = {}
            while entry := process.stdout.readline().split():
                name, shape, text = entry
                values = np.frombuffer(bytearray(base64.b64decode(text)), "<f4")
                feeds[name] = values.reshape([int(size) for size in shape.split(",")])
            asked.append(feeds)
            for name, values in networks[words[1]](feeds).items():
                shape = ",".join(map(str, values.shape))
                text = base64.b64encode(values.astype("<f4").tobytes()).decode()
                process.stdin.write(f"{name} {shape} {text}\n")
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    return printed, asked


@pytest.mark.slow
@pytest.mark.skipif(
    not (SWIFT_ROOT or shutil.which("swiftc")), reason="no Swift compiler: run `make test-swift`"
)
def test_swift_masks_are_the_runtimes(tmp_path, pictures, swift_folder, photo):
    """Stubs of Apple's frameworks, and the interpreter for Core ML."""
    coreml = tmp_path / "coreml"
    export("seeded:5", coreml, target="coreml", image_size=SIZE, images=pictures, accept="lossy")
    for source in (coreml / "PocketSam.swift", *(Path(__file__).parent / "swift").glob("*.swift")):
        shutil.copy(source, swift_folder)
    module = "swiftc -swift-version 5 -static -emit-library -emit-module -I . {0}.swift -o lib{0}.a"
    steps = [f"{module} -module-name {{0}}".format(name) for name in SWIFT_MODULES]
    libraries = " ".join(f"-l{name}" for name in SWIFT_MODULES)
    steps.append(
        f"swiftc -swift-version 5 -O -I . -L . PocketSam.swift main.swift {libraries} -o program"
    )
    subprocess.run(swift_command(swift_folder, "; ".join(steps)), check=True)
    with np.load(coreml / "golden.npz") as golden:
        np.savez(swift_folder / "golden.npz", **golden)  # Linux has no Compression framework
    height, width = photo.shape[:2]
    alpha = np.full((height, width, 1), 255, np.uint8)
    size = np.array([width, height], "<i4").tobytes()
    (swift_folder / "photo").write_bytes(size + np.concatenate([photo, alpha], axis=2).tobytes())
    networks = dict(zip(("encoder", "decoder"), open_networks(open_bundle(coreml)), strict=True))
    printed, asked = run_swift(swift_folder, networks)
    checks = [line for line in printed if line[0] == "check"]
    assert len(checks) == 4
    assert all(float(snr) > 90 and float(iou) > 0.999 and ok == "true" for *_, snr, iou, ok in checks)
    assert np.array_equal(asked[5]["pixel_values"], preprocess(photo, SIZE))
    upscaler = Upscaler(SIZE, (height, width))
    for (_, name, best), feeds in zip(
        (line for line in printed if line[0] == "mask"), asked[6:], strict=True
    ):
        outputs = networks["decoder"](feeds)
        scores = outputs["iou_predictions"][0]
        assert int(best) == (0 if name in ("clicks", "both") else 1 + scores[1:].argmax())
        found = np.fromfile(swift_folder / f"photo.{name}", np.uint8).reshape(height, width)
        expected = upscaler.mask(outputs["low_res_masks"][0, int(best)])
        assert (found == expected).mean() > 0.9999, name
