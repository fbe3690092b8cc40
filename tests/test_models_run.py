import json
import resource
import types

import pytest
import torch
from conftest import run_pocketsam, run_python
from PIL import Image

from pocketsam.errors import PocketSamError
from pocketsam.files import held_folder
from pocketsam.models.training import run as module
from pocketsam.models.training.run import Run, average_into, check_finite, identity_of, learning_rate


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(4e-4, step, 100, 10) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[0] == pytest.approx(4e-5)
    assert rates[-1] < 0.03 * max(rates)


def test_a_run_remembers_what_it_saved(tmp_path):
    run = Run(tmp_path / "a" / "run", {"steps": 3})
    assert run.resume() == {}
    run.save({"step": 1, "weights": torch.ones(2)})
    run.save({"step": 2, "weights": torch.zeros(2)})
    assert Run(run.folder, {"steps": 3}).resume()["step"] == 2
    with pytest.raises(PocketSamError, match="another recipe"):
        Run(run.folder, {"steps": 4}).resume()
    for damage in (b"", b"no state", (run.folder / "state.pt").read_bytes()[:200]):
        (run.folder / "state.pt").write_bytes(damage)
        with pytest.raises(PocketSamError, match=r"state\.pt: damaged .*remove it to start"):
            Run(run.folder, {"steps": 3}).resume()


def test_a_start_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"1")
    (tmp_path / "b.pt").write_bytes(b"1")
    assert identity_of(str(tmp_path / "a.pt")) == identity_of(str(tmp_path / "b.pt"))
    assert len(identity_of("default")) == 64
    assert (identity_of("seeded:3"), identity_of(None)) == ("seeded:3", None)


def test_a_state_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(PocketSamError, match="cannot be read"):
        Run(tmp_path, {}).resume()


def test_the_log_is_json_by_line(tmp_path, capsys):
    run = Run(tmp_path, {})
    run.log({"step": 1})
    run.log({"step": 2})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PocketSamError, match="file"):
        Run(tmp_path / "file" / "run", {})


def test_a_full_disk_keeps_the_last_state(tmp_path):
    Run(tmp_path, {}).save({"step": 1})
    code = f"""
import pathlib, torch
from pocketsam.models.training import run as module
from pocketsam.models.training.run import Run
Run(pathlib.Path({str(tmp_path)!r}), {{}}).save({{"step": 2, "weights": torch.zeros(3_000_000)}})
"""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = run_python(code, preexec_fn=limit)
    assert "PocketSamError" in done.stderr
    assert "cannot be written" in done.stderr
    assert Run(tmp_path, {}).resume()["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_averages():
    one, two = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(two.weight, 3.0)
    two.num_batches_tracked += 5
    average_into(one, two, step=10_000, decay=0.75)
    assert torch.allclose(one.weight, torch.full((2,), 1.5))
    assert one.num_batches_tracked == 5
    average_into(one, two, step=0, decay=0.75)
    assert torch.allclose(one.weight, torch.full((2,), 2.85))


def test_a_loss_that_is_no_number(tmp_path):
    check_finite(torch.tensor(1.0), tmp_path, 3)
    with pytest.raises(PocketSamError, match=r"nan at step 3"):
        check_finite(torch.tensor(float("nan")), tmp_path, 3)


def test_some_numbers_may_grow(tmp_path):
    Run(tmp_path, {"steps": 3, "batch": 2}).save({"step": 3})
    assert Run(tmp_path, {"steps": 5, "batch": 2}, may_grow=("steps",)).resume()["step"] == 3
    for steps, batch, says in ((2, 2, "steps was 3"), (5, 4, "batch was 2")):
        with pytest.raises(PocketSamError, match=says):
            Run(tmp_path, {"steps": steps, "batch": batch}, may_grow=("steps",)).resume()


def test_a_build_without_onednn_has_no_bfloat16(monkeypatch):
    """As torch for Apple Silicon: the operator is not there."""
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module.torch.ops, "mkldnn", types.SimpleNamespace(), raising=False)
    assert module.has_bfloat16() is False
    assert module.default_compute() == "fp32"


def test_two_runs_do_not_share_a_folder(tmp_path):
    code = f"""
import pathlib
from pocketsam.files import held_folder
with held_folder(pathlib.Path({str(tmp_path)!r})):
    print("held")
"""
    with held_folder(tmp_path):
        second = run_python(code)
    assert "another pocketsam trains in it" in second.stderr
    assert run_python(code).stdout == "held\n"


TINY = ("--teacher", "seeded", "--image-size", 64, "--steps", 1)


def test_a_distillation_holds_its_folder(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "cat.png")
    run = tmp_path / "run"
    run.mkdir()
    with held_folder(run):
        done = run_pocketsam("distill", tmp_path, *TINY, "--output", run)
    assert done.returncode == 1
    assert "another pocketsam trains in it" in done.stderr
