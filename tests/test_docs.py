"""README's examples run, and what it names exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_pocketsam
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def work_folder(bundle, tmp_path):
    """A directory that looks like a checkout after `make demo`."""
    from skimage import data

    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "bundle").symlink_to(bundle)
    Image.fromarray(data.astronaut()).save(tmp_path / "demo" / "photo.png")
    return tmp_path


def test_the_python_example_runs(work_folder):
    (code,) = blocks("python")
    code += "\nassert masks.shape == (3, 512, 512) and boxed.shape == (1, 512, 512)"
    code += "\nassert many.shape[0] == 2 and coco['size'] == [512, 512] and better.any()"
    subprocess.run([sys.executable, "-c", code], cwd=work_folder, check=True)


def test_the_shell_examples_parse():
    """Every pocketsam line of README is one that the command accepts."""
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("pocketsam")]
    assert len(commands) >= 3
    for _, name, *arguments in commands:
        listed = run_pocketsam(name, "--help").stdout
        for word in arguments:
            assert not word.startswith("--") or word in listed, (name, word)


def test_the_table_of_commands_is_complete():
    listed = set(re.findall(r"^    (\w+)(?: |$)", run_pocketsam("--help").stdout, re.MULTILINE))
    assert set(re.findall(r"^\| `pocketsam (\w+)", README, re.MULTILINE)) == listed


def test_files_and_targets_that_readme_names_exist():
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README)) - {"sure"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
