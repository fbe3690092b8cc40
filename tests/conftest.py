"""What the tests share: the reference implementation, seeded networks and bundles made from them."""

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# A core for each worker: where every library starts a thread for every core, the threads of two workers
# wait for each other, five times as long as they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, {cores[number % len(cores)]})

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from pocketsam.cli import main
from pocketsam.export import export
from pocketsam.export.bundle import describe_file, write_manifest
from pocketsam.models.checkpoint import DEFAULT, load_model
from pocketsam.models.sam import Sam
from pocketsam.runtime.bundle import open_bundle

SMALL = 256
"""Side of the canvas in tests that do not depend on it: 16 times faster than at 1024."""


@pytest.fixture(scope="module", autouse=True)
def _denormals_again():
    """Commands that train flush denormal numbers for the whole process, and hypothesis refuses that."""
    yield
    torch.set_flush_denormal(False)


LIBRARIES: list[torch.library.Library] = []


def import_mobile_sam() -> ModuleType:
    """The reference implementation, ``mobilesam-mirror``.

    It imports torchvision, whose wheel does not match a CPU build of torch: its compiled operators are
    absent, and its import fails on the first one it describes. Nothing here calls them, so it is
    enough that their names exist.
    """
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(library)  # the names last as long as the object
    import mobile_sam

    return mobile_sam


@pytest.fixture(scope="session")
def mobile_sam() -> ModuleType:
    """``import_mobile_sam`` as a fixture."""
    return import_mobile_sam()


@pytest.fixture(scope="session")
def model() -> Sam:
    """This package's weights at the full size."""
    return load_model(DEFAULT, 1024).model


@pytest.fixture(scope="session")
def reference(mobile_sam: ModuleType, model: Sam) -> torch.nn.Module:
    """The reference network with the weights of ``model``."""
    network = mobile_sam.sam_model_registry["vit_t"]()
    network.load_state_dict(model.state_dict())
    return network.eval()


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A real photograph, neither square nor of the canvas' size: [300, 451, 3] uint8."""
    from skimage import data

    return data.chelsea()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> list[str]:
    """``photo`` at half its size in a file: one photograph to verify and calibrate on."""
    path = tmp_path_factory.mktemp("photos") / "cat.png"
    Image.fromarray(photo[::2, ::2]).save(path)
    return [str(path)]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``shared(name, build)``: the path that ``build(path)`` filled, once for all workers of a run.

    Tests must not change it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def make(name: str, build: Callable[[Path], object]) -> Path:
        path = root / "shared" / name
        path.parent.mkdir(exist_ok=True)
        with path.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                build(path)
        return path

    return make


@pytest.fixture(scope="session")
def bundle(shared, pictures) -> Path:
    """A verified bundle of ``seeded:11`` for the small canvas."""
    return shared("bundle", lambda path: export("seeded:11", path, image_size=SMALL, images=pictures))


@pytest.fixture(scope="session")
def full_bundle(shared) -> Path:
    """An unverified bundle of ``model``, for tests that compare it with the reference."""
    return shared("full_bundle", lambda path: export(DEFAULT, path, image_size=1024, verify=False))


@pytest.fixture(scope="session")
def several_precisions(shared, pictures) -> Path:
    """A verified ONNX bundle of this package's weights in three precisions, for the small canvas."""
    options = {"also": ("fp16", "int8"), "calibration": pictures}
    options |= {"min_miou": 0.5, "min_speedup": 0.0}  # what they do has tests of its own

    def build(path: Path) -> None:
        export(DEFAULT, path, image_size=SMALL, images=pictures, **options)

    return shared("several_precisions", build)


@pytest.fixture(scope="session")
def trained_bundle(shared, several_precisions) -> Path:
    """Its float32 bundle alone."""

    def build(path: Path) -> None:
        inner = shutil.ignore_patterns(*open_bundle(several_precisions).manifest.also)
        shutil.copytree(several_precisions, path, ignore=inner)
        write_manifest(path, dataclasses.replace(open_bundle(path).manifest, also=()))

    return shared("trained", build)


def change_encoder(bundle: Path, copy: Path) -> None:
    """Copies a bundle and changes a weight of the encoder; the manifest agrees."""
    shutil.copytree(bundle, copy)
    path = copy / "encoder.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight)[::-1].copy()  # a norm follows: no scale would show
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    manifest = open_bundle(copy).manifest
    encoder = dataclasses.replace(manifest.encoder, **dataclasses.asdict(describe_file(path)))
    write_manifest(copy, dataclasses.replace(manifest, encoder=encoder))


def run_pocketsam(
    *args: object, module: str = "pocketsam", **kwargs
) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it: another process, its exit code and its two streams."""
    command = [sys.executable, "-m", module, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **kwargs)


def call_pocketsam(*args: object) -> subprocess.CompletedProcess[str]:
    """The command in this process, without the seconds of a new Python's imports."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as error:  # argparse's
            code = int(error.code or 0)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def run_python(code: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """A few lines of Python in another process."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **kwargs)
