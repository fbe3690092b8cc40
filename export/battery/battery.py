"""Damages every precision of every target, and asks the certificates whether they notice.

``make battery`` runs it. A damage is missed if it changes a mask, a score or the best mask by more than
the precision's grade allows, on photographs that no certificate has seen, and the golden vectors or the
comparison with the checkpoint say nothing.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketsam import terminal
from pocketsam.errors import ParityError, PocketSamError, UsageError
from pocketsam.export.artefact import open_networks
from pocketsam.export.battery.damages import (
    GRAPH_DAMAGES,
    MANIFEST_DAMAGES,
    PREPROCESSING_DAMAGES,
    Damage,
    Subject,
)
from pocketsam.export.battery.effect import effect_of
from pocketsam.export.battery.weight_damages import weight_damages
from pocketsam.export.cases import Case
from pocketsam.export.options import Options
from pocketsam.export.pipeline import write_bundle
from pocketsam.export.reference import Reference
from pocketsam.export.target import Arrays, Precision, Target
from pocketsam.export.targets import TARGETS, open_converter
from pocketsam.export.verification import parity
from pocketsam.export.verification.report import Report
from pocketsam.export.verification.tolerances import GRADES
from pocketsam.files import write_bytes
from pocketsam.models.checkpoint import DEFAULT
from pocketsam.runtime import contract as c
from pocketsam.runtime import image
from pocketsam.runtime.bundle import open_bundle
from pocketsam.runtime.manifest import MANIFEST_NAME
from pocketsam.runtime.verification.golden import check_networks

PROMPTS = 6  # of each photograph that a damage's effect is measured on
SHARES = ("best_kept", "mask_iou_mean")
"""Known only when all prompts have been compared."""


@dataclass(frozen=True)
class Outcome:
    """What became of one damage.

    Attributes:
        target, precision, grade: of the files.
        damage: its name.
        golden, checkpoint: whether the golden vectors, and the comparison with PyTorch, found it.
        mask_iou: of the least mask on other photographs with the healthy files' mask; None: a change
            to the manifest, which leads another device astray.
        score: largest |Δ| of a predicted IoU there.
        best_kept: share of the prompts there whose best mask is the healthy files'.
        matters: whether that is more than the grade allows, beside the healthy files and PyTorch.
    """

    target: str
    precision: str
    grade: str
    damage: str
    golden: bool
    checkpoint: bool
    mask_iou: float | None
    score: float | None
    best_kept: float | None
    matters: bool

    @property
    def is_missed(self) -> bool:
        """Whether it matters and a certificate said nothing."""
        return self.matters and not (self.golden and self.checkpoint)


class Battery:
    """Damages one precision of one target.

    Args:
        reference: PyTorch's answers.
        folder: the healthy bundle.
        target, precision: of it.
    """

    def __init__(
        self, reference: Reference, folder: Path, target: Target, precision: Precision
    ) -> None:
        self._reference, self._target, self._precision = reference, target, precision
        bundle = open_bundle(folder)
        self.healthy = Subject(bundle, *open_networks(bundle))
        self._embeddings: dict[int, Any] = {}
        grade = precision.grade
        self._tolerance = GRADES["close" if grade == "lossy" else grade]
        if (
            not reference.cases
            or self._golden_finds(self.healthy)
            or self._checkpoint_finds(self.healthy)
        ):
            raise ParityError(f"{folder}: fails before any damage; remove it, and it is written anew")
        self._answers = [self._answer(self.healthy, case) for case in reference.calibration]
        self._wanted = [[p.outputs for p in case.prompts[:PROMPTS]] for case in reference.calibration]

    def run_all(self, place: Path) -> Iterator[Outcome]:
        """Yields what becomes of every damage; changed files go into the folder ``place``."""
        files = weight_damages(open_converter(self._target), place)
        yield from self.run((*files, *GRAPH_DAMAGES, *PREPROCESSING_DAMAGES))
        yield from self.run_manifest(list(MANIFEST_DAMAGES))

    def run(self, damages: Sequence[Damage]) -> Iterator[Outcome]:
        """Yields what becomes of each damage that the files can have."""
        for damage in damages:
            subject = damage.apply(self.healthy)
            if subject is not None:
                yield self._judge(damage.name, subject)

    def run_manifest(self, names: Sequence[str]) -> Iterator[Outcome]:
        """Yields what becomes of changes to the manifest, which every way of opening it must refuse."""
        text = (self.healthy.bundle.path / MANIFEST_NAME).read_text(encoding="utf-8")
        for name in names:
            value = json.loads(text)
            MANIFEST_DAMAGES[name](value)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / MANIFEST_NAME).write_text(json.dumps(value), encoding="utf-8")
                try:
                    open_bundle(folder)
                    refused = False
                except PocketSamError:
                    refused = True
            yield self._outcome(f"manifest: {name}", refused, refused, None, True)

    def _judge(self, name: str, subject: Subject) -> Outcome:
        with subject.preprocessing() if subject.preprocessing else contextlib.nullcontext():
            golden = self._golden_finds(subject)
            checkpoint = self._checkpoint_finds(subject)
            answers = [self._answer(subject, case) for case in self._reference.calibration]
        effects = [effect_of(others, answers) for others in (self._answers, self._wanted)]
        figures = [dict(zip(("mask_iou", "score", "best_kept"), e, strict=True)) for e in effects]
        matters = all(self._tolerance.violations(each) for each in figures)
        return self._outcome(name, golden, checkpoint, effects[0], matters)

    def _outcome(
        self,
        name: str,
        golden: bool,
        checkpoint: bool,
        effect: tuple[float, float, float] | None,
        matters: bool,
    ) -> Outcome:
        about = (self._target.name, self._precision.name, self._precision.grade, name)
        least, score, kept = effect or (None, None, None)
        outcome = Outcome(*about, golden, checkpoint, least, score, kept, matters)
        terminal.say(line(outcome))
        return outcome

    def _golden_finds(self, subject: Subject) -> bool:
        try:
            results = check_networks(subject.bundle, subject.encoder, subject.decoder)
        except PocketSamError:
            return True
        return not all(result.ok for result in results)

    def _checkpoint_finds(self, subject: Subject) -> bool:
        """Compares the outputs alone: the intermediate outputs of a whole parity run find more."""
        report = Report(self._precision.name, self._precision.tolerance, "battery")
        for case in self._reference.cases:
            artefact = self._artefact(subject, case)
            for prompt in case.prompts:
                parity.add_case(report, artefact, replace(case, prompts=(prompt,)))
                found = (v for row in report.rows for v in row.violations(report.tolerance))
                if any(violation.quantity not in SHARES for violation in found):
                    return True
        return bool(report.failed)

    def _artefact(self, subject: Subject, case: Case) -> parity.Artefact:
        embedding = {c.IMAGE_EMBEDDINGS: self._embed(subject, case)}  # once for all prompts
        encode = lambda _: embedding  # noqa: E731
        networks = (encode, subject.decoder, encode, subject.decoder)
        about = ("battery", self._precision.name, self._precision.tolerance)
        return parity.Artefact(*networks, frozenset(), *about)

    def _embed(self, subject: Subject, case: Case) -> Any:
        if subject.is_encoder_healthy and id(case) in self._embeddings:
            return self._embeddings[id(case)]
        feeds = self._feeds(subject, case)
        embedding = subject.encoder(feeds)[c.IMAGE_EMBEDDINGS]
        if subject.is_encoder_healthy:
            self._embeddings[id(case)] = embedding
        return embedding

    def _feeds(self, subject: Subject, case: Case) -> Arrays:
        if subject.preprocessing is None:
            return case.feeds
        return image.preprocess_raw(case.photo, case.image_size) | {
            c.PIXEL_VALUES: image.preprocess(case.photo, case.image_size, case.normalisation)
        }

    def _answer(self, subject: Subject, case: Case) -> list[Arrays]:
        embedding = self._embed(subject, case)
        extra = {c.IMAGE_EMBEDDINGS: embedding, c.ORIG_IM_SIZE: np.zeros(2, np.float32)}
        return [subject.decoder(prompt.feeds | extra) for prompt in case.prompts[:PROMPTS]]


def run_precision(
    reference: Reference, target: Target, precision: Precision, folder: Path
) -> list[Outcome]:
    """Writes a bundle unless it is there, damages it, and returns what was found."""
    if not (folder / MANIFEST_NAME).exists():
        write_bundle(reference, folder, target, Options(precision.name), accept=precision.grade)
    with tempfile.TemporaryDirectory() as place:
        return list(Battery(reference, folder, target, precision).run_all(Path(place)))


def line(outcome: Outcome) -> str:
    """Returns a line about one damage."""
    verdict = (
        "MISSED" if outcome.is_missed else "" if outcome.golden and outcome.checkpoint else "harmless"
    )
    effect = ""
    if outcome.mask_iou is not None:
        effect = f"IoU {outcome.mask_iou:6.4f}  |Δ| score {outcome.score:7.4f}"
    return (
        f"{outcome.target:11}{outcome.precision:14}{outcome.damage:48}"
        f"golden {terminal.mark(outcome.golden)}  checkpoint {terminal.mark(outcome.checkpoint)}  "
        f"{effect:34}{verdict}"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns Markdown: a line for each target and precision."""
    lines = [
        "| target | precision | grade | damages | golden | checkpoint | harmless | missed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((o.target, o.precision, o.grade) for o in outcomes):
        group = [o for o in outcomes if (o.target, o.precision, o.grade) == key]
        counts = (
            len(group),
            sum(o.golden for o in group),
            sum(o.checkpoint for o in group),
            sum(not (o.golden and o.checkpoint) and not o.matters for o in group),
            sum(o.is_missed for o in group),
        )
        lines.append(f"| {' | '.join(key)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 1 if an equivalent or close precision's certificate missed one."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.battery.battery", description=__doc__
    )
    parser.add_argument("targets", nargs="+", choices=sorted(TARGETS), metavar="TARGET")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for DIR/TARGET/…")
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.parse_image_size, default=256, metavar="S")
    parser.add_argument("--precision", action="append", help="only these; may be repeated")
    args = parser.parse_args(argv)
    outcomes: list[Outcome] = []
    try:
        reference = Reference(args.checkpoint, args.image_size, progress=terminal.say)
        for target in (TARGETS[name] for name in args.targets):
            for precision in target.precisions:
                if not args.precision or precision.name in args.precision:
                    folder = args.output / target.name / precision.name
                    outcomes += run_precision(reference, target, precision, folder)
        if not outcomes:
            raise UsageError(f"nothing was damaged: no target has the precision {args.precision}")
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    found = json.dumps(list(map(asdict, outcomes)), indent=1).encode()
    write_bytes(args.output / "battery.json", found)
    print(table(outcomes))
    missed = sum(o.is_missed and o.grade != "lossy" for o in outcomes)
    print(f"\n{missed} missed by certificates of equivalent and close precisions")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
