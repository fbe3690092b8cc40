"""Regions of a photograph, from coarse to fine, found by the edges that people draw.

HED's edges (Xie and Tu 2015, arXiv:1504.06375) are flooded into small basins, and neighbours are merged
in the order of the mean edge between them, as in Arbelaez et al. 2011. It gives photographs that nobody
labelled masks to learn from: ``python -m pocketsam.models.training.regions IMAGES OUT`` writes them for
``train_default``. A training tool, in need of the extra ``[train]``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketsam import terminal
from pocketsam.models.hed_encoder import Vgg16, copy_convolution, load_hed, normalise, read_hed
from pocketsam.models.images import check_images, list_images, load_rgb
from pocketsam.models.training.scenes import Photo

LEVELS = (0.3, 0.45, 0.6, 0.7, 0.8)
"""Mean edge strengths, 0..1, below which neighbours are one region."""


class Edges(nn.Module):
    """HED: ``[B, 3, H, W]``, from ``normalise``, to edges in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Vgg16()
        widths = [block[-1].out_channels for block in self.vgg.blocks]  # type: ignore[index]
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        self.fuse = nn.Conv2d(len(widths), 1, 1)
        load_hed(self.vgg)
        with read_hed() as file, torch.no_grad():
            for number, side in enumerate(self.sides, start=1):
                copy_convolution(side, file[f"dsn{number}"])
            copy_convolution(self.fuse, file["fuse"])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, H, W]``."""
        maps = self.vgg.maps(pixel_values)
        size = pixel_values.shape[-2:]
        sides = [
            F.interpolate(side(x), size, mode="bilinear", align_corners=False)
            for side, x in zip(self.sides, maps, strict=True)
        ]
        return self.fuse(torch.cat(sides, 1)).sigmoid().squeeze(1)


@torch.inference_mode()
def find_regions(edges: Edges, image: NDArray[np.uint8]) -> Photo:
    """The photograph with its regions."""
    from scipy import ndimage
    from skimage import segmentation

    flood: Any = segmentation.watershed

    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
    strength = edges(normalise(pixels[None]))[0].numpy()
    smooth = ndimage.gaussian_filter(strength, 2)
    lowest = smooth == ndimage.minimum_filter(smooth, 9)
    basins = flood(smooth, ndimage.label(lowest)[0]).astype(np.int32) - 1
    return Photo(image, np.stack(list(_merge(basins, strength))))


def _merge(basins: NDArray[np.int32], strength: NDArray[np.float32]) -> Iterator[NDArray[np.uint16]]:
    """Yields the labels at each of ``LEVELS``; the neighbours with the weakest edge merge first."""
    from skimage import graph as skimage_graph

    tools: Any = skimage_graph
    graph = tools.rag_boundary(basins, strength)
    for level in LEVELS:
        labels = tools.merge_hierarchical(
            basins,
            graph,
            level,
            rag_copy=True,
            in_place_merge=True,
            merge_func=lambda _graph, _source, _into: None,
            weight_func=_mean_edge,
        )
        yield labels.astype(np.uint16)


def _mean_edge(graph: Any, source: int, into: int, neighbour: int) -> dict[str, float]:
    """The edge of a merged region to a neighbour: the mean over both former borders, by length."""
    nothing = {"weight": 0.0, "count": 0}
    sides = [graph[node].get(neighbour, nothing) for node in (source, into)]
    count = sum(side["count"] for side in sides)
    return {"count": count, "weight": sum(s["count"] * s["weight"] for s in sides) / count}


def main() -> None:
    """Command line: a folder of images to a folder of ``photo_NAME.npz``."""
    parser = argparse.ArgumentParser(description="Find the regions of photographs to train on.")
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    edges = Edges().eval()
    good, skipped = check_images(list_images(args.images))
    for line in skipped:
        terminal.say(f"skipped: {line}")
    for path in good:
        photo = find_regions(edges, np.asarray(load_rgb(path)))
        np.savez_compressed(
            args.output / f"photo_{path.stem}.npz", image=photo.image, regions=photo.regions
        )


if __name__ == "__main__":
    main()
