"""Certificates: every number is recomputed here by other code, and damages are found."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, call_pocketsam
from PIL import Image
from toy_target import TARGET, convert

from pocketsam.errors import BundleError, IntegrityError, ParityError, UsageError
from pocketsam.export import export, verify
from pocketsam.export.artefact import open_networks
from pocketsam.export.battery import battery
from pocketsam.export.battery.damages import GRAPH_DAMAGES, MANIFEST_DAMAGES
from pocketsam.export.battery.effect import effect_of
from pocketsam.export.bundle import describe_file, write_manifest
from pocketsam.export.reference import Reference
from pocketsam.export.targets import TARGETS, find_target
from pocketsam.models.checkpoint import DEFAULT
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.split_decoder import SplitDecoder
from pocketsam.runtime.bundle import Bundle, choose_bundle, open_bundle
from pocketsam.runtime.manifest import MANIFEST_NAME
from pocketsam.runtime.verification import golden
from pocketsam.runtime.verification.golden import check_golden
from pocketsam.runtime.verification.golden_result import GoldenResult


@pytest.fixture(scope="module")
def reference(pictures):
    """PyTorch's answers to what ``several_precisions`` was verified and calibrated on."""
    return Reference(DEFAULT, SMALL, images=pictures, calibration=pictures)


def figures_of(wanted, found):
    """max, mean, deviation, error, cosine, SNR of two arrays, each by its definition."""
    a, b = np.float64(wanted).ravel(), np.float64(found).ravel()
    scale = a.std()
    return {
        "max_abs": max(abs(a - b)),
        "mean_abs": np.mean(abs(a - b)),
        "scale": scale,
        "error": max(abs(a - b)) / scale,
        "cosine": sum(a * b) / np.sqrt(sum(a * a) * sum(b * b)),
        "snr_db": 10 * np.log10(sum(a * a) / sum((a - b) ** 2)),
    }


def masks_at_full_size(low_res, size):
    """segment-anything's two steps of bilinear interpolation, by torch."""
    import torch
    from torch.nn.functional import interpolate

    scale = SMALL / max(size)
    height, width = (int(side * scale + 0.5) for side in size)
    canvas = interpolate(torch.from_numpy(low_res), (SMALL, SMALL), mode="bilinear")
    return interpolate(canvas[..., :height, :width], size, mode="bilinear").numpy() > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_number_of_a_certificate(precision, several_precisions, reference):
    bundle = choose_bundle(several_precisions, precision)
    encoder, decoder = open_networks(bundle)
    rows = {(r["part"], r["tensor"]): r for r in bundle.manifest.parity["rows"]}
    tensors, ious, counts = [], [], dict.fromkeys(("small", "changed", "prompts", "kept"), 0)
    deltas = []
    for case in [*reference.cases, reference.golden.case]:
        embedding = encoder(case.feeds)[c.IMAGE_EMBEDDINGS]
        for prompt in case.prompts:
            found = decoder(prompt.feeds | {c.IMAGE_EMBEDDINGS: embedding})
            tensors.append(figures_of(prompt.outputs[c.LOW_RES_MASKS], found[c.LOW_RES_MASKS]))
            wanted, got = prompt.outputs[c.IOU_PREDICTIONS], found[c.IOU_PREDICTIONS]
            deltas.append(abs(wanted - got).max())
            for expected, actual in zip(wanted[:, 1:], got[:, 1:], strict=True):
                second, first = sorted(expected)[-2:]
                if first - second > 0.01:
                    counts["prompts"] += 1
                    counts["kept"] += int(np.argmax(expected) == np.argmax(actual))
            size = case.photo.shape[:2]
            both = (masks_at_full_size(x[c.LOW_RES_MASKS], size) for x in (prompt.outputs, found))
            for expected, actual in zip(*(x.reshape(-1, *size) for x in both), strict=True):
                counts["changed"] += int(np.sum(expected ^ actual))
                if expected.mean() < 0.005:
                    counts["small"] += 1
                else:
                    ious.append(np.sum(expected & actual) / np.sum(expected | actual))
    low = rows["end to end", c.LOW_RES_MASKS]
    for key in ("max_abs", "mean_abs", "error"):
        assert low[key] == pytest.approx(max(t[key] for t in tensors), rel=1e-3), key
    for key in ("cosine", "snr_db"):
        assert low[key] == pytest.approx(min(t[key] for t in tensors), rel=1e-3), key
    assert low["scale"] == pytest.approx(max(tensors, key=lambda t: t["error"])["scale"], rel=1e-3)
    scores, masks = rows["end to end", c.IOU_PREDICTIONS], rows["end to end", "masks"]
    assert scores["score"] == pytest.approx(max(deltas), rel=1e-3)
    assert {key: scores[key] for key in ("prompts", "kept")} == {
        key: counts[key] for key in ("prompts", "kept")
    }
    assert scores["best_kept"] == counts["kept"] / counts["prompts"]
    assert masks["mask_iou"] == pytest.approx(min(ious), abs=2e-3)
    assert masks["mask_iou_mean"] == pytest.approx(np.mean(ious), abs=1e-4)
    assert (masks["masks"], masks["small"]) == (len(ious), counts["small"])
    assert masks["changed"] == pytest.approx(counts["changed"], rel=0.02, abs=3)
    assert bundle.manifest.grade == bundle.manifest.parity["grade"]


def test_each_number_of_the_golden_results(several_precisions):
    bundle = choose_bundle(several_precisions, "int8")
    found = check_golden(several_precisions, precision="int8")
    results = {(r.prompt, r.against): r for r in found if r.decoder == "whole"}
    assert (len(results), len(found)) == (8, 16)
    arrays = np.load(bundle.path / "golden.npz")
    networks = open_networks(bundle)
    answers = golden.answer_prompts(arrays, bundle.manifest, *networks)
    for (prompt, against), result in results.items():
        prefix = prompt if against == golden.PYTORCH else f"{prompt}_own"
        wanted, found = arrays[f"{prefix}_low_res_masks"], answers[prompt]["low_res_masks"]
        for key in ("error", "cosine", "snr_db"):
            assert result.figures[key] == pytest.approx(figures_of(wanted, found)[key], rel=1e-3)
        deltas = abs(arrays[f"{prefix}_scores"] - answers[prompt]["scores"])
        assert result.figures["score"] == pytest.approx(deltas.max(), rel=1e-3)
        both = [(a > 0, b > 0) for a, b in zip(wanted[0], found[0], strict=True)]
        ious = [(a & b).sum() / (a | b).sum() for a, b in both if a.mean() >= 0.02]
        small = [(a ^ b).sum() / (0.02 * a.size) for a, b in both if a.mean() < 0.02]
        assert result.figures["mask_iou"] == pytest.approx(min(ious, default=1))
        assert result.figures["mask_iou_mean"] == pytest.approx(np.mean(ious) if ious else 1)
        assert result.figures["small_changed"] == pytest.approx(max(small, default=0))


def test_golden_vectors_hold_what_everything_runs(several_precisions, monkeypatch):
    for precision in ("fp32", "fp16"):
        results = check_golden(several_precisions, precision=precision)
        assert [(r.decoder, r.ok) for r in results] == [("whole", True)] * 4 + [("split", True)] * 4
    masks = SplitDecoder.masks
    monkeypatch.setattr(SplitDecoder, "masks", lambda self, feeds: masks(self, feeds) + 0.5)
    results = check_golden(several_precisions, precision="fp32")
    assert [r.ok for r in results] == [True] * 4 + [False] * 4
    with pytest.raises(
        ParityError, match="fp32, prompt point in `everything`, beside PyTorch: largest"
    ):
        golden.raise_if_failed(results)


def test_golden_masks_are_neither_empty_nor_full(several_precisions, reference):
    arrays = np.load(several_precisions / "golden.npz")
    for name in golden.PROMPTS:
        areas = (arrays[f"{name}_low_res_masks"] > 0).mean(axis=(-2, -1))
        assert ((areas > 0.01) & (areas < 0.9)).all(), (name, areas)
        case = next(p for p in reference.golden.case.prompts if p.name == f"golden, {name}")
        assert np.array_equal(arrays[f"{name}_scores"], case.outputs[c.IOU_PREDICTIONS])
    assert max(arrays["image"].shape[:2]) > SMALL  # a device has to scale it down
    assert (several_precisions / "golden.npz").stat().st_size < 400_000
    assert "point_own_scores" not in arrays
    assert "point_own_scores" in np.load(several_precisions / "int8/golden.npz")


def test_every_precision_is_verified(several_precisions):
    """Unasked the Segmenter takes fp32; the others have golden vectors of their own."""
    results = check_golden(several_precisions)
    assert all(result.ok for result in results)
    assert list(dict.fromkeys(result.precision for result in results)) == ["fp32", "fp16", "int8"]
    for precision in ("fp32", "fp16", "int8"):
        (only,) = {result.precision for result in verify(several_precisions, precision=precision)}
        assert only == precision
    done = call_pocketsam("verify", several_precisions)
    assert done.returncode == 0
    last = done.stdout.splitlines()[-1]
    assert last.startswith("OK: golden vectors: fp32 (equivalent), fp16 (close), int8 (")


def test_a_bundle_inside_is_the_one_that_was_written(several_precisions, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(several_precisions, copy)
    manifest = open_bundle(copy / "fp16").manifest
    write_manifest(copy / "fp16", dataclasses.replace(manifest, tools={}))
    with pytest.raises(IntegrityError, match=r"fp16/manifest\.json: not the manifest that"):
        check_golden(copy)


def test_golden_vectors_of_the_first_schema(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    value = json.loads((copy / MANIFEST_NAME).read_text())
    value |= {"schema_version": 1, "also": []}
    value["golden"]["tolerance"] = 0.15
    (copy / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(BundleError, match=r"older pocketsam.*export it again"):
        check_golden(copy)


def test_damaged_golden_vectors(bundle, tmp_path):
    arrays = dict(np.load(bundle / "golden.npz"))
    for number, data in enumerate((b"", b"PK", (bundle / "golden.npz").read_bytes()[:-900])):
        copy = tmp_path / str(number)
        shutil.copytree(bundle, copy)
        (copy / "golden.npz").write_bytes(data)
        manifest = open_bundle(copy).manifest
        entry = dataclasses.replace(manifest.golden, **vars(describe_file(copy / "golden.npz")))
        write_manifest(copy, dataclasses.replace(manifest, golden=entry))
        with pytest.raises(IntegrityError, match="damaged golden vectors"):
            check_golden(copy)
    for changes in (
        {"image": arrays["image"][..., 0]},
        {"point_point_coords": np.full((1, 1, 2), np.nan)},
        {"box_scores": np.zeros(3)},
        {"box_low_res_masks": np.zeros((1, 4, 2, 2))},
        {"refine_mask_inputs": np.zeros((1, 1, 3, 3))},
    ):
        copy = tmp_path / next(iter(changes))
        shutil.copytree(bundle, copy)
        np.savez(copy / "golden.npz", **arrays | changes)
        manifest = open_bundle(copy).manifest
        entry = dataclasses.replace(manifest.golden, **vars(describe_file(copy / "golden.npz")))
        write_manifest(copy, dataclasses.replace(manifest, golden=entry))
        done = call_pocketsam("verify", copy)
        assert done.returncode in (3, 5), changes
        assert len(done.stderr.splitlines()) == 1


# what becomes of files that fail


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TARGETS, "toy", TARGET)


def export_toy(path, **options):
    return export("seeded:3", path, **{"target": "toy", "image_size": 64} | options)


def weak_decoder(network, path, *args, by=0.005):
    """Writes a network whose masks are lossy, but not broken."""
    state = network.model.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        wrong = {k: v + by * v.abs().mean() for k, v in state.items() if v.is_floating_point()}
        patch.setattr(network.model, "state_dict", lambda: state | wrong)
        return convert(network, path, *args)


@pytest.fixture
def weak(monkeypatch, toy):
    monkeypatch.setattr(TARGET.open_converter, "convert", staticmethod(weak_decoder))


def test_files_that_fail_are_kept_when_asked(weak, pictures, tmp_path):
    with pytest.raises(ParityError, match=r"must be ≤ 0\.0004 standard deviations") as caught:
        export_toy(tmp_path / "b", images=pictures)
    assert "(case: cat" in str(caught.value)
    assert "--image-size" in str(caught.value)
    assert "--accept lossy" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ParityError):
        export_toy(tmp_path / "b", images=pictures, keep_failed=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.failed", "b.failed.png"]
    assert open_bundle(tmp_path / "b.failed").manifest.parity["passed"] is False
    assert "✗" in call_pocketsam("info", tmp_path / "b.failed").stdout
    with Image.open(tmp_path / "b.failed.png") as picture:
        assert picture.width > 3 * picture.height  # three panels of a landscape photograph


def test_files_that_fail_replace_nothing_else(weak, pictures, tmp_path):
    (tmp_path / "b.failed").mkdir()
    (tmp_path / "b.failed" / "thesis.txt").write_text("years")
    with pytest.raises(BundleError, match=r"b\.failed: exists and is not a bundle"):
        export_toy(tmp_path / "b", images=pictures, keep_failed=True)
    assert (tmp_path / "b.failed" / "thesis.txt").read_text() == "years"
    done = call_pocketsam(
        "export", "seeded", "--no-verify", "--keep-failed", "--output", tmp_path / "c"
    )
    assert done.returncode == 2
    for options in ({"keep_failed": True}, {"images": pictures}):
        with pytest.raises(UsageError, match="and --no-verify skips that"):
            export_toy(tmp_path / "c", verify=False, **options)
    with pytest.raises(UsageError, match="unknown grade 'good'; known are equivalent, close, lossy"):
        export_toy(tmp_path / "c", accept="good")


def test_what_is_lossy_is_written_when_accepted(weak, pictures, tmp_path):
    report = export_toy(tmp_path / "b", images=pictures, accept="lossy")
    manifest = open_bundle(tmp_path / "b").manifest
    assert report.grade == manifest.grade == "lossy"
    done = call_pocketsam("info", tmp_path / "b")
    assert "! lossy: mask IoU" in done.stdout
    assert all(result.ok for result in check_networks_of(tmp_path / "b"))
    (again,) = verify(tmp_path / "b", checkpoint="seeded:3", images=pictures)
    assert again.ok
    (other,) = verify(tmp_path / "b", checkpoint="seeded:4", images=pictures)
    assert not other.ok


def test_what_is_close_but_not_equivalent_verifies_when_accepted(toy, monkeypatch, pictures, tmp_path):
    def nearly(network, path, *args):
        return weak_decoder(network, path, *args, by=1e-5)

    monkeypatch.setattr(TARGET.open_converter, "convert", staticmethod(nearly))
    with pytest.raises(ParityError):
        export_toy(tmp_path / "b", images=pictures)
    report = export_toy(tmp_path / "b", images=pictures, accept="lossy")
    assert report.grade == "close"
    (again,) = verify(tmp_path / "b", checkpoint="seeded:3", images=pictures)
    assert again.ok


def test_files_that_nobody_verified_are_not_certified(weak, tmp_path):
    export_toy(tmp_path / "b", verify=False)
    assert not any(result.ok for result in check_networks_of(tmp_path / "b"))


def check_networks_of(folder: Path) -> list[GoldenResult]:
    bundle = open_bundle(folder)
    return golden.check_networks(bundle, *open_networks(bundle))


def test_a_tick_stands_for_an_equivalent_export(toy, pictures, tmp_path):
    export_toy(tmp_path / "b", images=pictures)
    assert "✓ equivalent: mask IoU" in call_pocketsam("info", tmp_path / "b").stdout


# the battery; `make battery` runs all of it


def run_battery(several_precisions, reference, precision, tmp_path) -> list[battery.Outcome]:
    target = find_target("onnx")
    bundle = choose_bundle(several_precisions, precision)
    subject = battery.Battery(reference, bundle.path, target, target.precision(precision))
    return list(subject.run_all(tmp_path))


@pytest.mark.parametrize("precision", ["int8", pytest.param("fp32", marks=pytest.mark.slow)])
def test_certificates_find_damages(precision, several_precisions, reference, tmp_path):
    outcomes = run_battery(several_precisions, reference, precision, tmp_path)
    assert len(outcomes) == 44
    assert not [outcome for outcome in outcomes if outcome.is_missed]
    assert sum(outcome.matters for outcome in outcomes) >= 25
    assert sum(outcome.golden and outcome.checkpoint for outcome in outcomes) >= 25
    if precision == "fp32":
        assert all(outcome.golden and outcome.checkpoint for outcome in outcomes)


def test_the_effect_is_that_of_the_worst_prompt():
    masks = -np.ones((1, 4, 8, 8), np.float32)
    masks[:, :, :4] = 1
    scores = np.array([[0.1, 0.4, 0.9, 0.2]], np.float32)
    healthy = {c.LOW_RES_MASKS: masks, c.IOU_PREDICTIONS: scores}
    half = masks.copy()
    half[0, 1, 2:] = -1
    worse = {c.LOW_RES_MASKS: half, c.IOU_PREDICTIONS: scores + np.float32(0.05)}
    least, score, kept = effect_of([[healthy, healthy]], [[healthy, worse]])
    assert (least, kept) == (0.5, 1.0)
    assert score == pytest.approx(0.05)


def test_a_battery_that_misses_says_so(several_precisions, reference, pictures, monkeypatch):
    """With golden vectors that nobody reads, the damages count as missed."""
    target = find_target("onnx")
    subject = battery.Battery(reference, several_precisions, target, target.precision("fp32"))
    monkeypatch.setattr(battery, "check_networks", lambda *_: [])
    monkeypatch.setattr(battery.Battery, "_checkpoint_finds", lambda *_: True)
    (outcome,) = subject.run(GRAPH_DAMAGES[:1])
    assert outcome.is_missed
    assert "MISSED" in battery.line(outcome)
    other = Reference("seeded:3", SMALL, images=pictures)
    with pytest.raises(ParityError, match="fails before any damage"):
        battery.Battery(other, several_precisions, target, target.precision("fp32"))


def test_a_manifest_that_says_something_else_is_refused(several_precisions, tmp_path):
    for change in MANIFEST_DAMAGES.values():
        value = json.loads((several_precisions / MANIFEST_NAME).read_text())
        change(value)
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
        with pytest.raises(IntegrityError, match=r"the runtime and .* files want"):
            open_bundle(tmp_path)
    assert isinstance(open_bundle(several_precisions), Bundle)
