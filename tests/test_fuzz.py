"""Some hundred cases of ``make fuzz``; and that it would see a fault."""

import os
import signal
from pathlib import Path
from random import Random

import fuzz
import fuzz_kinds
import pytest

from pocketsam.errors import PromptError


def test_every_damage_ends_in_a_result_or_an_error_of_ours():
    said = []
    counts = fuzz.run(250, seed=1, say=said.append)
    assert not [line for line in said if line.startswith("FAULT")]
    assert sum(count.total() for count in counts.values()) >= 250
    assert all(count["error"] for count in counts.values())
    assert sum(count["result"] for count in counts.values()) > 25


def raises(error):
    def damage(random, folder):
        raise error

    return damage


@pytest.mark.parametrize(
    ("damage", "outcome"),
    [
        (lambda random, folder: None, "result"),
        (raises(PromptError("no")), "error"),
        (raises(ValueError("no")), "fault"),
        (raises(MemoryError()), "fault"),
        (raises(KeyboardInterrupt()), "fault"),
    ],
)
def test_outcomes(damage, outcome, tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz_kinds.KINDS, "prompt", damage)
    assert fuzz.run_case("prompt", 0, 0, tmp_path)[0] == outcome


@pytest.mark.parametrize("how", ["signal", "wait", "loop", "memory"])
def test_a_process_that_dies_is_a_fault_and_the_rest_goes_on(how, tmp_path, monkeypatch):
    body = {
        "signal": "os.kill(os.getpid(), signal.SIGSEGV)",
        "wait": "time.sleep(60)",
        "loop": "while True: pass",
        "memory": "bytes(8 << 30)",
    }[how]
    worker = tmp_path / "worker.py"
    worker.write_text(
        f"import os, signal, sys, time\nsys.path.insert(0, {str(Path(fuzz.__file__).parent)!r})\n"
        "import fuzz, fuzz_kinds\nfuzz.SECONDS = 0.4\n"
        f"def damage(random, folder):\n    if random.random() < 0.5:\n        {body}\n"
        "fuzz_kinds.KINDS['prompt'] = damage\nfuzz.main()\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(worker))
    found = [outcome for _, outcome, _ in fuzz.run_kind("prompt", 3, 0, tmp_path)]
    wanted = ["fault" if Random(f"0/prompt/{n}").random() < 0.5 else "result" for n in range(3)]
    assert found == wanted
    assert set(found) == {"fault", "result"}


def test_the_same_seed_is_the_same_damage(tmp_path):
    data = os.urandom(100)
    for number in range(20):
        one, other = (fuzz_kinds.damage_bytes(Random(f"0/x/{number}"), data) for _ in range(2))
        assert one == other
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL  # nothing here has touched it
