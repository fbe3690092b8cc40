"""Seeded damage, thousands of times: does everything end in a result or in an error of ours?

    python tests/fuzz.py --cases 10000
    python tests/fuzz.py --only onnx:123     # one case again, with its traceback

Each kind runs in a process of its own, with a limit of memory and, for each case, of time. A case that
ends in anything but a result or a ``PocketSamError`` is a fault: another exception, a signal, the
timeout.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from pocketsam.errors import PocketSamError

SHARES = {
    "manifest": 0.28,
    "onnx": 0.2,
    "golden": 0.12,
    "embedding": 0.12,
    "image": 0.1,
    "prompt": 0.1,
    "everything": 0.05,
    "checkpoint": 0.03,
}
"""Of the cases. A checkpoint takes as long as ten others."""
MEMORY = {"checkpoint": 6 << 30}
"""Bytes of address space, in which libraries take 1 to 3 GB before anything is read."""
DEFAULT_MEMORY = 3 << 30
SECONDS = 20
"""Of the processor, per case; the slowest sound ones take one. By the clock it may take six times as
long: a busy machine is no fault."""


def kinds(name: str) -> Callable[[Random, Path], None]:
    """Returns the function of a kind; only checkpoints need torch."""
    if name == "checkpoint":
        from fuzz_checkpoints import fuzz_checkpoint

        return fuzz_checkpoint
    from fuzz_kinds import KINDS

    return KINDS[name]


def run_case(name: str, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """Runs one case; returns ``result``, ``error`` or ``fault``, and what was raised."""
    damage = kinds(name)
    try:
        damage(Random(f"{seed}/{name}/{number}"), folder)
    except PocketSamError as error:
        try:
            str(error).encode("utf-8", "backslashreplace")
        except Exception:
            return "fault", "an error whose message cannot be printed"
        return "error", type(error).__name__
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error)[:150]} ({Path(last.filename).name}:{last.lineno})"
        return "fault", said.encode("ascii", "backslashreplace").decode()
    return "result", ""


def work(name: str, start: int, stop: int, seed: int, folder: Path) -> None:
    """Runs cases in this process, which has limits; prints a line of JSON for each."""
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    kinds(name)
    limit = MEMORY.get(name, DEFAULT_MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(start, stop):
        # whose signals end the process, wherever it hangs
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
        print(json.dumps((number, *run_case(name, number, seed, folder))), file=out, flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def run_kind(name: str, cases: int, seed: int, folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yields each case of a kind with its outcome; a process that dies is replaced."""
    done = 0
    while done < cases:
        command = [
            sys.executable,
            __file__,
            "--worker",
            name,
            str(done),
            str(cases),
            str(seed),
            str(folder),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                number, outcome, said = json.loads(line)
                done = number + 1
                yield number, outcome, said
        if done < cases:
            ended = process.returncode
            if ended == 1:
                raise SystemExit(f"the worker of {name} does not start")
            is_slow = ended in (-signal.SIGALRM, -signal.SIGPROF)
            said = "took too long" if is_slow else f"died with {ended}"
            yield done, "fault", said
            done += 1


def run(cases: int, seed: int, say: Callable[[str], None] = print) -> dict[str, Counter[str]]:
    """Runs cases of all kinds; returns the counts of outcomes by kind."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, share in SHARES.items():
            began, counts[name] = time.monotonic(), Counter()
            for number, outcome, said in run_kind(
                name, max(1, round(cases * share)), seed, Path(folder)
            ):
                counts[name][outcome] += 1
                if outcome == "fault":
                    say(f"FAULT {name}:{number} {said}")
            found = ", ".join(f"{counts[name][key]} {key}s" for key in ("result", "error", "fault"))
            say(f"{name:12} {found}; {time.monotonic() - began:.0f} s")
    total = sum(counts.values(), Counter())
    say(
        f"{total.total()} cases: " + ", ".join(f"{total[k]} {k}s" for k in ("result", "error", "fault"))
    )
    return counts


def main() -> None:
    """Runs the command line; exits with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="run one case in this process")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, start, stop, seed, folder = args.worker
        work(name, int(start), int(stop), int(seed), Path(folder))
    elif args.only:
        name, _, number = args.only.partition(":")
        with tempfile.TemporaryDirectory() as temporary:
            kinds(name)(Random(f"{args.seed}/{name}/{number}"), Path(temporary))
    else:
        counts = run(args.cases, args.seed)
        sys.exit(any(count["fault"] for count in counts.values()))


if __name__ == "__main__":
    main()
