"""The house: who may import whom, and what a user gets from a wheel."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pocketsam.models.checkpoint import DEFAULT, DEFAULT_FILE, read_settings
from pocketsam.runtime import load_image
from pocketsam.runtime.bundle import DEFAULT_BUNDLE, open_bundle

ROOT = Path(__file__).parent.parent
ROOMS = ("pocketsam", "models", "export", "runtime")
BASE = {"numpy", "onnxruntime", "PIL"}


def imports(path, with_types=True):
    """Absolute names of everything that a file imports, at the top or inside functions.

    Without types: less what only type checkers import.
    """
    found, tree = set(), ast.parse(path.read_text())
    guards = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    types = set() if with_types else {inner for guard in guards for inner in ast.walk(guard)}
    for node in set(ast.walk(tree)) - types:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


INSTRUMENTS = ("export/battery/", "export/benchmarks/")
"""Rooms that only `make` runs."""


def room_imports(room):
    """(file, name) of every import below a folder, at any depth."""
    return {
        (path.relative_to(ROOT / room).as_posix(), name)
        for path in (ROOT / room).rglob("*.py")
        for name in imports(path)
    }


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("runtime", ("models", "export")),
        ("models", ("runtime", "export")),
        ("models/training", ("models.evaluation", "models.commands")),
        ("runtime/backends", ("runtime.segmenter", "runtime.commands")),
        ("runtime/everything", ("runtime.commands",)),
        ("runtime/compare", ("runtime.commands",)),
        ("export/to_onnx", ("export.to_coreml", "export.to_tflite", "export.pipeline")),
        ("export/to_coreml", ("export.to_onnx", "export.to_tflite", "export.pipeline")),
        ("export/to_tflite", ("export.to_coreml", "export.pipeline")),
        ("export/to_web", ("export.to_coreml", "export.to_tflite", "export.pipeline")),
        ("export/to_coreai", ("export.to_onnx", "export.to_tflite", "export.pipeline")),
        ("export/to_executorch", ("export.to_onnx", "export.to_co", "export.to_tf", "export.pipeline")),
    ],
)
def test_data_moves_one_way(room, others):
    found = room_imports(room)
    assert found
    for file, name in found:
        assert not name.startswith(tuple(f"pocketsam.{other}" for other in others)), (file, name)


def test_the_network_does_not_know_how_it_is_trained():
    for file, name in room_imports("models"):
        if "/" not in file:
            inner = ("pocketsam.models.training", "pocketsam.models.evaluation")
            assert not name.startswith(inner), (file, name)


def test_nothing_imports_instruments():
    for room in ROOMS:
        for file, name in room_imports(room):
            if not f"{room}/{file}".startswith(INSTRUMENTS):
                packages = tuple(f"pocketsam.{folder[:-1].replace('/', '.')}" for folder in INSTRUMENTS)
                assert not name.startswith(packages), (room, file)


def modules():
    """Every module's name and file."""
    for room in ROOMS:
        package = "pocketsam" if room == "pocketsam" else f"pocketsam.{room}"
        for path in (ROOT / room).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / room).with_suffix("").parts]
            yield ".".join(part for part in parts if part != "__init__"), path


def test_no_module_imports_itself_by_way_of_others():
    files = dict(modules())
    graph = {}
    for module, path in files.items():
        names = imports(path, with_types=False)
        found = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = (found & files.keys()) - {module}
    lazy = {"pocketsam", "pocketsam.export"}  # they import when they are called, see their docstrings
    for module in lazy:
        graph[module] = set()
    while ends := {module for module, found in graph.items() if not found}:
        graph = {module: found - ends for module, found in graph.items() if module not in ends}
    assert not graph, f"circles among {sorted(graph)}"


def test_the_runtime_needs_three_packages():
    # modules that only functions import; protobuf comes with onnxruntime
    optional = {
        ("backends/litert.py", "ai_edge_litert"),
        ("backends/open_vino.py", "openvino"),
        ("backends/coreml.py", "coremltools"),
        ("backends/subgraph.py", "google"),
    }
    tops = {(file, name.split(".")[0]) for file, name in room_imports("runtime")}
    assert optional <= tops
    assert {name for _, name in tops - optional} - {"pocketsam"} - set(sys.stdlib_module_names) == BASE


def test_the_command_starts_without_torch():
    """A user of the base install may run `pocketsam`; only export and verify need more."""
    heavy = ("torch", "onnx", "coremltools", "ai_edge_litert", "openvino")
    code = f"import sys, pocketsam.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_onnxruntime_reports_nothing(tmp_path):
    """From 1.29 on, it writes an identifier to the home folder and sends what it runs, unless told."""
    usual = {
        key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")
    }
    usual |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    code = "import os, pocketsam, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for more, wanted in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0", "CI": "1"}, "0")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=usual | more, capture_output=True, text=True, check=True
        )
        assert (done.stdout.strip(), done.stderr) == (wanted, "")
        assert not list(tmp_path.rglob("*"))


def test_32_bits_are_refused_by_name():
    code = "import sys; sys.maxsize = 2**31 - 1; import pocketsam"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "64-bit Raspberry Pi OS" in done.stderr


def test_every_folder_of_code_is_a_package_in_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["package-dir"].values()) == set(ROOMS)
    packages = {name for name, path in modules() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages - {
        "pocketsam.export.battery",
        "pocketsam.export.benchmarks",
    }
    for room in ROOMS:
        assert (ROOT / room / "py.typed").exists()
        folders = {path.parent for path in (ROOT / room).rglob("*.py")}
        assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools would take old files from the checkout's build/."""
    folder = tmp_path_factory.mktemp("wheel")
    kept = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=kept)
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"]
    source = folder / "source"
    subprocess.run([sys.executable, *pip, "--no-build-isolation", "-w", folder, source], check=True)
    (path,) = folder.glob("pocketsam-*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(wheel):
    """Python of a new environment that holds the wheel and its base dependencies, and nothing else."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", wheel.parent / "venv"], check=True)
    python = wheel.parent / "venv" / "bin" / "python"
    install = [python, *pip, "install", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True)
    return python


def run_clean(python, *args, **kwargs):
    """In a directory of its own, so that nothing comes from the checkout."""
    return subprocess.run(
        [python, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=python.parent,
        **kwargs,
    )


def test_a_base_install_segments(clean_python, bundle, photo, tmp_path):
    from PIL import Image

    Image.fromarray(photo).save(tmp_path / "photo.png")
    listed = run_clean(clean_python, "-m", "pip", "freeze").stdout.lower()
    assert not re.search(r"^(torch|onnx|scikit|safetensors)\b", listed, re.MULTILINE)

    out = tmp_path / "out"
    command = ["segment", bundle, tmp_path / "photo.png", "--point", "200,100", "--output", out]
    done = run_clean(clean_python, "-m", "pocketsam", *command)
    assert done.returncode == 0, done.stderr
    assert load_image(out / "mask.png").shape == photo.shape
    script = clean_python.parent / "pocketsam"
    assert run_clean(clean_python, script, "verify", bundle).returncode == 0
    assert run_clean(clean_python, script, "info", bundle).returncode == 0
    code = "import pocketsam; print(pocketsam.Segmenter.__name__, pocketsam.verify.__name__)"
    done = run_clean(clean_python, "-c", code)
    assert done.stdout.split() == ["Segmenter", "verify"], done.stderr


def test_a_base_install_segments_without_a_path(clean_python, tmp_path):
    """In two commands, with the bundle and the photograph of the package."""
    script = clean_python.parent / "pocketsam"
    done = run_clean(clean_python, script, "demo", "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"photo.jpg", "mask.png", "overlay.jpg", "masks.json"}
    photo, mask = (load_image(tmp_path / "demo" / name) for name in ("photo.jpg", "mask.png"))
    again = [
        "segment",
        tmp_path / "demo" / "photo.jpg",
        *done.stdout.split("photo.jpg ")[-1].split()[:2],
    ]
    done = run_clean(clean_python, script, *again, "--output", tmp_path / "again.png")
    assert done.returncode == 0, done.stderr
    assert mask.shape == photo.shape
    assert 0 < np.count_nonzero(mask) < mask.size / 2
    assert np.array_equal(load_image(tmp_path / "again.png"), mask)
    assert "OK: golden vectors" in run_clean(clean_python, script, "verify").stdout
    code = "from pocketsam import Segmenter; print(Segmenter().image_size)"
    assert run_clean(clean_python, "-c", code).stdout == "512\n"


def test_a_base_install_says_which_extra_is_missing(clean_python, bundle, tmp_path):
    for arguments in (
        ["export", "seeded", "--output", tmp_path / "bundle"],
        ["verify", bundle, "--checkpoint", "seeded"],
    ):
        done = run_clean(clean_python, "-m", "pocketsam", *arguments)
        assert done.returncode == 4
        (line,) = done.stderr.splitlines()
        assert "pip install 'pocketsam[export]'" in line
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_holds_what_the_checkout_holds(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = set()
    for room in ROOMS:
        prefix = "pocketsam" if room == "pocketsam" else f"pocketsam/{room}"
        for path in (ROOT / room).rglob("*"):
            name = path.relative_to(ROOT / room).as_posix()
            is_instrument = f"{room}/{name}".startswith(INSTRUMENTS)
            if path.is_file() and "__pycache__" not in name and not is_instrument:
                wanted.add(f"{prefix}/{name}")
    wanted.remove(f"pocketsam/models/{DEFAULT_FILE.name}")
    assert wanted == {name for name in inside if ".dist-info/" not in name}
    assert wheel.stat().st_size < 15e6


def test_the_bundle_in_the_package_is_of_the_weights_in_the_checkout():
    manifest = open_bundle(DEFAULT_BUNDLE).manifest
    assert manifest.model.checkpoint_sha256 == hashlib.sha256(DEFAULT_FILE.read_bytes()).hexdigest()
    settings = read_settings(DEFAULT)
    assert (manifest.image_size, manifest.thresholds) == (settings.image_size, settings.thresholds)
    assert manifest.grade in ("equivalent", "close")
    assert sum(path.stat().st_size for path in DEFAULT_BUNDLE.iterdir()) < 15e6


def test_no_path_of_this_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    home = os.path.expanduser("~")
    for name in listed.stdout.splitlines():
        text = (ROOT / name).read_bytes()
        assert str(ROOT).encode() not in text, name
        assert home.encode() + b"/" not in text, name
