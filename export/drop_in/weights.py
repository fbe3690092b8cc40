"""Weights in the official layout, for tools that run MobileSAM in PyTorch."""

from pathlib import Path

from pocketsam.export.drop_in.check import Masks, in_pytorch
from pocketsam.export.drop_in.tool import Weights
from pocketsam.export.reference import Reference
from pocketsam.export.target import Progress
from pocketsam.models.checkpoint import load_model
from pocketsam.models.training.run import save_tensors


def write(
    reference: Reference, work: Path, tool: Weights, progress: Progress
) -> tuple[list[str], Masks]:
    """Writes a state dict as ``torch.save`` does, float32 by MobileSAM's names; it holds no canvas.

    Returns:
        The file's path in ``work``, and PyTorch's masks with the weights that are read from it.

    Raises:
        OSError: the file cannot be written.
    """
    model = reference.loaded.model
    progress(f"writing {tool.file}")
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_tensors(work / tool.file, state)
    written = load_model(work / tool.file, model.image_size).model
    return [tool.file], in_pytorch(tool, written)
