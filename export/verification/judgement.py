"""What becomes of a bundle after parity: whether its grade is accepted, and what to do if it is not."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pocketsam.errors import ParityError, UsageError
from pocketsam.export.bundle import resolve_place, staged_bundle
from pocketsam.export.target import Target
from pocketsam.export.targets import find_precision
from pocketsam.export.verification.report import Report, WorstMask
from pocketsam.export.verification.tolerances import FLOOR
from pocketsam.files import write_file
from pocketsam.runtime.verification.tolerance import GRADE_NAMES, Grade

GAP = 4
"""Pixels between the panels of a picture."""


def check_accepted(target: Target, precision: str, accept: Grade) -> None:
    """Raises UsageError, before any work, for a precision that promises no grade that is accepted.

    Args:
        target, precision: what is asked for.
        accept: the worst grade that may be written.
    """
    if accept not in GRADE_NAMES:
        raise UsageError(f"unknown grade {accept!r}; known are {', '.join(GRADE_NAMES)}")
    grade = find_precision(target, precision).grade
    if _worse(grade, accept):
        raise UsageError(
            f"{target.name} {precision} promises no better than {grade}. "
            f"Write it all the same: --accept {grade}; {_better(target, precision, accept)}"
        )


def judge(report: Report, target: Target, accept: Grade) -> None:
    """Raises ParityError unless what was found may be written.

    Args:
        report: of the files.
        target: what they are for.
        accept: the worst grade that is written. With ``lossy``, files pass that are outside the
            tolerance of a better precision, as long as they are not broken; the report then has the
            tolerance that they keep.

    Raises:
        ParityError: value, limit and worst case, and what to try.
    """
    if report.ok and not _worse(report.grade, accept):
        return
    broken = not report.cases or any(row.violations(FLOOR) for row in report.rows)
    if accept == "lossy" != find_precision(target, report.precision).grade and not broken:
        report.tolerance = FLOOR
        return
    try:
        report.raise_if_failed()
        raise ParityError(f"its masks are {report.grade}, worse than {accept}", report)
    except ParityError as error:
        advice = [_better(target, report.precision, accept), "a larger --image-size"]
        if not broken and accept != "lossy":
            advice.append("--accept lossy, to write it all the same")
        raise ParityError(
            f"{error}. Try {'; or '.join(filter(None, advice))}. --keep-failed keeps the files and a "
            "picture of the worst mask",
            report,
        ) from None


def _worse(grade: Grade, than: Grade) -> bool:
    return GRADE_NAMES.index(grade) > GRADE_NAMES.index(than)


def _better(target: Target, precision: str, accept: Grade) -> str:
    """Returns the options of the target's precisions that are more exact, the nearest one first."""
    names = [p.name for p in target.precisions]
    before = target.precisions[: names.index(precision)]
    better = [p.name for p in reversed(before) if not _worse(p.grade, accept)]
    return f"--precision {' or '.join(better)}, more exact" if better else ""


def failed_place(output: Path) -> Path:
    """Returns where files that fail are kept: ``OUTPUT.failed``."""
    place = resolve_place(output)
    return place.with_name(f"{place.name}.failed")


def keep_failure(work: Path, output: Path, report: Report) -> None:
    """Copies files that failed to ``OUTPUT.failed``, and draws ``OUTPUT.failed.png``.

    Raises:
        BundleError: a directory of something else has that name.
    """
    failed = failed_place(output)
    with staged_bundle(failed, force=True) as place:
        shutil.copytree(work, place, dirs_exist_ok=True)
    if report.worst_mask is not None:
        picture = draw_worst(report.worst_mask)
        write_file(failed.with_name(f"{failed.name}.png"), lambda path: picture.save(path))


def draw_worst(worst: WorstMask) -> Image.Image:
    """Returns a picture of three panels: the image, the reference's mask on it, and the file's mask."""
    gap = np.full((worst.photo.shape[0], GAP, 3), 255, np.uint8)
    panels = [worst.photo, gap, _shade(worst.photo, worst.expected), gap]
    return Image.fromarray(np.concatenate([*panels, _shade(worst.photo, worst.found)], axis=1))


def _shade(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the photograph, grey outside the mask and orange inside."""
    grey = photo.mean(axis=-1, keepdims=True).repeat(3, axis=-1) * 0.6
    orange = 0.4 * photo + 0.6 * np.array([255, 140, 0])
    shaded: np.ndarray = np.where(mask[..., None], orange, grey).astype(np.uint8)
    return shaded
