"""Files that drop into tools which take SAM: a literal for each tool, built and compared."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pocketsam.export import open_reference
from pocketsam.export.drop_in.tools import check_tool, find_tool
from pocketsam.terminal import extra_needed

if TYPE_CHECKING:
    from pocketsam.export.drop_in.check import Agreement

StrPath = str | os.PathLike[str]
Progress = Callable[[str], None]


def export_for(
    tool: str,
    checkpoint: StrPath,
    output: StrPath,
    *,
    precision: str = "fp32",
    image_size: int | None = None,
    images: Sequence[StrPath] = (),
    calibration: Sequence[StrPath] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> "Agreement":
    """Writes files that another tool takes as they are, as ``pocketsam export --for`` does.

    Args:
        tool: a key of ``drop_in.tools.TOOLS``, such as ``rembg`` or ``anylabeling``.
        checkpoint, images, calibration, progress: as for ``export``.
        image_size: as for ``export``; None: the only canvas that the tool reads, or the checkpoint's.
        output: the directory: encoder, decoder, the tool's configuration, a README.
        precision: ``fp32``, or ``int8`` where the tool takes it.
        force: whether a directory that was written before is replaced.

    Returns:
        How the masks agree with PyTorch's, through the tool's own steps.

    Raises:
        UsageError: an unknown tool, or a precision or a canvas that it does not read.
        ParityError: the masks differ from PyTorch's; nothing is written.
        CheckpointError, ConversionError, BundleError, ImageError: what could not be read or written.
        MissingExtraError: an optional dependency is not installed.
    """
    chosen = find_tool(tool)
    with extra_needed("export"):
        from pocketsam.export.drop_in.write import write_drop_in
    photos, measured = ([os.fspath(path) for path in paths] for paths in (images, calibration))
    say = progress or (lambda _: None)
    reference = open_reference(
        os.fspath(checkpoint),
        image_size or chosen.canvas,
        images=photos,
        calibration=measured,
        progress=say,
    )
    model, architecture = reference.loaded.model, reference.loaded.architecture
    check_tool(chosen, precision, model.image_size, model.traits, architecture)
    return write_drop_in(reference, Path(output), chosen, precision, force=force, progress=say)
