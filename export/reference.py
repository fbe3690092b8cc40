"""A checkpoint, and PyTorch's outputs for it, computed once for all targets and precisions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketsam.export.cases import Case, Photo, compute_cases, read_photo
from pocketsam.export.options import Options
from pocketsam.export.target import Progress, Target
from pocketsam.export.targets import open_converter
from pocketsam.export.traced import TracedNetwork
from pocketsam.export.verification.golden import Golden, make_golden
from pocketsam.images import find_images, load_image
from pocketsam.models.checkpoint import Loaded, load_model

VERIFICATION_PHOTOS = ("astronaut", "chelsea", "rocket")
"""Square and landscape, all in scikit-image's own wheel: nothing is downloaded."""


CALIBRATION_PHOTOS = ("coffee", "hubble_deep_field", "immunohistochemistry")
"""Photographs to calibrate on; none of them is used for verification."""


class Reference:
    """A loaded checkpoint with the reference's answers; each is computed when it is first read.

    Args:
        checkpoint: as for ``load_model``.
        image_size: side of the canvas in pixels, a multiple of 64.
        images: files or folders to verify on; empty: scikit-image's photographs.
        calibration: files or folders that ranges are measured on; empty: others of scikit-image's.
        progress: called with a line about each step.

    Raises:
        CheckpointError, ImageError: what could not be read.
    """

    def __init__(
        self,
        checkpoint: str,
        image_size: int,
        *,
        images: Sequence[str] = (),
        calibration: Sequence[str] = (),
        progress: Progress = lambda _: None,
    ) -> None:
        self._photos = find_photos(images)
        self._calibration_photos = find_photos(calibration, CALIBRATION_PHOTOS)
        self._progress = progress
        progress(f"loading {checkpoint}")
        self.loaded: Loaded = load_model(checkpoint, image_size, progress)
        self._networks: dict[tuple[str, Options], dict[str, TracedNetwork]] = {}

    @property
    def photos(self) -> list[tuple[str, Photo]]:
        """Names of the photographs to verify on, and the photographs."""
        return [(name, read_photo(source)) for name, source in self._photos]

    @cached_property
    def cases(self) -> list[Case]:
        """The photographs to verify on, with PyTorch's answers."""
        return compute_cases(self.loaded.model, self._photos, progress=self._say)

    @cached_property
    def calibration(self) -> list[Case]:
        """The photographs to calibrate on, with PyTorch's answers; no intermediate outputs."""
        photos = self._calibration_photos
        return compute_cases(self.loaded.model, photos, detailed=0, progress=self._say)

    @cached_property
    def golden(self) -> Golden:
        """Prompts with PyTorch's answers, for the device's own check."""
        self._progress("choosing golden prompts")
        return make_golden(self.loaded.model)

    def networks(self, target: Target, options: Options) -> dict[str, TracedNetwork]:
        """Returns both networks in a target's form, the same objects for all of its precisions.

        Converters keep their float32 conversion by network object, so tracing happens once.
        """
        key = (target.name, replace(options, precision=""))
        if key not in self._networks:
            converter = open_converter(target)
            self._networks[key] = converter.traced_networks(self.loaded.model, options)
        return self._networks[key]

    def _say(self, name: str) -> None:
        self._progress(f"computing PyTorch's answers on {name}")


def find_photos(
    paths: Sequence[str] = (), bundled: Sequence[str] = VERIFICATION_PHOTOS
) -> list[tuple[str, NDArray[np.uint8] | Path]]:
    """Returns names and files of images, or else the bundled ones as ``[H, W, 3]`` uint8.

    Raises:
        ImageError: a file that cannot be read, or a folder without images.
    """
    if not paths:
        from skimage import data

        return [(name, getattr(data, name)()) for name in bundled]
    files = [file for path in paths for file in find_images(path)]
    for file in files:  # so that one that cannot be read costs no work; a large one is not kept
        load_image(file)
    return [(file.name, file) for file in files]
