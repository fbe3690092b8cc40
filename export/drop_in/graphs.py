"""Small ONNX graphs around a network, so that it takes and gives what a tool has.

Each is written in ONNX's text form and checked by its parser. Shapes: S is the side of the canvas, F
the side of the frame that a tool scales pictures and prompts to; where they differ, a graph scales.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper, parser

from pocketsam import constants
from pocketsam.export.drop_in.join import names_of, rename
from pocketsam.export.to_onnx.opset import OPSET
from pocketsam.runtime import contract as c

HEAD = f'<ir_version: 10, opset_import: ["" : {OPSET}]>'
BOX = 1.5
"""Labels above it are corners of a box."""
ADDING = (
    "first_xy = Slice(xy, zero, one, second)",
    "added_xy = Mul(first_xy, nought)",
    "all_xy = Concat<axis = 1>(xy, added_xy)",
    "first_kind = Slice(kinds, zero, one, second)",
    "no_kind = Mul(first_kind, nought)",
    "added_kind = Sub(no_kind, unit)",
    "all_kinds = Concat<axis = 1>(kinds, added_kind)",
)
"""Adds a point of label -1 to each prompt."""
DROPPING = (
    "is_corner = Greater(all_kinds, box)",
    "corners = Cast<to = 1>(is_corner)",
    "has_box = ReduceMax<keepdims = 1>(corners, second)",
    "is_added = Equal(all_kinds, minus)",
    "added = Cast<to = 1>(is_added)",
    "dropped = Mul(added, has_box)",
    "used_kinds = Sub(all_kinds, dropped)",
)
"""Makes of label -1 in a prompt with a box ``LABEL_PADDING``, which is left out."""
LAYOUTS = {"HWC": "[H, W, 3]", "NCHW": "[1, 3, H, W]"}


def picture_graph(name: str, layout: str, dtype: str, side: int, frame: int) -> onnx.ModelProto:
    """Returns a graph from a picture to ``pixel_values`` ``[1, 3, S, S]``.

    It normalises, then pads with zeros right of and below the picture, as SAM does.

    Args:
        name: of its input, RGB in 0..255, at most F high and wide.
        layout: a key of ``LAYOUTS``.
        dtype: ``float`` or ``uint8``.
        side: S.
        frame: F; the picture is scaled by S / F, with antialiasing as Pillow's: ``exclude_outside``
            makes weights of pixels beyond the edge count for the others.
    """
    to_planes = "planes = Transpose<perm = [2, 0, 1]>(values)\n  batch = Unsqueeze(planes, first)"
    scale = """
  old_size = Shape<start = 2>(batch)
  float_size = Cast<to = 1>(old_size)
  scaled_size = Mul(float_size, ratio)
  plus_half = Add(scaled_size, half)
  floored = Floor(plus_half)
  at_least = Max(floored, one)
  new_size = Cast<to = 7>(at_least)
  count = Shape<start = 0, end = 2>(batch)
  sizes = Concat<axis = 0>(count, new_size)
  scaled = Resize<mode = "linear", antialias = 1, exclude_outside = 1>(batch, , , sizes)"""
    return _parse(
        f"""picture ({dtype}{LAYOUTS[layout]} {name}) => (float[1, 3, {side}, {side}] pixel_values)
<float[1] ratio = {{{side / frame!r}}}, float[1] half = {{0.5}}, float[1] one = {{1.0}},
 int64[1] first = {{0}}, int64[2] canvas = {{{side}, {side}}}, int64[6] nothing = {{0, 0, 0, 0, 0, 0}}>
{{
  values = Cast<to = 1>({name})
  {to_planes if layout == "HWC" else "batch = Identity(values)"}{scale if side != frame else ""}
  centred = Sub({"scaled" if side != frame else "batch"}, mean)
  normalised = Mul(centred, inverse)
  size = Shape<start = 2>(normalised)
  room = Sub(canvas, size)
  padding = Concat<axis = 0>(nothing, room)
  pixel_values = Pad(normalised, padding)
}}""",
        mean=np.array(constants.PIXEL_MEAN, np.float32).reshape(1, 3, 1, 1),
        inverse=(1 / np.array(constants.PIXEL_STD, np.float64)).astype(np.float32).reshape(1, 3, 1, 1),
    )


def prompt_graph(
    shapes: Mapping[str, str], side: int, frame: int, *, mask_side: int | None, adds_point: bool
) -> onnx.ModelProto:
    """Returns a graph from a tool's prompts to the decoder's inputs.

    SAM adds a point of label -1 to a prompt of points, and none to one with a box. Tools add it always,
    or never. Here a prompt with a box gets rid of it, so that a box means what it means to SAM.

    Args:
        shapes: the tool's name and type of ``point_coords`` and ``point_labels``, such as
            ``{"input_labels": "int64[1, B, N]"}``; three axes of labels are of images, prompts, points.
        side: S.
        frame: F; coordinates are scaled by S / F.
        mask_side: side of the tool's ``mask_input``; None: it has none.
        adds_point: whether the point of label -1 is added here.
    """
    (coords, coords_type), (labels, labels_type) = shapes.items()
    has_images = labels_type.count(",") == 2
    inputs = [f"{coords_type} {coords}", f"{labels_type} {labels}"]
    low, used = side // 4, mask_side or side // 4
    lines = []
    if mask_side:
        inputs += [f"float[1, 1, {used}, {used}] mask_input", "float[1] has_mask_input"]
        same = "Identity(mask_input)"
        resized = 'Resize<mode = "linear">(mask_input, , , low_size)'
        lines += [f"mask = {same if used == low else resized}", "has_mask = Identity(has_mask_input)"]
    else:
        lines += ["mask = Identity(no_mask)", "has_mask = Identity(nought)"]
    squeeze = "Squeeze({}, first)" if has_images else "Identity({})"
    lines += [
        f"given_xy = {squeeze.format(coords)}",
        f"given_kinds = {squeeze.format(labels)}",
        "xy = Mul(given_xy, ratio)",
        "kinds = Cast<to = 1>(given_kinds)",
    ]
    lines += ADDING if adds_point else ["all_xy = Identity(xy)", "all_kinds = Identity(kinds)"]
    body = "\n  ".join([*lines, *DROPPING])
    return _parse(
        f"""prompts ({", ".join(inputs)})
=> (float[B, N, 2] all_xy, float[B, N] used_kinds, float[1, 1, {low}, {low}] mask, float[1] has_mask)
<float[1] ratio = {{{side / frame!r}}}, float[1] nought = {{0.0}}, float[1] unit = {{1.0}},
 float[1] minus = {{-1.0}}, float[1] box = {{{BOX}}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
 int64[1] first = {{0}}, int64[1] second = {{1}}, int64[4] low_size = {{1, 1, {low}, {low}}}>
{{
  {body}
}}""",
        **({} if mask_side else {"no_mask": np.zeros((1, 1, low, low), np.float32)}),
    )


def choice_graph(side: int) -> onnx.ModelProto:
    """Returns a graph that chooses one of the four masks as SAM's users do.

    A single click without a mask input: the best-scored of masks 1 to 3. Any other prompt: mask 0.
    """
    low = side // 4
    return _parse(
        f"""choice (
  float[B, 4] scores, float[B, 4, {low}, {low}] masks, float[B, N] kinds, float[1] given)
=> (float[B, 1] chosen_score, float[B, 1, {low}, {low}] chosen_mask)
<float[1] negative = {{-0.5}}, float[1] unit = {{1.0}}, float[1] none = {{0.0}},
 int64[1] second = {{1}}, int64[1] last = {{4}}, int64[1] axis = {{1}}, int64[2] both = {{2, 3}}>
{{
  is_point = Greater(kinds, negative)
  as_float = Cast<to = 1>(is_point)
  points = ReduceSum<keepdims = 1>(as_float, axis)
  is_single = Equal(points, unit)
  is_given = Greater(given, none)
  is_new = Not(is_given)
  is_click = And(is_single, is_new)
  three = Slice(scores, second, last, axis)
  best = ArgMax<axis = 1, keepdims = 1>(three)
  counted = Add(best, second)
  as_number = Cast<to = 7>(is_click)
  chosen = Mul(counted, as_number)
  chosen_score = GatherElements<axis = 1>(scores, chosen)
  places = Unsqueeze(chosen, both)
  shape = Shape(masks)
  count = Slice(shape, zero, second)
  rest = Slice(shape, two, last)
  wanted = Concat<axis = 0>(count, second, rest)
  spread = Expand(places, wanted)
  chosen_mask = GatherElements<axis = 1>(masks, spread)
}}""",
        zero=np.array([0]),
        two=np.array([2]),
    )


def crop_graph() -> onnx.ModelProto:
    """Returns a graph from a mask's logits to the mask's box and its pixels in it, 255 inside.

    The box ends on its last column and row. A mask without a pixel gives the image's first pixel, 0.
    """
    return _parse(
        """crop (float[1, 1, H, W] logits)
=> (uint8[1, 1, h, w] pixels, int64[1] xtl, int64[1] ytl, int64[1] xbr, int64[1] ybr)
<float threshold = {0.0}, int64[3] but_columns = {0, 1, 2}, int64[3] but_rows = {0, 1, 3},
 int64[1] zero = {0}, int64[1] one = {1}, int64[1] row = {2}, int64[1] column = {3},
 int64[1] flat = {-1}, int64[2] axes = {2, 3}, float white = {255.0}>
{
  inside = Greater(logits, threshold)
  covered = Cast<to = 1>(inside)
  in_columns = ReduceMax<keepdims = 0>(covered, but_columns)
  in_rows = ReduceMax<keepdims = 0>(covered, but_rows)
  xs = NonZero(in_columns)
  ys = NonZero(in_rows)
  any = ReduceMax<keepdims = 0>(in_rows)
  width = Size(in_columns)
  height = Size(in_rows)
  xtl0 = ArgMax<axis = 0, keepdims = 1>(in_columns)
  ytl0 = ArgMax<axis = 0, keepdims = 1>(in_rows)
  last_x = ArgMax<axis = 0, keepdims = 1, select_last_index = 1>(in_columns)
  last_y = ArgMax<axis = 0, keepdims = 1, select_last_index = 1>(in_rows)
  found = Cast<to = 7>(any)
  xtl = Mul(xtl0, found)
  ytl = Mul(ytl0, found)
  xbr = Mul(last_x, found)
  ybr = Mul(last_y, found)
  starts = Concat<axis = 0>(ytl, xtl)
  after_x = Add(xbr, one)
  after_y = Add(ybr, one)
  ends = Concat<axis = 0>(after_y, after_x)
  part = Slice(covered, starts, ends, axes)
  scaled = Mul(part, white)
  pixels = Cast<to = 2>(scaled)
}"""
    )


def _parse(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """Returns the graph of a text, with constants added that are long to write.

    Inner tensors get the graph's name in front, so that no other graph has the same.
    """
    model = parser.parse_model(f"{HEAD}\n{text}")
    graph = model.graph
    graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in constants.items()
    )
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    inner = names_of(model) - {value.name for value in (*graph.input, *graph.output)}
    rename(model, {name: f"{graph.name}.{name}" for name in inner})
    onnx.checker.check_model(model, full_check=True)
    return model


DECODER_INPUTS = (c.POINT_COORDS, c.POINT_LABELS, c.MASK_INPUT, c.HAS_MASK_INPUT)
"""The network's names of what ``prompt_graph`` makes, in the order of its outputs."""
