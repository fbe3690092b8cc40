"""Compares what a tool gets from its files with PyTorch, through the tool's own steps.

The picture is scaled to the tool's frame, as the tool does it before either side sees it; the points
are scaled to the frame; the answer becomes a mask of the photograph as the tool makes one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pocketsam import constants
from pocketsam.export.drop_in.tool import Tool, TwoFiles
from pocketsam.export.target import Arrays, Call
from pocketsam.models.images import normalise
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime.upscale import Upscaler
from pocketsam.runtime.verification.metrics import mask_ious

Photo = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = NDArray[np.float32]

PROMPTS: dict[str, tuple[tuple[float, float, int], ...]] = {
    "click": ((0.5, 0.5, 1),),
    "two clicks": ((0.45, 0.4, 1), (0.85, 0.9, 0)),
    "box": ((0.2, 0.15, 2), (0.75, 0.85, 3)),
    "box and click": ((0.2, 0.15, 2), (0.75, 0.85, 3), (0.5, 0.5, 1)),
}
"""(x, y, label) of points in fractions of the picture's width and height."""
ADDED = np.array([[0, 0, constants.LABEL_NOT_A_POINT]], np.float32)
"""(x, y, label) of the point that SAM adds."""
THUMBNAIL = (47, 33)
"""Width and height of the smallest picture."""


@dataclass(frozen=True)
class Agreement:
    """How a tool's masks agree with PyTorch's.

    Attributes:
        ious: picture and prompt to IoU.
    """

    ious: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean IoU."""
        return float(np.mean(list(self.ious.values())))

    @property
    def worst(self) -> tuple[str, float]:
        """The case that agrees least, and its IoU."""
        name = min(self.ious, key=lambda case: self.ious[case])
        return name, self.ious[name]


def shapes_of(photos: Sequence[tuple[str, Photo]]) -> Iterator[tuple[str, Photo]]:
    """Yields the photographs, and the first one upright, as a panorama of 4:1, and as a thumbnail."""
    yield from photos
    name, first = photos[0]
    yield (
        f"{name}, upright",
        np.ascontiguousarray(first.transpose(1, 0, 2)[:, : first.shape[0] * 2 // 3]),
    )
    yield f"{name}, panorama", first[: first.shape[1] // 4]
    yield f"{name}, thumbnail", np.asarray(Image.fromarray(first).resize(THUMBNAIL))


@dataclass(frozen=True)
class Masks:
    """What answers prompts: PyTorch, or the files of a tool.

    Attributes:
        encode: of a picture ``[h, w, 3]`` uint8 in the tool's frame, what ``answer`` takes.
        answer: of that, points ``[N, 3]`` (x, y, label) in the frame and the photograph's height and
            width, the mask ``[H, W]``.
    """

    encode: Callable[[Photo], Any]
    answer: Callable[[Any, Points, tuple[int, int]], Mask]


def in_pytorch(tool: Tool, model: Sam) -> Masks:
    """Returns PyTorch's masks, chosen as the tool chooses."""
    frame = tool.frame or model.image_size
    return Masks(
        lambda picture: _reference_embedding(model, picture, frame),
        lambda embedding, points, size: _reference_mask(model, embedding, points, size, tool),
    )


def in_two_files(tool: TwoFiles, encoder: Call, decoder: Call, side: int) -> Masks:
    """Returns the masks that a tool makes of encoder and decoder, of a canvas of ``side``."""
    return Masks(
        lambda picture: encoder({tool.encoder.input: _picture_input(tool, picture, side)}),
        lambda encoded, points, size: _answer(tool, decoder, encoded, points, size, side),
    )


def compare(
    tool: Tool, frame: int, wanted: Masks, found: Masks, photos: Sequence[tuple[str, Photo]]
) -> Agreement:
    """Returns how masks agree on photographs, as the tool shows them to the networks.

    Args:
        tool: the tool.
        frame: side of the square that it scales pictures to.
        wanted: PyTorch's.
        found: the files'.
        photos: names and pictures ``[H, W, 3]`` uint8.
    """
    ious = {}
    for name, photo in shapes_of(photos):
        picture = to_frame(photo, frame, squash=tool.squashes)
        size = picture.shape[:2] if tool.squashes else photo.shape[:2]
        encoded = wanted.encode(picture), found.encode(picture)
        for prompt, points in PROMPTS.items():
            placed = np.array([(x * size[1], y * size[0], kind) for x, y, kind in points], np.float32)
            placed[:, :2] *= frame / max(size)
            masks = [
                part.answer(embedding, placed, size)
                for part, embedding in zip((wanted, found), encoded, strict=True)
            ]
            ious[f"{name}, {prompt}"] = float(mask_ious(*masks))
    return Agreement(ious)


def to_frame(photo: Photo, frame: int, *, squash: bool = False) -> Photo:
    """Returns a picture whose longest side is the frame's, as SAM scales one; or both, squashed."""
    height, width = constants.resized_shape(photo.shape[0], photo.shape[1], frame)
    if squash:
        height = width = frame
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))


def _picture_input(tool: TwoFiles, picture: Photo, side: int) -> NDArray[Any]:
    """Returns a picture as the tool feeds its encoder."""
    form = tool.encoder
    if form.layout is None:
        return _canvas(torch.from_numpy(picture.copy()), side).numpy()
    array = picture.transpose(2, 0, 1)[None] if form.layout == "NCHW" else picture
    return np.ascontiguousarray(array, np.float32 if form.dtype == "float" else np.uint8)


def _canvas(picture: torch.Tensor, side: int, frame: int | None = None) -> torch.Tensor:
    """Returns ``pixel_values`` ``[1, 3, S, S]`` of a picture ``[h, w, 3]`` in a frame."""
    values = picture.permute(2, 0, 1)[None].float()
    if frame is not None and frame != side:
        height, width = (max(1, int(n * side / frame + 0.5)) for n in values.shape[2:])
        values = F.interpolate(
            values, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
    values = normalise(values)
    return F.pad(values, (0, side - values.shape[3], 0, side - values.shape[2]))


@torch.inference_mode()
def _reference_embedding(model: Sam, picture: Photo, frame: int) -> torch.Tensor:
    """Returns PyTorch's embedding of a picture in a frame."""
    embedding: torch.Tensor = model.encode(
        _canvas(torch.from_numpy(picture.copy()), model.image_size, frame)
    )
    return embedding


@torch.inference_mode()
def _reference_mask(
    model: Sam,
    embedding: torch.Tensor,
    points: Points,
    size: tuple[int, int],
    tool: Tool,
) -> Mask:
    """Returns PyTorch's mask ``[H, W]``: with SAM's added point where there is no box; of a single
    click, or where the tool gets three masks, the best-scored of masks 1 to 3, otherwise mask 0."""
    side, has_box = model.image_size, bool((points[:, 2] > 1).any())
    frame = tool.frame or side
    added = ADDED[: 0 if has_box else 1]
    given = torch.from_numpy(np.concatenate([points, added]))[None]
    no_mask = torch.zeros(1, 1, side // 4, side // 4)
    low_res, scores = model.decode(
        embedding, given[..., :2] * (side / frame), given[..., 2], no_mask, torch.zeros(1)
    )
    several = tool.takes_best or (len(points) == 1 and not has_box)
    chosen = 1 + int(scores[0, 1:].argmax()) if several else 0
    return Upscaler(side, size).mask(low_res[0, chosen].numpy())


def _answer(
    tool: TwoFiles,
    decoder: Call,
    encoded: Arrays,
    points: Points,
    size: tuple[int, int],
    side: int,
) -> Mask:
    """Returns the mask ``[H, W]`` that a tool makes of what its decoder returns."""
    form = tool.decoder
    if not form.adds_point:  # then the tool does, always
        points = np.concatenate([points, ADDED])
    (coords, coords_type), (labels, labels_type) = form.coords, form.labels
    xy, kinds = points[None, :, :2], points[None, :, 2]
    if coords_type.count(",") == 3:
        xy, kinds = xy[None], kinds[None]
    dtype = np.int64 if labels_type.startswith("int64") else np.float32
    feeds: Arrays = {**encoded, coords: xy, labels: kinds.astype(dtype)}
    if form.mask_side:
        shape = (1, 1, form.mask_side, form.mask_side)
        feeds |= {c.MASK_INPUT: np.zeros(shape, np.float32), c.HAS_MASK_INPUT: np.zeros(1, np.float32)}
        feeds[c.ORIG_IM_SIZE] = np.array(size, np.float32)
    found = decoder(feeds)
    if form.answers == "official":
        official: Mask = found[c.MASKS][0, 0] > constants.MASK_THRESHOLD
        return official
    if form.answers == "cropped":
        left, top, right, bottom = (int(found[name][0]) for name in ("xtl", "ytl", "xbr", "ybr"))
        mask = np.zeros(size, np.bool_)
        mask[top : bottom + 1, left : right + 1] = found[c.MASKS][0, 0] > 0
        return mask
    if form.answers == "low":
        return Upscaler(side, size).mask(found[c.LOW_RES_MASKS][0, 0])
    best = int(found["iou_scores"][0, 0].argmax())
    return Upscaler(side, size).mask(found["pred_masks"][0, 0, best])
