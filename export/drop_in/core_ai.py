"""Both networks as one ``.aimodel``, with the names that Apple's CoreAIImageSegmenter looks for."""

from pathlib import Path

from torch import Tensor

from pocketsam.export.drop_in.check import Masks
from pocketsam.export.drop_in.one_file import POINTS, SquareNetwork, in_one_file
from pocketsam.export.drop_in.tool import OneFile
from pocketsam.export.options import Options
from pocketsam.export.reference import Reference
from pocketsam.export.target import Progress
from pocketsam.export.to_coreai import convert
from pocketsam.export.to_coreai.networks import prepared


class SegmenterNetwork(SquareNetwork):
    """Masks are called ``pred_masks``, and labels have the shape ``[1, 1, 6]``."""

    inputs = ("batched_images", "batched_points", "batched_point_labels")
    outputs = ("pred_masks", "iou_scores")
    labels_shape = (1, 1, POINTS)

    def _decode(self, embeddings: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As the base does, less the path of the mask input: it is constant, and Apple's converter
        crashes on it."""
        prompts = self.model.prompt_encoder
        no_mask = prompts.no_mask_embed.get_parameter("weight").view(1, -1, 1, 1)
        sparse = prompts.embed_points(points, labels)
        found: tuple[Tensor, Tensor] = self.model.mask_decoder(
            embeddings, prompts.dense_pe(), sparse, no_mask, self.padding_mask(labels)
        )
        return found


def write(
    reference: Reference, work: Path, tool: OneFile, progress: Progress
) -> tuple[list[str], Masks]:
    """Writes both networks as one file; returns its path in ``work`` and the masks that Apple's
    executor makes of it.

    Raises:
        ConversionError: the converter failed.
        MissingEnvironmentError: Core AI is not there.
    """
    loaded = reference.loaded
    network = SegmenterNetwork(prepared(loaded.model), tool.frame or loaded.model.image_size)
    progress(f"converting {tool.file}")
    about = {"checkpoint": loaded.name, "checkpoint_sha256": loaded.sha256}
    convert.write_file(network, work / tool.file, Options(), about)
    return [tool.file], in_one_file(network, convert.load(work / tool.file, tool.file))
