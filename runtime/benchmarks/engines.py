"""Measures every engine and precision that runs a bundle on this machine, and chooses one.

The masks of each are compared with those of the default: provider ``cpu`` and the bundle's most precise
files. The choice is the fastest, from the photograph to the masks of a click, of those whose golden
vectors pass and whose masks have a mean IoU of ``MIN_IOU`` with the default's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.constants import MASK_THRESHOLD
from pocketsam.errors import BundleError, ImageError, IntegrityError, PocketSamError, UsageError
from pocketsam.images import Pixels, StrPath, load_image
from pocketsam.runtime.backends.recorded import list_candidates
from pocketsam.runtime.benchmarks.timing import Task, Timing, bundle_tasks, summarise, time_interleaved
from pocketsam.runtime.bundle import Bundle, choose_bundle, choose_bundles
from pocketsam.runtime.image import check_pixels
from pocketsam.runtime.segmenter import Segmenter
from pocketsam.runtime.verification.golden import check_golden, load_golden, raise_if_failed
from pocketsam.runtime.verification.metrics import agreements

MIN_IOU = 0.99
"""Mean IoU with the default's masks that a choice must have."""
CLICKS = 4
"""In a row of the grid of clicks whose masks are compared."""
STAGES = ("encoder", "decoder", "end to end")


@dataclass(frozen=True)
class Candidate:
    """A way to run a bundle.

    Attributes:
        bundle_dir: the bundle.
        target, precision: of its files.
        provider: what runs them, as ``Segmenter`` takes it.
    """

    bundle_dir: StrPath
    target: str
    precision: str
    provider: str

    @property
    def label(self) -> str:
        """The candidate in words, different for each."""
        return f"{self.bundle_dir}: {self.provider} {self.precision}"


class Row(TypedDict):
    """What was measured of a candidate; times are seconds.

    ``stages`` has ``encoder``, ``decoder`` (one click) and ``end to end``; ``ratio`` is the median of
    ``end to end`` divided by the default's. ``mask_iou_mean`` and ``mask_iou``, the least, are of masks
    beside the default's. ``golden`` says what its golden vectors fail at; empty if they pass.
    """

    bundle: str
    target: str
    precision: str
    provider: str
    stages: dict[str, Timing]
    ratio: float
    mask_iou_mean: float
    mask_iou: float
    golden: str


@dataclass(frozen=True, eq=False)
class Opened:
    """A candidate that runs.

    Attributes:
        candidate: it.
        tasks: to time, by name.
        masks: of clicks, see ``click_masks``.
        golden: what its golden vectors fail at; empty if they pass.
    """

    candidate: Candidate
    tasks: Mapping[str, Task]
    masks: NDArray[np.bool_]
    golden: str


@dataclass(frozen=True)
class Measured:
    """What ``measure_engines`` found.

    Attributes:
        rows: of the candidates that ran, the default first.
        failed: why the others did not, by their label.
        choices: the best row of each bundle directory that has one.
    """

    rows: Sequence[Row]
    failed: Mapping[str, str]
    choices: Mapping[StrPath, Row]


def find_candidates(bundle_dir: StrPath) -> list[Candidate]:
    """Returns the ways to run a bundle on this machine, the default first.

    Raises:
        BundleError, IntegrityError: not a bundle, or a damaged one.
    """
    default = choose_bundle(bundle_dir).manifest.precision
    bundles = sorted(choose_bundles(bundle_dir), key=lambda b: b.manifest.precision != default)
    return [
        Candidate(bundle_dir, bundle.manifest.target, bundle.manifest.precision, provider)
        for bundle in bundles
        for provider in list_candidates(bundle.manifest.target)
    ]


def measure_engines(
    bundle_dirs: Sequence[StrPath],
    *,
    runs: int,
    warmup: int,
    threads: int | None = None,
    image: StrPath | None = None,
) -> Measured:
    """Returns times and masks' IoU of every candidate, all timed in the same rounds, and the choices.

    All candidates are in memory at once.

    Args:
        bundle_dirs: bundles of one checkpoint and canvas; the first one's default is the reference.
        runs, warmup: numbers of timed rounds, and of untimed ones before them.
        threads: as for ``Segmenter``.
        image: a file; None: the photograph of the first bundle's golden vectors.

    Raises:
        UsageError: bundles of different checkpoints or canvases.
        BundleError, IntegrityError, ImageError: what cannot be opened.
        PocketSamError: the default does not run.
    """
    first = choose_bundle(bundle_dirs[0])
    for other in map(choose_bundle, bundle_dirs[1:]):
        _check_alike(first, other)
    pixels = _golden_photo(first) if image is None else load_image(image)
    opened: list[Opened] = []
    failed: dict[str, str] = {}
    for candidate in [c for path in dict.fromkeys(bundle_dirs) for c in find_candidates(path)]:
        terminal.say(f"opening {candidate.label}")
        try:
            opened.append(_open(candidate, pixels, threads))
        except PocketSamError as error:
            if not opened:
                raise
            failed[candidate.label] = str(error)
    times = time_interleaved({key: t for o in opened for key, t in o.tasks.items()}, runs, warmup)
    rows = _rows(opened, times)
    return Measured(rows, failed, choose(rows))


def _golden_photo(bundle: Bundle) -> Pixels:
    try:
        return check_pixels(load_golden(bundle)["image"])
    except (LookupError, ImageError) as error:
        raise IntegrityError(f"{bundle.path}: damaged golden vectors: {error}") from None


def _check_alike(first: Bundle, other: Bundle) -> None:
    mine, theirs = first.manifest, other.manifest
    if (mine.image_size, mine.model) != (theirs.image_size, theirs.model):
        raise UsageError(f"{other.path}: another checkpoint or canvas than {first.path}")


def _open(candidate: Candidate, pixels: Pixels, threads: int | None) -> Opened:
    how: dict[str, Any] = {"threads": threads, "precision": candidate.precision}
    segmenter = Segmenter(candidate.bundle_dir, providers=candidate.provider, **how)
    tasks = bundle_tasks(segmenter, pixels, f"{candidate.label} ")
    return Opened(candidate, tasks, click_masks(segmenter), _check(candidate, threads))


def _check(candidate: Candidate, threads: int | None) -> str:
    """Returns what a candidate's golden vectors fail at; empty if they pass."""
    how: dict[str, Any] = {"threads": threads, "precision": candidate.precision}
    try:
        raise_if_failed(check_golden(candidate.bundle_dir, providers=candidate.provider, **how))
    except BundleError:
        raise
    except PocketSamError as error:
        return str(error)
    return ""


def click_masks(segmenter: Segmenter) -> NDArray[np.bool_]:
    """Returns the masks ``[CLICKS², 3, S/4, S/4]`` of a grid of clicks on the image that is set."""
    height, width = segmenter.original_size
    places = (np.arange(CLICKS) + 0.5) / CLICKS
    clicks = np.stack(np.meshgrid(places * width, places * height), axis=-1).reshape(-1, 1, 2)
    _, low_res = segmenter.predict_low_res(clicks, np.ones((CLICKS**2, 1)))
    return low_res > MASK_THRESHOLD


def _rows(opened: Sequence[Opened], times: Mapping[str, list[float]]) -> list[Row]:
    """Returns a row for each candidate; the first one is the default."""
    rows: list[Row] = []
    for entry in opened:
        candidate = entry.candidate
        stages = {name: summarise(times[f"{candidate.label} {name}"]) for name in STAGES}
        ious = agreements(opened[0].masks, entry.masks)
        base = rows[0]["stages"] if rows else stages
        rows.append(
            {
                "bundle": str(candidate.bundle_dir),
                "target": candidate.target,
                "precision": candidate.precision,
                "provider": candidate.provider,
                "stages": stages,
                "ratio": stages["end to end"]["p50"] / base["end to end"]["p50"],
                "mask_iou_mean": float(ious.mean()),
                "mask_iou": float(ious.min()),
                "golden": entry.golden,
            }
        )
    return rows


def choose(rows: Sequence[Row]) -> dict[StrPath, Row]:
    """Returns the fastest row of each bundle, by this module's rule; none where no row keeps it."""
    choices: dict[StrPath, Row] = {}
    for row in sorted(rows, key=lambda row: row["stages"]["end to end"]["p50"]):
        if not row["golden"] and row["mask_iou_mean"] >= MIN_IOU:
            choices.setdefault(row["bundle"], row)
    return choices
