"""The classes that describe a target; each target's package has one instance, ``TARGET``.

Adding a target: a package ``export/to_NAME/`` whose ``__init__`` holds that instance and imports
nothing heavy, and one line of ``targets.TARGETS``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from pocketsam.export.options import Options
from pocketsam.runtime.manifest_files import TensorInfo
from pocketsam.runtime.verification.tolerance import Grade, Tolerance

if TYPE_CHECKING:
    from pocketsam.export.cases import Case
    from pocketsam.export.traced import TracedNetwork
    from pocketsam.models.sam import Sam

Arrays = dict[str, NDArray[Any]]
Call = Callable[[Arrays], Arrays]
"""A network that runs: dict of arrays in, dict of arrays out."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a converter says of a file that it wrote; see ``NetworkFile`` for the attributes."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    intermediates: tuple[str, ...] = ()
    max_points: int | None = None
    signature: str | None = None
    weight_bits: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Converter(Protocol):
    """What the module behind a target offers; a module with these four functions is one."""

    def traced_networks(self, model: "Sam", options: Options) -> "dict[str, TracedNetwork]":
        """Returns ``encoder`` and ``decoder`` in the form that the target wants to trace."""

    def convert(
        self,
        network: "TracedNetwork",
        path: Path,
        options: Options,
        calibration: "Sequence[Case]",
        about: dict[str, str],
        progress: Progress,
    ) -> Converted:
        """Writes one network to ``path``; returns what the manifest says of it.

        Args:
            network: one of ``traced_networks``.
            path: the file or directory to write.
            options: precision, and what else the target lets one choose.
            calibration: photographs with PyTorch's answers; empty unless the precision is calibrated.
            about: metadata for files that carry any.
            progress: called with a line about each step.
        """

    def load(
        self,
        source: Any,
        name: str,
        intermediates: Sequence[str] = (),
        providers: str | Sequence[str] = "cpu",
        threads: int | None = None,
    ) -> Call:
        """Opens what ``convert`` wrote.

        Args:
            source: the file's bytes, or the path of a directory.
            name: the file, in error messages.
            intermediates: tensors inside the file to return besides its outputs.
            providers, threads: as for the runtime's ``Segmenter``.
        """

    def runtime_name(self) -> str:
        """Returns the name and version of what runs the files, for the parity report."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One precision of a target.

    Attributes:
        name: as ``--precision`` takes it.
        tolerance: how far its outputs may be from PyTorch's.
        grade: what its masks are worth.
        drift: how far outputs on another device may be from those of the same files at export; None
            where the tolerance is as narrow.
        bits: of a weight in the largest file that the conversion makes on its way.
        calibrated: whether conversion needs calibration photographs.
        options: names of ``Options`` fields that it reads, besides the target's.
        oldest_system: the oldest system whose runtime has its operations, such as ``iOS16``.
    """

    name: str
    tolerance: Tolerance
    grade: Grade
    drift: Tolerance | None = None
    bits: int = 32
    calibrated: bool = False
    options: tuple[str, ...] = ()
    oldest_system: str | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A format that a bundle can be written in.

    Attributes:
        name: as ``--target`` takes it.
        extra: the extra of pocketsam that brings its packages.
        suffix: of its files.
        packages: names on PyPI of what makes and checks them; the manifest has their versions.
        programs: name to version of programs of other environments that make them, for the manifest;
            the converter refuses another version.
        precisions: the first one is the most exact.
        options: names of ``Options`` fields that it reads.
        max_bytes: of a file's weights; None: any size.
        usage: template of the example that is written beside the files; None: there is the runtime.
        next_step: what to do with a bundle at ``{path}``; ``make export-coreml`` and the like show it.
        open_converter: imports and returns the module that does the work.
        prepare: fetches what ``add_files`` needs, before anything is converted.
        add_files: adds what else the target has to a folder with both networks, the golden vectors and
            the manifest.
        default_precision: what is written unless one is asked for; "": the first one.
        resolve: returns options with what follows from the precision filled in; raises UsageError where
            values do not go together.
    """

    name: str
    extra: str
    suffix: str
    packages: tuple[str, ...]
    programs: Mapping[str, str] = field(default_factory=dict)
    precisions: tuple[Precision, ...]
    options: tuple[str, ...] = ()
    max_bytes: int | None = None
    usage: str | None = None
    next_step: str
    open_converter: Callable[[], Converter]
    resolve: Callable[[Options], Options] = lambda options: options
    prepare: Callable[[], object] = lambda: None
    add_files: Callable[[Path], None] = lambda folder: None
    default_precision: str = ""

    def precision(self, name: str) -> Precision:
        """Returns a precision by name; raises KeyError if the target does not have it."""
        return {precision.name: precision for precision in self.precisions}[name]

    @property
    def usual_precision(self) -> str:
        """Name of the precision that is written unless one is asked for."""
        return self.default_precision or self.precisions[0].name

    def holds(self, precision: Precision, weights: int) -> bool:
        """Returns whether a file of a precision can hold a number of weights."""
        return self.max_bytes is None or weights * precision.bits <= 8 * self.max_bytes
