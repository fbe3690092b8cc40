"""Where an instrument keeps what it converts."""

from pathlib import Path

from pocketsam import terminal
from pocketsam.export.reference import Reference
from pocketsam.models.checkpoint import default_image_size


def open_work(checkpoint: str, image_size: int | None, folder: Path) -> tuple[Reference, Path, str]:
    """Loads a checkpoint, and makes a directory in ``folder`` for what is converted of it.

    Args:
        checkpoint: as for ``load_model``.
        image_size: side of the canvas; None: what the checkpoint was trained at.
        folder: for the files of all checkpoints.

    Returns:
        The checkpoint; the directory, whose name holds the checkpoint's hash, so that nothing
        converted of other weights is taken for these; and a name for results: checkpoint and canvas.
    """
    size = image_size or default_image_size(checkpoint)
    reference = Reference(checkpoint, size, progress=terminal.say)
    name = f"{Path(checkpoint).stem}-{size}"
    work = folder.resolve() / f"{name}-{reference.loaded.sha256[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    return reference, work, name
