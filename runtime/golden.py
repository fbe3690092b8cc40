"""Golden vectors: a small image, prompts, and what PyTorch answered, shipped inside each bundle.

With them, a device checks itself without torch and without the checkpoint.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketsam.errors import IntegrityError, ParityError
from pocketsam.runtime.backends.networks import open_for_device
from pocketsam.runtime.backends.ort import Providers
from pocketsam.runtime.image import StrPath
from pocketsam.runtime.segmenter import Segmenter

STRIDE = 4
"""Every fourth row and column of the low-resolution masks is kept: small enough to ship."""
POINT_PROMPT, BOX_PROMPT = "point", "box"


@dataclass(frozen=True)
class GoldenResult:
    """Difference of this machine's answer to a golden prompt from PyTorch's.

    Attributes:
        prompt: the prompt's name.
        error: largest |Δ| of the logits, in standard deviations of the logits.
        score_error: largest |Δ| of the scores.
        ok: whether both are within the manifest's tolerance.
    """

    prompt: str
    error: float
    score_error: float
    ok: bool


def check_golden(
    bundle_dir: StrPath,
    *,
    providers: Providers = "cpu",
    threads: int | None = None,
    precision: str | None = None,
) -> list[GoldenResult]:
    """Returns a result for each golden prompt of a bundle, computed on this machine.

    Args:
        bundle_dir: the bundle.
        providers, threads, precision: as for ``Segmenter``.

    Raises:
        IntegrityError: the golden file is damaged.
        BundleError, ProviderError: as for ``Segmenter``.
    """
    bundle = open_for_device(bundle_dir, providers, precision)
    precision = bundle.manifest.precision
    data = bundle.read("golden")
    segmenter = Segmenter(bundle.path, providers=providers, threads=threads, precision=precision)
    results = []
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as golden:
            segmenter.set_image(golden["image"])
            for name in (POINT_PROMPT, BOX_PROMPT):
                points = {
                    "point_coords": golden["point_coords"],
                    "point_labels": golden["point_labels"],
                }
                prompt = points if name == POINT_PROMPT else {"boxes": golden["boxes"]}
                scores, low = segmenter.predict_low_res(**prompt)
                expected = golden[f"{name}_low_res_masks"]
                error = np.abs(low[..., ::STRIDE, ::STRIDE] - expected).max() / expected.std()
                score_error = np.abs(scores - golden[f"{name}_scores"]).max()
                ok = bool(max(error, score_error) <= bundle.manifest.golden.tolerance)  # False for NaN
                results.append(GoldenResult(name, float(error), float(score_error), ok))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
        raise IntegrityError(f"{bundle.path}: damaged golden vectors: {error}") from None
    return results


def raise_if_failed(results: Sequence[GoldenResult]) -> None:
    """Raises ParityError, with the names of the golden prompts outside the tolerance."""
    failed = [result.prompt for result in results if not result.ok]
    if failed:
        raise ParityError(f"golden vectors differ on this machine: {', '.join(failed)}")
