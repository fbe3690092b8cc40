"""OpenVINO, the provider ``auto``, ``bench --engines``; engines that mix images up."""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import call_pocketsam, change_encoder, run_python

from pocketsam.errors import BundleError, MissingExtraError, ParityError, ProviderError
from pocketsam.runtime import Segmenter
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends import open_vino, recorded
from pocketsam.runtime.backends.litert import open_tflite
from pocketsam.runtime.backends.networks import open_network
from pocketsam.runtime.backends.recorded import Choice, read_choice, resolve_auto, write_choice
from pocketsam.runtime.benchmarks.engines import MIN_IOU, choose
from pocketsam.runtime.bundle import NETWORKS, open_bundle
from pocketsam.runtime.commands.bench import _names
from pocketsam.runtime.commands.engines import _record
from pocketsam.runtime.verification import golden

pytest.importorskip("openvino")
FAST = ("--runs", 1, "--warmup", 0, "--threads", 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pocketsam"


@pytest.fixture
def segmenters(bundle):
    return [Segmenter(bundle, providers=name, threads=1) for name in ("cpu", "openvino")]


def test_masks_are_those_of_onnxruntime(segmenters, photo, cache):
    clicks = np.float32([[[220, 120]], [[60, 200]], [[10, 10]]])
    found = []
    for segmenter in segmenters:
        segmenter.set_image(photo)
        scores, kept, low_res = segmenter.predict_above(clicks, np.ones((3, 1)), -1.0)
        found.append((segmenter.get_image_embedding(), scores, kept, low_res))
    for expected, actual in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert list((cache / "openvino").glob("*.compiled"))


def test_an_embedding_is_not_overwritten_by_the_next_image(segmenters, photo):
    _, segmenter = segmenters
    feeds = [segmenter.encoder_feeds(image) for image in (photo, photo[:, ::-1].copy())]
    first = segmenter.encode(feeds[0])
    kept = first.copy()
    assert np.abs(segmenter.encode(feeds[1]) - first).max() > 0.1
    assert np.array_equal(first, kept)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(segmenter.encode, feeds * 4))
    for number, answer in enumerate(answers):
        assert np.array_equal(answer, answers[number % 2])
    assert np.array_equal(answers[0], kept)


def test_arithmetic_that_the_cpu_lacks_is_refused(bundle, monkeypatch):
    present = open_vino.arithmetics()
    assert present[0] == "f32"
    for name in {"bf16", "f16"}.difference(present):
        with pytest.raises(ProviderError, match=f"precision={name} needs a.* CPU .*this one has f32"):
            Segmenter(bundle, providers=f"openvino:precision={name}")
    if "bf16" in present:
        pytest.skip("OpenVINO has bfloat16 here")
    monkeypatch.setattr(open_vino, "arithmetics", lambda: ("f32", "bf16"))
    with pytest.raises(ProviderError, match="OpenVINO computes in f32 on this CPU, not in bf16"):
        Segmenter(bundle, providers="openvino:precision=bf16")


@pytest.mark.parametrize("name", open_vino.arithmetics()[1:])
def test_arithmetic_that_the_cpu_has(name, trained_bundle):
    results = golden.check_golden(trained_bundle, providers=f"openvino:precision={name}")
    golden.raise_if_failed(results)
    assert {result.arithmetic for result in results} == {name}


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        ("openvino:precision=int8", "openvino computes in f32 or bf16 or f16, not int8"),
        ("openvino:device=GPU", "openvino has the option precision, not device"),
        ("openvino:f16", "options are KEY=VALUE"),
        (["openvino", "cpu"], "openvino runs alone, without cpu"),
        (["cpu", "openvino"], "openvino opens bundles, and stands alone"),
        (["auto", "cpu"], "auto stands alone"),
        ("auto:precision=f16", "auto stands alone"),
        ("cpu:precision=f16", "cpu has no option precision"),
        ("CPUExecutionProvider:precision=f16", "cpu has no option precision"),
    ],
)
def test_providers_that_do_not_go_together(providers, message, bundle):
    with pytest.raises(ProviderError, match=message):
        Segmenter(bundle, providers=providers)


def test_what_openvino_does_not_open():
    with pytest.raises(ProviderError, match="a TFLite bundle runs with provider cpu, not openvino"):
        open_tflite(b"", "the file", "openvino")
    with pytest.raises(BundleError, match=r"the file: OpenVINO cannot load it: [^\n]+$"):
        open_vino.open_openvino(b"nonsense", "the file")


def test_without_openvino(bundle, monkeypatch):
    open_vino._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_vino.arithmetics() == ()
    with pytest.raises(MissingExtraError, match=r"pocketsam\[openvino\]"):
        Segmenter(bundle, providers="openvino")


def test_nothing_is_reported_to_anybody(tmp_path):
    """``import openvino`` alone writes to ~/intel, and reports."""
    code = (
        "import sys; from pocketsam.runtime.backends import open_vino; print(open_vino.arithmetics());"
        "assert 'openvino' in sys.modules; assert 'openvino_telemetry' not in sys.modules"
    )
    done = run_python(code, env=os.environ | {"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "f32" in done.stdout
    assert not (tmp_path / "intel").exists()


def test_a_cache_that_cannot_be_written_or_was_cut(bundle, cache, photo):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    one = Segmenter(bundle, providers="openvino", threads=1)
    cache.unlink()
    feeds = one.encoder_feeds(photo)
    for _ in range(2):
        again = Segmenter(bundle, providers="openvino", threads=1)
        assert np.array_equal(one.encode(feeds), again.encode(feeds))
        (blob,) = (cache / "openvino").glob("*.compiled")
        blob.chmod(0o600)
        blob.write_bytes(blob.read_bytes()[:1000])


def latched(encoder):
    """Whatever the image, the first one's embedding."""
    first = []
    return lambda feeds: first[0] if first else first.append(encoder(feeds)) or first[0]


def lagging(encoder):
    """The embedding of the image before."""
    last = []

    def call(feeds):
        last.append(encoder(feeds))
        return last[-2] if len(last) > 1 else last[0]

    return call


def reused(encoder):
    """One buffer for all embeddings."""
    buffer = []

    def call(feeds):
        found = encoder(feeds)[c.IMAGE_EMBEDDINGS]
        buffer.append(found) if not buffer else np.copyto(buffer[0], found)
        return {c.IMAGE_EMBEDDINGS: buffer[0]}

    return call


@pytest.mark.parametrize("damage", [latched, lagging, reused])
@pytest.mark.parametrize("arithmetic", ["f32", "bf16"])
def test_golden_vectors_find_an_engine_that_mixes_images_up(damage, arithmetic, trained_bundle):
    opened = open_bundle(trained_bundle)
    encoder, decoder = (open_network(opened, name, threads=1) for name in NETWORKS)
    good = golden.check_networks(opened, encoder, decoder, arithmetic=arithmetic)
    assert all(result.ok for result in good)
    found = golden.check_networks(opened, damage(encoder), decoder, arithmetic=arithmetic)
    assert not any(result.ok for result in found)


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_golden_vectors_find_a_damaged_encoder(provider, trained_bundle, tmp_path):
    change_encoder(trained_bundle, tmp_path / "copy")
    assert call_pocketsam("verify", trained_bundle, "--provider", provider).returncode == 0
    done = call_pocketsam("verify", tmp_path / "copy", "--provider", provider)
    assert done.returncode == 3
    assert "✗" in done.stdout


def test_a_lower_arithmetic_is_no_grade_better_than_close(trained_bundle, monkeypatch):
    """As if this CPU had bfloat16: the encoder is rounded to it, to 8 bits of mantissa, here."""

    def rounded(bundle, name, providers, threads):
        network = open_network(bundle, name, "cpu", threads)
        if name == "decoder":
            return network

        def call(feeds):
            values = network(feeds)[c.IMAGE_EMBEDDINGS]
            bits = values.view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)
            return {c.IMAGE_EMBEDDINGS: bits.view(np.float32)}

        return call

    monkeypatch.setattr(golden, "open_network", rounded)
    done = call_pocketsam("verify", trained_bundle, "--provider", "openvino:precision=bf16")
    assert done.returncode == 0, done.stderr
    assert "✓ fp32 in bf16, golden point" in done.stdout
    assert done.stdout.splitlines()[-1] == "OK: golden vectors: fp32 (close, in bf16)"
    told = json.loads(
        call_pocketsam(
            "verify", trained_bundle, "--provider", "openvino:precision=bf16", "--json"
        ).stdout
    )
    assert told["precisions"][0]["grade"] == "close"
    with pytest.raises(ParityError):  # which float32 would not keep
        golden.raise_if_failed(golden.check_golden(trained_bundle, providers="openvino"))


def test_auto_takes_what_was_recorded(several_precisions, cache, monkeypatch):
    assert resolve_auto(several_precisions, "auto", None, 1) == ("cpu", None)
    path = write_choice(several_precisions, 1, Choice("openvino", "fp16"))
    assert resolve_auto(several_precisions, "AUTO", None, 1) == ("openvino", "fp16")
    assert resolve_auto(several_precisions, "cpu", None, 1) == ("cpu", None)
    assert resolve_auto(several_precisions, ["auto"], "int8", 1) == ("cpu", "int8")
    assert resolve_auto(several_precisions, "auto", None, 2) == ("cpu", None)
    assert Segmenter(several_precisions, providers="auto", threads=1).manifest.precision == "fp16"
    assert Segmenter(several_precisions, threads=1).manifest.precision == "fp32"
    monkeypatch.setattr(recorded, "describe_cpu", lambda: "another CPU")
    assert read_choice(several_precisions, 1) is None
    assert path.parent == cache / "engines"


@pytest.mark.parametrize("provider", ["cuda", "openvino:precision=f16", "nonsense", "cpu:x"])
def test_a_recorded_choice_that_cannot_run_here_is_left(several_precisions, provider):
    write_choice(several_precisions, 1, Choice(provider, "fp32"))
    assert resolve_auto(several_precisions, "auto", None, 1) == ("cpu", None)


@pytest.mark.parametrize("providers", [5, None, ["auto", 5], ["cpu", None]])
def test_providers_that_are_no_names(providers, bundle):
    with pytest.raises(ProviderError, match="providers are names such as 'cpu', not"):
        Segmenter(bundle, providers=providers)


def test_bench_names_providers_of_tflite_as_they_were_given():
    bundle = SimpleNamespace(manifest=SimpleNamespace(target="tflite"))
    assert _names(bundle, "cpu:precision=f16") == ["cpu:precision=f16"]


def zero_a_page(data):
    middle = len(data) // 2
    return data[:middle] + bytes(4096) + data[middle + 4096 :]


@pytest.mark.parametrize("damage", [zero_a_page, lambda data: b""])
def test_a_damaged_compiled_network_is_compiled_again(damage, bundle, photo, cache):
    segmenter = Segmenter(bundle, providers="openvino", threads=1)
    wanted = segmenter.encode(segmenter.encoder_feeds(photo))
    (path,) = (cache / "openvino").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = Segmenter(bundle, providers="openvino", threads=1)
    assert np.array_equal(again.encode(again.encoder_feeds(photo)), wanted)
    kept = path.read_bytes()
    assert kept[:32] == hashlib.sha256(kept[32:]).digest()


def test_an_older_choice_does_not_outlive_a_run_that_makes_none(several_precisions, cache, capsys):
    for _ in range(2):
        write_choice(several_precisions, 1, Choice("cpu", "fp16"))
        _record(several_precisions, 1, None)
        assert read_choice(several_precisions, 1) is None
    assert write_choice(several_precisions, 1, None)  # where there is none
    assert "--provider auto has no record now" in capsys.readouterr().err


def test_a_choice_that_cannot_be_recorded_is_said(several_precisions, cache, capsys):
    cache.mkdir(parents=True)
    (cache / "engines").write_text("a file in its place")
    _record(several_precisions, 1, row("cpu", 1.0))
    (cache / "engines").unlink()
    path = write_choice(several_precisions, 1, Choice("cpu", "fp16"))
    path.unlink()
    path.mkdir()
    _record(several_precisions, 1, row("cpu", 1.0))
    assert capsys.readouterr().err.count("note: not recorded for --provider auto") == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: b"",
        lambda record: b"\xff",
        lambda record: b"[" * 60_000,
        lambda record: b"[]",
        lambda record: json.dumps(record | {"key": {}}).encode(),
        lambda record: json.dumps(record | {"choice": {"provider": "cpu"}}).encode(),
        lambda record: json.dumps(record | {"choice": {"provider": 1, "precision": "fp16"}}).encode(),
        lambda record: json.dumps(record | {"choice": {"provider": "cpu", "precision": "x"}}).encode(),
        lambda record: json.dumps(
            record | {"choice": {"provider": "auto", "precision": "fp16"}}
        ).encode(),
    ],
)
def test_a_damaged_record_is_none(damage, several_precisions):
    path = write_choice(several_precisions, 1, Choice("cpu", "fp16"))
    assert read_choice(several_precisions, 1) == Choice("cpu", "fp16")
    path.write_bytes(damage(json.loads(path.read_text())))
    assert read_choice(several_precisions, 1) is None
    assert resolve_auto(several_precisions, "auto", None, 1) == ("cpu", None)


def row(provider, seconds, iou=1.0, golden="", bundle="b"):
    timing = {"n": 1, "min": seconds, "p50": seconds, "p90": seconds, "p99": seconds, "mean": seconds}
    stages = dict.fromkeys(("encoder", "decoder", "end to end"), timing)
    about = {"bundle": bundle, "target": "onnx", "precision": "fp32", "provider": provider}
    return about | {
        "stages": stages, "ratio": 1.0, "mask_iou_mean": iou, "mask_iou": iou, "golden": golden,
    }  # fmt: skip


def test_the_choice_is_the_fastest_that_keeps_the_masks():
    rows = [
        row("cpu", 3.0),
        row("a", 1.0, iou=MIN_IOU - 1e-6),
        row("b", 0.5, golden="cosine 0.9, must be ≥ 0.99"),
        row("c", 2.0, iou=MIN_IOU),
        row("cpu", 9.0, iou=0.5, bundle="other"),
    ]
    choices = choose(rows)
    assert {path: chosen["provider"] for path, chosen in choices.items()} == {"b": "c"}
    assert choose([row("cpu", 1.0, iou=float("nan"))]) == {}


def test_bench_engines(several_precisions, photo):
    done = call_pocketsam("bench", several_precisions, "--engines", "--json", *FAST)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    names = [(row["provider"], row["precision"]) for row in told["rows"]]
    assert names[0] == ("cpu", "fp32")
    assert {("openvino", "fp32"), ("cpu", "int8"), ("cpu", "fp16")} <= set(names)
    by_name = dict(zip(names, told["rows"], strict=True))
    assert by_name["cpu", "fp32"]["mask_iou"] == by_name["cpu", "fp32"]["ratio"] == 1
    assert by_name["openvino", "fp32"]["mask_iou"] > 0.99
    assert {(row["golden"], row["golden_error"]) for row in told["rows"]} == {(True, "")}
    summary = told["summary"]
    assert {"cpu", "flags", "cores", "system"} == set(summary["machine"])
    assert [row["precision"] for row in summary["rows"]] == [precision for _, precision in names]
    assert len(json.dumps(summary)) < 4000
    (use,) = summary["use"]
    assert by_name[use["provider"], use["precision"]]["mask_iou_mean"] >= MIN_IOU
    assert read_choice(several_precisions, 1) == Choice(**use)
    segmenter = Segmenter(several_precisions, providers="auto", threads=1)
    assert segmenter.manifest.precision == use["precision"]
    segmenter.set_image(photo)


def test_bench_engines_in_words_and_its_options(trained_bundle, tmp_path, bundle, cache):
    change_encoder(trained_bundle, tmp_path / "copy")
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    done = call_pocketsam("bench", trained_bundle, "--engines", "--against", tmp_path / "copy", *FAST)
    assert done.returncode == 0, done.stderr
    assert f"use for {trained_bundle}: --provider " in done.stdout
    assert f"use for {tmp_path / 'copy'}: none passes" in done.stdout
    known = len(open_vino.arithmetics())  # where the CPU has bfloat16, OpenVINO is asked for it, too
    assert done.stdout.count("✗") == 1 + known
    assert "note: not recorded for --provider auto" in done.stderr
    other = call_pocketsam("bench", trained_bundle, "--engines", "--against", bundle, *FAST)
    assert (other.returncode, "another checkpoint or canvas" in other.stderr) == (2, True)
    for option in (("--provider", "cpu"), ("--precision", "fp32"), ("--runs", 0)):
        assert call_pocketsam("bench", trained_bundle, "--engines", *option).returncode == 2


def test_parity_with_pytorch(several_precisions, tmp_path, pictures):
    """Whose report says what ran it; a damaged encoder fails there as well."""
    arguments = "--checkpoint", "default", "--provider", "openvino", "--images", *pictures
    how = "--precision", "fp32", "--json"
    done = call_pocketsam("verify", several_precisions, *arguments, *how)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["precisions"]
    assert told["parity"]["runner"].startswith("OpenVINO 20")
    change_encoder(several_precisions, tmp_path / "copy")
    assert call_pocketsam("verify", tmp_path / "copy", *arguments, *how).returncode == 3
