"""Core ML packages through Apple's own predictor: macOS only."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pocketsam.errors import BundleError, ProviderError, first_line
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.ort import Arrays, Network
from pocketsam.runtime.backends.providers import Providers, list_providers
from pocketsam.terminal import extra_needed


def available() -> bool:
    """Returns whether this system can run Core ML packages."""
    return sys.platform == "darwin"


def open_coreml(path: Path, name: str, providers: Providers = "cpu") -> Network:
    """Returns an encoder or a decoder as a callable: float32 arrays by name in, the same out.

    Args:
        path: the ``.mlpackage``.
        name: used in error messages.
        providers: ``cpu``, or ``coreml`` for the CPU, GPU and Neural Engine as the system chooses.

    Raises:
        BundleError: not on macOS, or the package does not load.
        ProviderError: another provider.
        MissingExtraError: coremltools is not installed.
    """
    wanted = [provider.lower() for provider in list_providers(providers)]
    if wanted not in (["cpu"], ["coreml"], ["coreml", "cpu"]):
        raise ProviderError(
            f"a Core ML bundle runs with provider cpu or coreml, not {', '.join(wanted)}"
        )
    if not available():
        raise BundleError(
            f"{name}: Core ML predicts on Apple's systems only; here, "
            "`pocketsam verify --checkpoint` runs the program in torch"
        )
    with extra_needed("coreml"):
        import coremltools as ct
    units = ct.ComputeUnit.CPU_ONLY if wanted == ["cpu"] else ct.ComputeUnit.ALL
    try:
        model = ct.models.MLModel(str(path), compute_units=units)
    except Exception as error:  # coremltools raises a dozen unrelated classes
        raise BundleError(f"{name}: Core ML cannot load it: {first_line(error)}") from None
    inputs = {entry.name for entry in model.get_spec().description.input}

    def call(feeds: Arrays) -> Arrays:
        used = {key: array for key, array in feeds.items() if key in inputs}
        if c.IMAGE in used:
            used[c.IMAGE] = Image.fromarray(used[c.IMAGE][0].transpose(1, 2, 0).astype(np.uint8))
        try:
            found = model.predict(used)
        except Exception as error:  # as above
            raise BundleError(f"{name}: Core ML failed: {first_line(error)}") from None
        return {key: np.asarray(array, np.float32) for key, array in found.items()}

    return call
