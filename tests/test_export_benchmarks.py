"""The side-by-side run: real engines in processes of their own, failures named, tables from JSON."""

import json
import sys

import numpy as np
import pytest

from pocketsam.errors import ConversionError, PocketSamError
from pocketsam.export import thresholds
from pocketsam.export.benchmarks import report as benchmark_report
from pocketsam.export.benchmarks.engines import main
from pocketsam.export.benchmarks.suite import parse_file
from pocketsam.export.benchmarks.variants import Variant, Worker
from pocketsam.models.checkpoint import load_model
from pocketsam.runtime import from_rle, to_rle
from pocketsam.thresholds import Thresholds


@pytest.mark.slow
def test_the_passes(tmp_path, capsys):
    command = [str(tmp_path), "--checkpoint", "seeded:3", "--image-size", "64", "--rounds", "2"]
    assert main([*command, "--threads", "1", "--group", "passes"]) == 0
    result = json.loads((tmp_path / "seeded:3-64.json").read_text())
    rows = {row["name"]: row for row in result["variants"]}
    assert list(rows) == [
        "all passes",
        "without cells",
        "without masks",
        "without cells and masks",
    ]
    for row in rows.values():
        assert (row["n"], row["group"]) == (2, "passes")
        assert 0 < row["min"] <= row["p50"]
        assert row["peak_bytes"] > 2**24
        assert row["gemm_gflop_per_s"] > 1
    assert not result["failed"]
    assert "| without cells |" in capsys.readouterr().out
    assert "| without cells |" in benchmark_report.tables(result)


def worker(tmp_path, kind, file, feeds, python=sys.executable, **more):
    spec = {"kind": kind, "file": str(file), "threads": 1, **more}
    return Worker(Variant("one", "encoder", spec, feeds, python), tmp_path)


@pytest.mark.slow
def test_engines_answer_alike(bundle, photo, tmp_path):
    """onnxruntime and PyTorch, each in its process."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, 256, 256), np.float32)
    feeds = {"pixel_values": pixels}
    torch_spec = {"network": "encoder", "image_size": 256, "compile": False}
    found = []
    for number, (kind, file, more) in enumerate(
        [("onnxruntime", bundle / "encoder.onnx", {}), ("torch", "seeded:11", torch_spec)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = worker(folder, kind, file, feeds, **more)
        assert one.start["load_s"] > 0
        assert one.seconds() > 0
        (value,) = one.answer(feeds).values()
        found.append(value)
        one.close()
    assert np.abs(found[0] - found[1]).max() < 1e-4
    assert load_model("seeded:11", 256).model.image_size == 256


def test_an_engine_that_fails_is_named(bundle, tmp_path):
    feeds = {"pixel_values": np.zeros((1, 3, 64, 64), np.float32)}  # not the file's size
    with pytest.raises(ConversionError, match="INVALID_ARGUMENT"):
        worker(tmp_path, "onnxruntime", bundle / "encoder.onnx", feeds)
    with pytest.raises(ConversionError, match="No module named 'MNN'"):
        worker(tmp_path, "mnn", bundle / "encoder.onnx", feeds)


def test_wrong_arguments(tmp_path, capsys):
    with pytest.raises(PocketSamError, match="wanted NAME=FILE"):
        parse_file("encoder.onnx")
    assert main([str(tmp_path), "--rounds", "0"]) == 2
    assert "--rounds 0: at least one" in capsys.readouterr().err
    assert main([str(tmp_path), "--threads", "10000"]) == 2


def record(x, score, stability):
    mask = np.zeros((40, 400), bool)
    mask[10:30, x : x + 20] = True
    return {
        "segmentation": to_rle(mask),
        "bbox": [x, 10, 19, 19],
        "predicted_iou": score,
        "stability_score": stability,
    }


def test_thresholds_leave_so_many_objects_and_find_what_people_drew(monkeypatch):
    """Unstable masks score high here; of the stable ones, which people drew, the second comes twice."""
    monkeypatch.setattr(thresholds, "OBJECTS", 3)
    drawn = [from_rle(record(x, 0, 0)["segmentation"]) for x in (0, 40, 80)]
    unstable = [record(200 + 30 * n, 0.905 - n / 100, 0.65) for n in range(5)]
    stable = [record(x, 0.605 - x / 1000, 0.85) for x in (0, 1, 40, 80, 120)]
    records = unstable + stable
    assert [r["bbox"][0] for r in thresholds.keep(records, 0.8)] == [0, 40, 80, 120]
    low, high = (thresholds.choose(s, [records], [drawn]) for s in (0.6, 0.8))
    assert (low.thresholds.pred_iou_thresh, low.counts, low.iou) == (0.88, (3,), 0.0)
    assert (high.thresholds, high.counts, high.iou, high.recall) == (Thresholds(0.52, 0.8), (3,), 1, 1)
    assert thresholds.best_ious([], drawn) == [0, 0, 0]
    few = thresholds.choose(0.95, [records], [drawn])
    assert (few.thresholds.pred_iou_thresh, few.counts) == (thresholds.LOWEST_SCORE, (0,))
