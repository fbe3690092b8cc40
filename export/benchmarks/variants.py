"""A network in an engine, and the process that runs it."""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pocketsam.child import own_environment
from pocketsam.errors import ConversionError
from pocketsam.export.target import Arrays

WORKER = Path(__file__).with_name("engine_worker.py")

Spec = dict[str, Any]
"""What ``engine_worker`` reads."""


@dataclass
class Variant:
    """A network in an engine.

    Attributes:
        name: what tables call it.
        group: "encoder", "decoder", "passes", or one of those whose rows follow from the first.
        spec: what the worker runs, see ``engine_worker``.
        feeds: what it is timed with.
        python: the interpreter that has the engine.
        ours: whether the file is one of ours.
        figures: what was measured.
    """

    name: str
    group: str
    spec: Spec
    feeds: Arrays
    python: str = sys.executable
    ours: bool = True
    figures: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A variant's process; raises ConversionError where its engine fails.

    Args:
        variant: what it runs.
        folder: for its files, and its log.
    """

    def __init__(self, variant: Variant, folder: Path) -> None:
        self.variant, self.folder = variant, folder
        np.savez(folder / "feeds.npz", **variant.feeds)  # type: ignore[arg-type]
        spec = variant.spec | {"feeds": str(folder / "feeds.npz")}
        (folder / "spec.json").write_text(json.dumps(spec))
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [variant.python, str(WORKER), str(folder / "spec.json")], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=own_environment(),
        )  # fmt: skip
        try:
            self.start = self._read()
        except ConversionError:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = [text for text in self.log.read().splitlines() if text.strip()]
            message = lines[-1] if lines else "ended without a word"
            traced = [i for i, text in enumerate(lines) if text.startswith("Traceback")]
            for text in lines[traced[-1] + 1 :] if traced else []:
                if not text.startswith(" "):  # the exception; its message may go on below
                    message = text
                    break
            raise ConversionError(message.strip()[:200])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _run_prompts(self, words: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reason is what its log ends with
            self.process.stdin.write(words + "\n")
        return self._read()

    def seconds(self) -> float:
        """Of one run on the variant's own inputs."""
        return float(self._run_prompts("time")["seconds"])

    def answer(self, feeds: Arrays) -> Arrays:
        """What the network gives for other inputs."""
        source, result = self.folder / "in.npz", self.folder / "out.npz"
        np.savez(source, **feeds)  # type: ignore[arg-type]
        self._run_prompts(f"answer {source} {result}")
        with np.load(result) as file:
            return {name: file[name] for name in file.files}

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()
