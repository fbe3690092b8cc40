"""The errors of pocketsam. Each is raised with one sentence that names the file, key or value.

::

    PocketSamError                    exit 1
    ├── UsageError          exit 2    options that do not go together, a value out of range
    ├── CheckpointError               a checkpoint that is unreadable, or does not fit the network
    ├── DownloadError                 a download that failed, or arrived damaged
    ├── ImageError                    an image, or an embedding of one, that cannot be read or used
    ├── PromptError                   a point, box, label or mask input that cannot be used
    ├── MaskError                     a mask that cannot be encoded, decoded or drawn
    ├── ProviderError                 an execution provider that is unknown or not present here
    ├── ConversionError               a converter that failed, or wrote a file that does not run
    ├── BundleError                   a directory that is no bundle, or one this version cannot read
    │   └── IntegrityError  exit 5    a bundle whose files are not the ones in its manifest
    ├── ParityError         exit 3    a file that does not compute what the checkpoint computes
    ├── MissingExtraError   exit 4    an optional dependency that is not installed
    └── MissingEnvironmentError  exit 4   a converter's own environment that is not there

0 is fine; 130: interrupted, 143: told to end, see ``pocketsam.__main__``. argparse's own errors (an
unknown option, a malformed value) exit with 2 as well. Of a folder, a file that cannot be used is
skipped, and the command ends with 1 when the others are done.
"""

from typing import Any


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class where it has none (MemoryError)."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class PocketSamError(Exception):
    """Base of every error that pocketsam raises on purpose."""

    exit_code = 1


class UsageError(PocketSamError):
    """Options that do not go together, or a value out of range."""

    exit_code = 2


class CheckpointError(PocketSamError):
    """A checkpoint cannot be read, or its tensors do not fit the network."""


class DownloadError(PocketSamError):
    """A download failed, or what arrived is not what was asked for."""


class ImageError(PocketSamError):
    """An image, or an embedding of one, cannot be read or used, or is another than was asked for."""


class PromptError(PocketSamError, ValueError):
    """A prompt cannot be used: its shape, range, labels or values."""


class MaskError(PocketSamError, ValueError):
    """A mask cannot be encoded, decoded or drawn: its shape, type or values."""


class ProviderError(PocketSamError):
    """An execution provider is unknown, or not present in this onnxruntime."""


class ConversionError(PocketSamError):
    """A converter failed, or wrote a file that does not load and run."""


class BundleError(PocketSamError):
    """A directory is not a bundle, or is one that this version cannot read."""


class IntegrityError(BundleError):
    """A bundle's files are not the ones that its manifest describes."""

    exit_code = 5


class ParityError(PocketSamError):
    """An exported file does not compute what the checkpoint computes.

    Args:
        message: the first tensor that diverges, or the figure that is out of reach.
        report: the ``parity.Report`` with all figures, where one was made.
    """

    exit_code = 3

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class MissingExtraError(PocketSamError):
    """An optional dependency is missing.

    Args:
        package: the import that failed.
        extra: the extra of pocketsam that brings it.
        command: what brings it instead, if no extra does.
    """

    exit_code = 4

    def __init__(self, package: str, extra: str, command: str = "") -> None:
        command = command or f"pip install 'pocketsam[{extra}]'"
        super().__init__(f"{package} is not installed; run: {command}")


class MissingEnvironmentError(PocketSamError):
    """The environment of a converter and its engine is not there; the message says how to make it."""

    exit_code = 4
