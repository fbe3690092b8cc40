"""A new target is one literal and one line of TARGETS; options that it does not read are refused."""

import dataclasses
import json
import re
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
from toy_target import TARGET

from pocketsam.cli import main
from pocketsam.errors import MissingExtraError, UsageError
from pocketsam.export import export
from pocketsam.export.cases import PROMPTS
from pocketsam.export.options import LONGEST_PROMPT, OPTION_NAMES, Options
from pocketsam.export.pipeline import verify_bundle
from pocketsam.export.targets import (
    TARGETS,
    check_options,
    check_size,
    open_converter,
)
from pocketsam.export.verification.tolerances import FLOOR, GRADES, ROUGH
from pocketsam.runtime.manifest import MANIFEST_NAME
from pocketsam.terminal import EXTRAS


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TARGETS, "toy", TARGET)
    return TARGET


def test_a_new_target_exports_and_verifies(toy, tmp_path, pictures, capsys):
    bundle = tmp_path / "bundle"
    arguments = ["export", "seeded:3", "--target", "toy", "--also", "rounded", "--image-size", "64"]
    arguments += ["--images", pictures[0], "--max-points", "12", "--output", str(bundle)]
    assert main(arguments) == 2
    assert "toy rounded promises no better than lossy" in (message := capsys.readouterr().err)
    assert "--accept lossy; --precision fp32, more exact" in message
    assert main([*arguments, "--accept", "lossy"]) == 0
    assert "encoder image_encoder.patch_embed" in capsys.readouterr().out
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    assert manifest["target"] == "toy"
    assert manifest["decoder"]["points"] == 12
    assert manifest["encoder"]["kind"] == "encoder"
    assert "safetensors" in manifest["tools"]
    assert manifest["parity"]["passed"]
    assert manifest["grade"] == manifest["parity"]["grade"] == "equivalent"
    assert len(manifest["parity"]["rows"]) == 17 + 10 + 4
    inner = json.loads((bundle / "rounded" / MANIFEST_NAME).read_text())
    assert inner["parity"]["tolerance"]["snr_db"] == ROUGH.snr_db
    assert manifest["also"] == {
        "rounded": sha256((bundle / "rounded" / MANIFEST_NAME).read_bytes()).hexdigest()
    }
    reports = verify_bundle(bundle, "seeded:4", images=pictures)
    assert [report.precision for report in reports] == ["fp32", "rounded"]
    for report in reports:
        assert report.failed
        assert report.runtime_name.startswith("torch ")


def test_every_target_is_described_by_its_own_package():
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.open_converter.__module__ == f"pocketsam.export.to_{name}"
        assert target.precisions[0].grade == "equivalent"
        assert len({precision.name for precision in target.precisions}) == len(target.precisions)
        readers = {*target.options, *(o for p in target.precisions for o in p.options)}
        assert readers <= set(OPTION_NAMES)


def test_a_grade_is_what_the_tolerance_allows():
    """A precision that passes its tolerance is never worse than the grade it promises."""
    for target in TARGETS.values():
        for precision in target.precisions:
            wanted = GRADES.get(precision.grade, FLOOR).limits()
            for quantity, (limit, is_maximum) in precision.tolerance.limits().items():
                bound, _ = wanted[quantity]
                assert (limit <= bound) if is_maximum else (limit >= bound), (precision, quantity)
            assert (precision.drift is None) == (precision.name in ("fp32", "fp16"))


def test_every_option_is_read_by_some_target():
    read = {o for t in TARGETS.values() for o in t.options}
    read |= {o for t in TARGETS.values() for p in t.precisions for o in p.options}
    assert read == set(OPTION_NAMES)


@pytest.mark.parametrize(
    ("target", "precisions", "given", "message"),
    [
        ("onnx", ["int3"], {}, "onnx has no precision 'int3'; it has fp32, fp16"),
        ("onnx", ["fp32", "fp32"], {}, "a precision twice"),
        (
            "onnx",
            ["fp32"],
            {"max_points": 16},
            "nothing with --max-points: it is for coreml and tflite",
        ),
        (
            "onnx",
            ["fp32", "fp16"],
            {"min_miou": 0.9},
            "fp32/fp16 .*--min-miou: it is for onnx int8",
        ),
        ("tflite", ["int8"], {"min_miou": 0.9}, "tflite int8 does nothing"),
        ("tflite", ["int8"], {"max_points": 9}, "--max-points is 9; it must be 10 or more"),
        ("onnx", ["fp32", "int4-weights"], {"opset": 17}, "int4-weights needs opset 21"),
    ],
)
def test_options_that_would_do_nothing(target, precisions, given, message):
    with pytest.raises(UsageError, match=message):
        check_options(TARGETS[target], precisions, **given)


def test_the_longest_prompt_of_the_parity_suite():
    """A box takes two points, a prompt without one a padding."""
    points = [len((prompt.points or [[]])[0]) + (2 if prompt.boxes else 1) for prompt in PROMPTS]
    assert max(points) == LONGEST_PROMPT


def test_calibration_that_would_do_nothing():
    given = {"calibration": ["photos"]}
    assert check_options(TARGETS["onnx"], ["fp32", "fp16"], **given) == Options("fp32")
    with pytest.raises(UsageError, match="onnx fp32 does nothing with --calibration: it is for fp16"):
        check_options(TARGETS["onnx"], ["fp32"], **given)
    with pytest.raises(UsageError, match="--calibration: coreai measures no ranges"):
        check_options(TARGETS["coreai"], ["fp16"], **given)


def test_options_that_some_precision_reads():
    options = check_options(TARGETS["onnx"], ["fp32", "int8"], min_miou=0.9, min_speedup=None)
    assert options == Options("fp32", min_miou=0.9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_points": 0},
        {"max_points": -1},
        {"max_points": 10**9},
        {"prompts_per_call": 0},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"min_miou": 1.5},
        {"min_miou": float("nan")},
        {"min_speedup": -1.0},
        {"input": "picture"},
    ],
)
def test_values_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is .*; it must be"):
        Options(**wrong)


@pytest.mark.parametrize("size", [0, -64, 100, 8192, 64.0])
def test_a_canvas_that_cannot_be(size, tmp_path):
    with pytest.raises(UsageError, match="image_size"):
        export("seeded", tmp_path / "bundle", image_size=size)
    assert list(tmp_path.iterdir()) == []


VIT_H = 637_026_048
"""Weights of its encoder."""


def test_what_is_too_large_is_refused_by_name():
    onnx, tflite, coreml = (TARGETS[name] for name in ("onnx", "tflite", "coreml"))
    for name in ("fp32", "int8"):
        with pytest.raises(
            UsageError,
            match=rf"onnx {name} cannot hold .* sam_vit_h: it has 2\.5 GB .* end at 2 GiB; choose "
            "--precision fp16, int8-weights, int4-weights",
        ):
            check_size(onnx, ("fp16", name), "sam_vit_h", VIT_H)
    check_size(onnx, ("fp16", "int8-weights", "int4-weights"), "sam_vit_h", VIT_H)
    with pytest.raises(
        UsageError, match=r"tflite int8-weights cannot hold .*; export to another target"
    ):
        check_size(tflite, ("int8-weights",), "sam_vit_h", VIT_H)
    check_size(onnx, ("fp32",), "sam_vit_l", 308_000_000)
    check_size(coreml, ("fp32",), "sam_vit_h", VIT_H)


def test_what_is_too_large_costs_no_work(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "toy", dataclasses.replace(toy, max_bytes=10**7))
    lines = []
    with pytest.raises(UsageError, match="toy fp32 cannot hold the encoder of mobile_sam"):
        export("seeded", tmp_path / "bundle", target="toy", progress=lines.append)
    assert lines == ["loading seeded"]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_and_a_bug_of_ours_are_told_apart():
    def lacks(name):
        def open_it():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return open_it

    with pytest.raises(MissingExtraError, match=r"onnxsim is not installed.*pocketsam\[export\]"):
        open_converter(dataclasses.replace(TARGET, open_converter=lacks("onnxsim")))
    # a module of ours, a misspelt package, a part that an installed package lacks
    for name in ("pocketsam.export.gone", "onnxsimm", "torch.gone", "numpy"):
        with pytest.raises(ModuleNotFoundError, match=name):
            open_converter(dataclasses.replace(TARGET, open_converter=lacks(name)))


def test_the_extras_are_those_of_the_package():
    """``EXTRAS`` has a name to import for every package that an extra of pyproject.toml brings."""
    imports = {"scikit-image": "skimage", "scikit-learn": "sklearn"}
    settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for extra, packages in EXTRAS.items():
        lines = settings["optional-dependencies"][extra]
        names = {re.match("[a-z0-9-]+", line)[0] for line in lines} - {"pocketsam", "numpy"}
        assert {imports.get(name, name.replace("-", "_")) for name in names} <= set(packages)
        if "pocketsam[export]" in lines:
            assert set(EXTRAS["export"]) < set(packages)
