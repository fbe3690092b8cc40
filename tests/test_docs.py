"""README and the pages in docs/: commands parse, Python runs, links lead somewhere."""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketsam.cli import COMMANDS
from pocketsam.export.target import Converter
from pocketsam.terminal import build_parser

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
PARSER = build_parser(COMMANDS)
(SUBPARSERS,) = [action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction)]
PARSERS = SUBPARSERS.choices
MAKEFILE = (ROOT / "Makefile").read_text()
MAKE_TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
NOT_RUN = "<!-- not run: "
BLOCK = re.compile(rf"(?:^({NOT_RUN}.+) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text, language):
    """Returns (is it run, code) for each block of a language."""
    return [(not marker, code) for marker, found, code in BLOCK.findall(text) if found == language]


def shell_commands(text):
    """Returns each command of a page's shell blocks as a list of words."""
    lines = [line for _, code in blocks(text, "sh") for line in code.splitlines()]
    joined = (part for line in lines for part in re.split(r"&&|;", line.split("#")[0]))
    return [words for words in map(shlex.split, joined) if words]


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def without_code(text):
    """Returns the text in which ``[0](x)`` is a link."""
    return re.sub(r"`[^`\n]+`", "", without_blocks(text))


def parse(words):
    """Returns the parsed arguments of a ``pocketsam`` command; argparse's error fails the test."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return PARSER.parse_args(words)
    except SystemExit:
        pytest.fail(f"pocketsam {shlex.join(words)}: {errors.getvalue()}")


def dry_run(words):
    """Returns what ``make`` says that it would do."""
    python = [f"PYTHON={sys.executable}", f"PYTHON312={sys.executable}"]  # it looks for none
    command = ["make", "--dry-run", *words, *python]
    outside = {name: os.environ[name] for name in os.environ if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=outside)


def check_make(words):
    assert words[0] in MAKE_TARGETS, words
    if any("=" in word for word in words):
        done = dry_run(words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", ["demo IMAGE_SIZE=512", "web PRECISION=fp16", "test CHECKPOINT=x", "install FOO=1"]
)
def test_make_refuses_what_a_target_would_ignore(words):
    target, variable = words.split()
    done = dry_run([target, variable])
    assert done.returncode == 2
    assert f"make {target} takes no {variable.split('=')[0]}" in done.stderr


def options_in(words):
    return {word.split("=")[0] for word in words if word.startswith("--")}


def options_of(command):
    assert command in PARSERS, command
    return set(PARSERS[command]._option_string_actions)


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_parse(page):
    for words in shell_commands(PAGES[page]):
        if words[0] == "pocketsam":
            assert "run" in parse(words[1:])
            assert options_in(words) <= options_of(words[1]), words  # no abbreviations
        elif words[0] == "make":
            check_make(words[1:])
        else:
            assert words[0] in ("pip", "python3", ".", "git"), words


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    """``pocketsam verb --option`` and ``make target`` between backticks: the names are real."""
    for code in re.findall(r"`((?:pocketsam|make) [^`\n]+)`", PAGES[page]):
        program, name, *rest = code.split()
        if program == "make":
            check_make([name, *rest])
        elif name not in ("COMMAND", "--version"):
            assert options_in(rest) <= options_of(name), code


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    every = {option for command in PARSERS for option in options_of(command)} | {"--strict"}  # mypy's
    for option in re.findall(r"`(--[a-z-]+)", without_blocks(PAGES[page])):
        assert option in every, option


def test_the_table_of_commands_is_complete():
    rows = re.findall(r"^\| `pocketsam ([^`]+)` \|", README, re.MULTILINE)
    assert {row.split()[0] for row in rows} == set(PARSERS)
    for row in rows:
        given = {"NAME": "mobile_sam", "X,Y": "1,2"}
        parse([given.get(word, word) for word in row.split()])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for name, _, anchor in re.findall(r"\]\(([\w./-]*)(#([\w-]+))?\)", without_code(PAGES[page])):
        target = folder / name if name else ROOT / page
        assert target.exists(), name
        if anchor:
            text = target.read_text()
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs | set(re.findall(r"^\((\w+)\)=$", text, re.MULTILINE)), anchor


@pytest.mark.parametrize("page", PAGES)
def test_files_in_the_text_exist(page):
    """Paths of the checkout between backticks, such as ``export/parity.py`` or ``runtime/``."""
    for path in re.findall(r"`((?:export|models|runtime|pocketsam|tests|docs)/[\w./-]*)", PAGES[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_names_beside_a_file_are_in_it(page):
    """A file, then a name between backticks; or a name "in" a file."""
    text = PAGES[page]
    for path, name in re.findall(r"`([\w/]+\.py)`, `(\w+)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), (path, name)
    for name, path in re.findall(r"`(\w+)` in `([\w/]+/[\w]+\.py)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), (path, name)


def test_the_functions_of_a_converter_are_listed():
    (listed,) = re.findall(r"four functions of `Converter` .*?:\s+(.+?)\.\n", PAGES["CONTRIBUTING.md"])
    functions = [name for name in vars(Converter) if not name.startswith("_")]
    assert re.findall(r"`(\w+)`", listed) == functions


def test_every_page_is_reached():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", README))
    reference = {f"docs/{name}.md" for name in ("index", "api", "contributing", "changelog")}
    assert linked == {page for page in PAGES if page.startswith("docs/")} - reference
    toctree = " ".join(
        code for code in re.findall(r"```{toctree}\n(.*?)```", PAGES["docs/index.md"], re.DOTALL)
    )
    for page in linked | reference - {"docs/index.md"}:
        assert Path(page).stem in toctree.split(), page


@pytest.fixture
def work_folder(trained_bundle, tmp_path, monkeypatch):
    """A directory that looks like a checkout after both demos; the bundle is at a smaller canvas."""
    from skimage import data

    for name in ("demo", "pocketsam-demo", "photos"):
        (tmp_path / name).mkdir()
    for name in ("demo/bundle", "mobile_sam"):
        (tmp_path / name).symlink_to(trained_bundle)
    for name in ("demo/photo.png", "pocketsam-demo/photo.jpg", "photo.jpg", "photos/photo.jpg"):
        Image.fromarray(data.astronaut()).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_blocks(page):
    """Runs the Python blocks of a page in one namespace, which it returns."""
    names = {}
    for number, (is_run, code) in enumerate(blocks(PAGES[page], "python"), start=1):
        compiled = compile(code, f"{page}, block {number}", "exec")
        if is_run:
            exec(compiled, names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile(page):
    """Those that are not run as well; and each of these says why."""
    for _, code in blocks(PAGES[page], "python"):
        compile(code, page, "exec")
    markers = re.findall(f"^{NOT_RUN}", PAGES[page], re.MULTILINE)
    assert len(markers) == sum(not is_run for is_run, _ in blocks(PAGES[page], "python"))


RUN = [page for page, text in PAGES.items() if any(is_run for is_run, _ in blocks(text, "python"))]


def check_labelme(about, dataset):
    """LabelMe's shapes of each object have its pixels: no more, no fewer."""
    assert about["imagePath"] == "photo.jpg"
    assert (about["imageHeight"], about["imageWidth"]) == (512, 512)
    areas = dict.fromkeys((found["id"] for found in dataset["annotations"]), 0.0)
    for shape in about["shapes"]:
        x, y = np.array(shape["points"]).T
        areas[shape["group_id"]] += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
    assert areas == {found["id"]: found["area"] for found in dataset["annotations"]}
    assert areas


@pytest.mark.parametrize("page", RUN)
def test_python_blocks_run(page, work_folder):
    names = run_blocks(page)
    if page == "README.md":
        assert names["masks"].shape == (3, 512, 512)
        assert names["masks"].any()
        assert names["rle"]["size"] == [512, 512]
        assert names["objects"]
    if page == "docs/everything.md":
        assert {"segmentation", "bbox", "predicted_iou"} <= set(names["records"][0])
        check_labelme(json.loads((work_folder / "photos/photo.json").read_text()), names["dataset"])
    if page == "docs/python.md":
        assert names["boxed"].shape == names["both"].shape == (1, 512, 512)
        assert names["masks"].shape == (2, 3, 512, 512)
        assert (work_folder / "demo/mask.png").exists()


def test_pages_with_python_are_run():
    assert set(RUN) == {
        "README.md",
        *(f"docs/{name}.md" for name in ("api", "everything", "from-sam", "python")),
    }


def test_each_line_of_from_sam_runs(work_folder):
    """The right-hand column of the table, in its order, after the page's notebook."""
    page = "docs/from-sam.md"
    rows = re.findall(r"^\| `.+` \| `(.+)` \|$", PAGES[page], re.MULTILINE)
    assert len(rows) >= 14
    names = run_blocks(page)
    for code in rows:
        exec(compile(code, f"{page}: {code}", "exec"), names)
    assert isinstance(names["records"], list)
    assert not names["predictor"].is_image_set
    assert isinstance(names["logits"], np.ndarray)
