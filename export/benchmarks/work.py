"""Where an instrument keeps what it converts."""

from pathlib import Path

from pocketsam import terminal
from pocketsam.export.reference import Reference
from pocketsam.models.checkpoint import default_image_size


def open_work(checkpoint: str, image_size: int | None, folder: Path) -> tuple[Reference, Path]:
    """Loads a checkpoint and makes a directory in ``folder`` that is named after it and its canvas.

    Args:
        checkpoint: as for ``load_model``.
        image_size: side of the canvas; None: what the checkpoint was trained at.
        folder: for the files of all checkpoints.
    """
    size = image_size or default_image_size(checkpoint)
    reference = Reference(checkpoint, size, progress=terminal.say)
    work = folder.resolve() / f"{Path(checkpoint).stem}-{size}"
    work.mkdir(parents=True, exist_ok=True)
    return reference, work
