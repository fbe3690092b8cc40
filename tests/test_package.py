"""The house: who may import whom, and what a user gets from a wheel."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pocketsam.runtime import load_image

ROOT = Path(__file__).parent.parent
ROOMS = ("pocketsam", "models", "export", "runtime")
BASE = {"numpy", "onnxruntime", "PIL"}


def imports(path):
    """Absolute names of everything that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_imports(room):
    return {(path.name, name) for path in (ROOT / room).glob("*.py") for name in imports(path)}


@pytest.mark.parametrize(
    ("room", "others"), [("runtime", ("models", "export")), ("models", ("runtime", "export"))]
)
def test_data_moves_one_way(room, others):
    for file, name in room_imports(room):
        assert not name.startswith(tuple(f"pocketsam.{other}" for other in others)), (file, name)


def test_the_runtime_needs_three_packages():
    # modules that only functions import; protobuf comes with onnxruntime
    optional = {
        ("litert.py", "ai_edge_litert"),
        ("coreml.py", "coremltools"),
        ("cut.py", "google"),
    }
    tops = {(file, name.split(".")[0]) for file, name in room_imports("runtime")}
    assert optional <= tops
    assert {name for _, name in tops - optional} - {"pocketsam"} - set(sys.stdlib_module_names) == BASE


def test_the_command_starts_without_torch():
    """A user of the base install may run `pocketsam`; only export and verify need more."""
    heavy = ("torch", "onnx", "coremltools", "ai_edge_litert")
    code = f"import sys, pocketsam.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_32_bits_are_refused_by_name():
    code = "import sys; sys.maxsize = 2**31 - 1; import pocketsam"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "64-bit Raspberry Pi OS" in done.stderr


def test_every_folder_of_code_is_a_package_in_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["package-dir"].values()) == set(ROOMS)
    assert set(settings["packages"]) == set(settings["package-dir"])
    kept = ("__pycache__", "templates")  # data, named in package-data
    for name in ROOMS:
        assert (ROOT / name / "py.typed").exists()
        assert not [p for p in (ROOT / name).iterdir() if p.is_dir() and p.name not in kept]


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """Python of a new environment that holds the wheel and its base dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("pocketsam-*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
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

    arguments = ["segment", bundle, tmp_path / "photo.png", "--point", "200,100", "--output"]
    for module in ("pocketsam", "pocketsam.runtime"):
        out = tmp_path / module.replace(".", "-")
        done = run_clean(clean_python, "-m", module, *arguments, out)
        assert done.returncode == 0, done.stderr
        assert load_image(out / "mask.png").shape == photo.shape
    assert run_clean(clean_python, "-m", "pocketsam.runtime", "verify", bundle).returncode == 0
    script = clean_python.parent / "pocketsam"
    assert run_clean(clean_python, script, "info", bundle).returncode == 0


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


def test_the_wheel_holds_what_the_checkout_holds(clean_python):
    (wheel,) = clean_python.parent.parent.parent.glob("pocketsam-*.whl")
    import zipfile

    inside = set(zipfile.ZipFile(wheel).namelist())
    for room in ROOMS:
        prefix = "pocketsam" if room == "pocketsam" else f"pocketsam/{room}"
        for path in (ROOT / room).iterdir():
            if path.is_file():
                assert f"{prefix}/{path.name}" in inside
    assert not [name for name in inside if name.startswith(("tests", "models", "export"))]


def test_no_path_of_this_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    home = os.path.expanduser("~")
    for name in listed.stdout.splitlines():
        text = (ROOT / name).read_bytes()
        assert str(ROOT).encode() not in text, name
        assert home.encode() + b"/" not in text, name
