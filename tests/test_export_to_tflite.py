"""TFLite: every precision verified in LiteRT, and used through the runtime."""

import importlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_pocketsam
from test_runtime_manifest import TFLITE

from pocketsam.errors import BundleError, ConversionError, PocketSamError, ProviderError, UsageError
from pocketsam.export.options import Options
from pocketsam.export.pipeline import write_bundle
from pocketsam.export.quantization.rounding import static_layers
from pocketsam.export.reference import Reference
from pocketsam.export.to_tflite import TARGET
from pocketsam.export.to_tflite import convert as to_tflite
from pocketsam.export.to_tflite.program import ONNX2TF, ONNX2TF_VARIABLE, check_version, find_onnx2tf
from pocketsam.export.usage import render
from pocketsam.runtime import MaskGenerator, Segmenter
from pocketsam.runtime.backends import litert
from pocketsam.runtime.backends.litert import open_tflite
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.manifest import MANIFEST_NAME, Manifest
from pocketsam.runtime.verification.golden import check_golden, check_networks

pytest.importorskip("ai_edge_litert")
pytest.importorskip("litert_quantizer")
SIZE = 256
try:
    find_onnx2tf()
    HAVE_CONVERTER = True
except PocketSamError:
    HAVE_CONVERTER = False
needs_converter = pytest.mark.skipif(not HAVE_CONVERTER, reason="no onnx2tf: run `make tflite-env`")


@pytest.fixture(scope="module")
def reference(pictures):
    """Its networks are converted to float32 once, by the first that asks."""
    return Reference("seeded:11", SIZE, images=pictures, calibration=pictures)


@pytest.fixture
def unconverted(reference, monkeypatch):
    """The same, but onnx2tf has to run again; the tests see to it that it gets no further."""
    monkeypatch.setattr(to_tflite, "_CONVERTED", {})
    return reference


def export_tflite(path, reference, precision="fp32", **options):
    options = Options(precision, **options)
    (report,) = write_bundle(reference, path, TARGET, options, accept="lossy")
    return report, json.loads((path / MANIFEST_NAME).read_text())


@pytest.fixture(scope="module")
def tflite(tmp_path_factory, reference):
    path = tmp_path_factory.mktemp("tflite") / "bundle"
    export_tflite(path, reference)
    return path


@needs_converter
def test_the_bundle(tflite):
    manifest = json.loads((tflite / MANIFEST_NAME).read_text())
    assert manifest["parity"]["passed"]
    assert manifest["parity"]["runner"].startswith("LiteRT")
    assert manifest["tools"]["onnx2tf"] == ONNX2TF
    (values,) = manifest["encoder"]["inputs"]
    assert values == {
        "name": "pixel_values",
        "layout": "NHWC",
        "shape": [1, SIZE, SIZE, 3],
        "dtype": "float32",
    }
    masks = manifest["decoder"]["outputs"][1]
    assert masks["layout"] == "NCHW"
    assert all(result.ok for result in check_golden(tflite))


@needs_converter
def test_the_segmenter_gives_onnx_masks(tflite, bundle, photo):
    """``bundle`` is the ONNX one of the same weights and size."""
    ours, theirs = Segmenter(tflite), Segmenter(bundle)
    prompts = (
        {"point_coords": [[200, 150]], "point_labels": [1]},
        {"box": [50, 40, 300, 250]},
        {"point_coords": [[200, 150], [20, 30]], "point_labels": [1, 0], "box": [50, 40, 300, 250]},
    )
    ours.set_image(photo)
    theirs.set_image(photo)
    for prompt in prompts:
        found, scores, low = ours.predict(**prompt)
        wanted, wanted_scores, wanted_low = theirs.predict(**prompt)
        assert (found & wanted).sum() / (found | wanted).sum() > 0.999
        assert np.allclose(scores, wanted_scores, atol=1e-3)
        assert low.shape == wanted_low.shape
    boxes = [[50, 40, 300, 250], [0, 0, 99, 99]]
    assert ours.predict_batch(boxes=boxes)[0].shape == theirs.predict_batch(boxes=boxes)[0].shape
    with pytest.raises(PocketSamError, match="at most 16"):
        ours.predict(np.zeros((16, 2)), np.ones(16))


@needs_converter
@pytest.mark.parametrize(
    "precision",
    [
        "fp16",
        "int8",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8-weights", "int8-dynamic")),
    ],
)
def test_precisions(precision, tflite, reference, tmp_path):
    report, manifest = export_tflite(tmp_path / "bundle", reference, precision)
    assert not report.failed
    whole = json.loads((tflite / MANIFEST_NAME).read_text())["encoder"]["bytes"]
    assert manifest["encoder"]["bytes"] < (0.55 if precision == "fp16" else 0.45) * whole
    Segmenter(tmp_path / "bundle")


def test_no_converter(monkeypatch, tmp_path, unconverted):
    monkeypatch.setenv("POCKETSAM_ONNX2TF", "/nowhere/onnx2tf")
    with pytest.raises(PocketSamError, match=r"POCKETSAM_ONNX2TF=/nowhere/onnx2tf: no such program"):
        export_tflite(tmp_path / "bundle", unconverted)
    assert list(tmp_path.iterdir()) == []


def write_program(path, script, version=ONNX2TF):
    """A program that says it is onnx2tf, and does what the script says instead of converting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\n{script}\n')
    path.chmod(0o755)
    return path


def test_a_converter_in_the_current_directory_is_not_run(monkeypatch, tmp_path):
    """It may be anybody's: a checkout or an archive that was only looked at."""
    write_program(tmp_path / "here/.venv-tflite/bin/onnx2tf", "touch ran")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.prefix", str(tmp_path / "there/.venv"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(ONNX2TF_VARIABLE, raising=False)
    with pytest.raises(PocketSamError, match=rf"make tflite-env.*onnx2tf=={ONNX2TF}"):
        find_onnx2tf()
    beside = write_program(tmp_path / "there/.venv-tflite/bin/onnx2tf", "")
    assert find_onnx2tf() == str(beside)


@pytest.mark.parametrize("what", ["to_tflite", "to_coreml"])
def test_workers_import_nothing_from_the_current_directory(monkeypatch, tmp_path, what):
    commands = []
    module = importlib.import_module(f"pocketsam.export.{what}.convert")
    monkeypatch.setattr(module, "run_child", lambda command, *_: commands.append(command))
    if what == "to_tflite":
        path = tmp_path / "out.tflite"
        module._write_precision(object(), tmp_path / "float.tflite", path, Options("fp16"), [], None)
    else:
        module._run({"output": str(tmp_path), "traced": str(tmp_path / "traced.pt")}, Options("fp16"))
    (command,) = commands
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "pocketsam.py").write_text("raise SystemExit('imported from here')")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "imported from here" not in done.stderr


def test_another_version_of_the_converter_is_refused(monkeypatch, tmp_path, unconverted):
    program = write_program(tmp_path / "onnx2tf", "exit 0", version="1.2.3")
    monkeypatch.setenv(ONNX2TF_VARIABLE, str(program))
    with pytest.raises(
        PocketSamError, match=rf"onnx2tf {ONNX2TF} is needed.*says '1\.2\.3'; run `make"
    ):
        export_tflite(tmp_path / "bundle", unconverted)
    assert list(tmp_path.iterdir()) == [program]
    program.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    with pytest.raises(PocketSamError, match=r"says 'broken'; run `make tflite-env`"):
        check_version(str(program))
    program.write_text("no program")
    with pytest.raises(PocketSamError, match=r"cannot be used: Exec format error; run"):
        check_version(str(program))


def test_a_converter_that_crashes(monkeypatch, tmp_path, unconverted):
    program = write_program(tmp_path / "onnx2tf", "echo all is lost\nexit 7")
    monkeypatch.setenv("POCKETSAM_ONNX2TF", str(program))
    with pytest.raises(ConversionError, match=r"onnx2tf failed with exit code 7, .*is lost; its log"):
        export_tflite(tmp_path / "bundle", unconverted)
    write_program(program, "exit 0")
    with pytest.raises(ConversionError, match="ended without writing"):
        export_tflite(tmp_path / "bundle", unconverted)
    write_program(program, "exec sleep 60")
    with pytest.raises(ConversionError, match="took longer than 1 s"):
        export_tflite(tmp_path / "bundle", unconverted, timeout=1)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx2tf"]


def test_a_disk_that_is_full_before_onnx2tf(monkeypatch, tmp_path, unconverted):
    """onnx2tf calls its own truncated file a corrupt model, so the room is measured before."""
    monkeypatch.setenv(ONNX2TF_VARIABLE, "true")
    monkeypatch.setattr(to_tflite, "check_version", lambda program: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=30_000_000))
    with pytest.raises(ConversionError, match=r"No space left on device: 30 MB are free.*TMPDIR"):
        export_tflite(tmp_path / "bundle", unconverted)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_onnx2tf(monkeypatch, tmp_path, unconverted):
    """It wraps the error that names the reason in one that does not."""
    script = (
        "echo 'OSError: [Errno 28] No space left on device'\n"
        "echo 'RuntimeError: flatbuffer_direct fast path failed.'\nexit 1"
    )
    program = write_program(tmp_path / "onnx2tf", script)
    monkeypatch.setenv(ONNX2TF_VARIABLE, str(program))
    with pytest.raises(
        ConversionError, match=r"onnx2tf failed .*: OSError.*No space left on device; its"
    ):
        export_tflite(tmp_path / "bundle", unconverted)
    assert list(tmp_path.iterdir()) == [program]


@needs_converter
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_disk_that_fills_up_in_the_quantizer(precision, tflite, reference, monkeypatch, tmp_path):
    """Played by a limit on file sizes that only it gets: its own write fails."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nulimit -f 4000\nexec {shlex.quote(sys.executable)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    wanted = r"litert-quantizer failed .*File too large.*; its log"
    with pytest.raises(ConversionError, match=wanted) as caught:
        export_tflite(tmp_path / "bundle", reference, precision)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [wrapper]


@pytest.mark.slow
@needs_converter
def test_a_full_disk_leaves_nothing(tmp_path):
    """The ONNX file on the way is the first that does not fit."""
    command = "export", "seeded", "--image-size", "64", "--target", "tflite", "--no-verify"
    limit = 10_000_000
    done = run_pocketsam(
        *command,
        "--output",
        tmp_path / "bundle",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_converter
def test_float16_arithmetic(tflite, photo, tmp_path):
    """Emulated here: other numbers than float32, close to them, and a check that can fail."""
    float32, float16 = (Segmenter(tflite, providers=p) for p in ("cpu", "cpu:precision=f16"))
    feeds = [float32.encoder_feeds(image) for image in (photo, photo[:, ::-1].copy())]
    first = float16.encode(feeds[0])
    kept = first.copy()
    for image, found in zip(feeds, (first, float16.encode(feeds[1])), strict=True):
        error = np.abs(found - float32.encode(image)).max() / kept.std()
        assert 1e-5 < error < 0.05
    assert np.array_equal(first, kept)
    clicks = [[[220, 120]]], [[1]]
    masks = []
    for segmenter in (float32, float16):
        segmenter.set_image(photo)
        masks.append(segmenter.predict_batch(*clicks)[0])
    assert (masks[0] != masks[1]).mean() < 0.01

    results = check_golden(tflite, providers="cpu:precision=f16")
    assert all(result.ok and result.arithmetic == "f16" for result in results)
    encoder = bytearray((tflite / "encoder.tflite").read_bytes())
    weights = np.frombuffer(encoder, np.uint8)[len(encoder) // 2 :][:200_000]
    weights[:] = weights[::-1].copy()
    damaged = open_tflite(bytes(encoder), "damaged", "cpu:precision=f16")
    bundle = open_bundle(tflite)
    decoder = open_network(bundle, "decoder", "cpu:precision=f16")
    assert not all(r.ok for r in check_networks(bundle, damaged, decoder, arithmetic="f16"))


def test_float16_arithmetic_is_chosen_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(litert, "cpu_flags", lambda: ["asimd", "asimdhp"])
    assert litert.arithmetics() == ("f32", "f16")
    monkeypatch.setattr(litert, "cpu_flags", lambda: ["avx2", "f16c"])
    assert litert.arithmetics() == ("f32",)
    for bad, message in (("bf16", "cpu computes in f32 or f16, not bf16"), ("f32,a=1", "not a")):
        with pytest.raises(ProviderError, match=message):
            open_tflite(b"", "the file", f"cpu:precision={bad}")


@needs_converter
def test_planned_layers_are_found_by_their_weights(tflite, reference):
    """A GELU has 8 bits only where it lies between two planned layers."""
    from pocketsam.export.to_tflite import worker as tflite_worker

    model = reference.loaded.model
    weights = {n: m.weight.detach().numpy() for n, m in static_layers(model).items()}
    file = str(tflite / "encoder.tflite")
    layers, gelus = tflite_worker.find_layers(file, {w.tobytes() for w in weights.values()})
    assert len(layers) == len(set(layers)) == 40
    assert len(gelus) == len(set(gelus)) == 10
    some = [w for n, w in weights.items() if n.endswith("fc1") or n.endswith("0.mlp.fc2")]
    layers, gelus = tflite_worker.find_layers(file, {w.tobytes() for w in some})
    assert (len(layers), len(gelus)) == (10 + 3, 3)
    with pytest.raises(ValueError, match="1 linear layers are to have 8 bits, the file has 0"):
        tflite_worker.static_recipe(file, [some[0] + 1])


def test_files_that_are_no_tflite():
    with pytest.raises(BundleError, match="the file: LiteRT cannot load it"):
        open_tflite(b"nonsense", "the file")
    with pytest.raises(ProviderError, match="provider cpu, not cuda"):
        open_tflite(b"nonsense", "the file", "cuda")
    with pytest.raises(UsageError, match="threads"):
        open_tflite(b"nonsense", "the file", threads=0)


@pytest.mark.parametrize("kind", ["image", "pixel_values"])
@pytest.mark.parametrize(
    ("name", "language"), [("PocketSam.swift", "swift"), ("PocketSam.kt", "kotlin")]
)
def test_code_for_the_phone_parses(name, language, kind):
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip(f"tree_sitter_{language}")
    value = TFLITE | {"preprocessing": TFLITE["preprocessing"] | {"input": kind}}
    manifest = Manifest.from_json(value, Path("manifest.json"))
    text = render(name, manifest)
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    tree = parser.parse(text.encode())
    broken = [n for n in descend(tree.root_node) if n.is_error or n.is_missing]
    assert not broken, [(n.start_point, n.text[:60]) for n in broken]
    assert "256" in text
    assert "16 points" in text
    if (name, kind) != ("PocketSam.swift", "image"):
        assert "58.395" in text


def descend(node):
    yield node
    for child in node.children:
        yield from descend(child)


@needs_converter
def test_everything_finds_what_onnx_finds(tflite, bundle, photo):
    """Of untrained weights: thresholds that let masks through."""
    parameters = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.2}
    found, wanted = (MaskGenerator(path, **parameters).generate(photo) for path in (tflite, bundle))
    assert len(found) == len(wanted) > 0
    for ours, theirs in zip(found, wanted, strict=True):
        one, other = ours["segmentation"], theirs["segmentation"]
        assert (one & other).sum() >= 0.99 * (one | other).sum()


def run_kotlin(program: Path, folder: Path, photos: list[Path]) -> list[list[str]]:
    """Returns the words of each line that ``Main.kt`` prints for a bundle."""
    tests = Path(__file__).parent
    environment = os.environ | {"LITERT_PYTHON": sys.executable}
    environment["LITERT_PROCESS"] = str(tests / "litert_process.py")
    command = ["java", "-cp", str(program), "MainKt", str(folder), *map(str, photos)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.skipif(
    not (shutil.which("kotlinc") and shutil.which("java")),
    reason="no Kotlin compiler (on Debian: apt install kotlin)",
)
@needs_converter
def test_kotlin_masks_are_the_runtimes(tflite, tmp_path, photo):
    """``PocketSam.kt`` on a JVM: stubs of Android, and LiteRT in a process of its own."""
    sources = [tflite / "PocketSam.kt", *(Path(__file__).parent / "kotlin").glob("*.kt")]
    program = tmp_path / "program.jar"
    command = ["kotlinc", "-nowarn", *map(str, sources), "-include-runtime", "-d", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    height, width = photo.shape[:2]
    alpha = np.full((height, width, 1), 255, np.uint8)
    file = tmp_path / "photo"
    size = np.array([width, height], "<i4").tobytes()
    file.write_bytes(size + np.concatenate([photo[..., ::-1], alpha], axis=2).tobytes())
    printed = run_kotlin(program, tflite, [file])
    checks = [line for line in printed if line[0] == "check"]
    assert len(checks) == 4
    assert all(float(snr) > 90 and float(iou) > 0.999 and ok == "true" for *_, snr, iou, ok in checks)
    segmenter = Segmenter(tflite)
    segmenter.set_image(photo)
    middle, corner = [width / 2, height / 2], [np.float32(width * 0.1), np.float32(height * 0.1)]
    box = np.array([width * 0.2, height * 0.2, width * 0.8, height * 0.9], np.float32)
    _, scores, low = segmenter.predict([middle], [1])
    refined = {"mask_input": low[scores.argmax()][None], "multimask_output": True}
    for name, points, labels, options in (
        ("click", [middle], [1], {}),
        ("clicks", [middle, corner], [1, 0], {"multimask_output": False}),
        ("box", None, None, {"box": box}),
        ("both", [middle], [1], {"box": box, "multimask_output": False}),
        ("edge", None, None, {"box": [-30, -20, np.float32(width * 0.5), height + 40]}),
        ("refine", [middle], [1], refined),
    ):
        masks, scores, _ = segmenter.predict(points, labels, **options)
        found = np.fromfile(f"{file}.{name}", np.uint8).reshape(height, width)
        assert (found == masks[scores.argmax()]).mean() > 0.9999, name
    damaged = tmp_path / "damaged"
    shutil.copytree(tflite, damaged)
    with np.load(damaged / "golden.npz") as golden:
        arrays = {key: golden[key][..., ::-1] if "masks" in key else golden[key] for key in golden}
    np.savez(damaged / "golden.npz", **arrays)
    assert {line[-1] for line in run_kotlin(program, damaged, [])} == {"false"}
