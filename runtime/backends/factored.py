"""The decoder's image cells as products of small matrices, for many prompts on one image.

When the image attends to a prompt's T tokens, each cell gains a weighted sum of 8·T vectors, one for
each head and token: ``W[r, n]`` says how much of vector ``U[r]`` is added to cell n. A LayerNorm then
multiplies a cell by one number, and each channel by one. So after each block the cells are

    x[n] = scale[n] · image[n] + sum over r of W[r, n] · U[r] + bias

where ``image`` is the same for all prompts, and products with it are taken once for an image. What is
left for each prompt is 8·T wide after the first block and 16·T after the second, instead of 256. The
results are the decoder's to float32's rounding, unless the parts of a cell cancel to a thousandth;
``SplitDecoder.check`` compares them.

The tokens' own operations stay as they are in the file.
"""

from dataclasses import dataclass, replace
from typing import Any

from pocketsam.runtime.backends.graph_editor import FLOAT16, GraphEditor, UnknownGraphError
from pocketsam.runtime.backends.subgraph import model_class

OPSET = 18
"""The first in which all reductions take their axes as an input."""
LAYERS = 2
EPSILON = 1e-5
"""Of an ONNX LayerNormalization that does not say another."""
TRANSFORMER = "mask_decoder.transformer."
FACTORS = ("factored.scale", "factored.weights", "factored.vectors")
"""Names of ``scale [B, 1, n]``, ``W [B, R, n]`` and ``U [B, R, C]`` after the last block."""


def factor(model: bytes) -> bytes | None:
    """Returns a decoder with its cells as factors, which has tensors named ``FACTORS``.

    Args:
        model: the bytes of a decoder's ONNX file.

    Returns:
        The new file, with the inputs and outputs of the old one; None if the graph is not as ``export``
        writes it, or if a part of it computes in float16.
    """
    whole = model_class().FromString(model)
    is_new = any(not entry.domain and entry.version >= OPSET for entry in whole.opset_import)
    if not is_new or any(tensor.data_type == FLOAT16 for tensor in whole.graph.initializer):
        return None
    try:
        _Rewriter(whole.graph).rewrite()
    except UnknownGraphError:
        return None
    data: bytes = whole.SerializeToString()
    return data


@dataclass(frozen=True)
class _Cells:
    """Names of the tensors that make up the image's cells; n cells, R vectors, M is 1 or B.

    Attributes:
        image: ``[M, C, n]``, the same for all prompts.
        scale: ``[B, 1, n]``; "" before the first block: there is nothing but the image.
        weights: W, ``[B, R, n]``.
        vectors: U, ``[B, R, C]``.
        bias: ``[C]``.
        values: ``[B, heads, T, d]``, the tokens' values in the last block.
        outputs: ``[heads, d, C]``; the vectors are values times outputs.
    """

    image: str
    scale: str = ""
    weights: str = ""
    vectors: str = ""
    bias: str = ""
    values: str = ""
    outputs: str = ""


class _Rewriter(GraphEditor):
    """Replaces what computes the cells in a decoder's graph."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        weight = self.find(f"{TRANSFORMER}final_attn_token_to_image.k_weight")
        self.heads, _, self.channels = self.shape(weight)
        self.pe = ""  # [1, C, n], the cells' position encoding
        self.count = 0  # n

    def rewrite(self) -> None:
        """Replaces the attention to cells, their norms and the first step of the masks' upscaling."""
        cells = _Cells(self._find_image())
        for number in range(LAYERS):
            layer = f"{TRANSFORMER}layers.{number}."
            self._attend_to_image(f"{layer}cross_attn_token_to_image.", cells)
            cells = self._attend_to_tokens(layer, cells)
        for tensor, name in zip((cells.scale, cells.weights, cells.vectors), FACTORS, strict=True):
            self.rename(tensor, name)
        scale, weights, vectors = FACTORS
        cells = replace(cells, scale=scale, weights=weights, vectors=vectors)
        self._attend_to_image(f"{TRANSFORMER}final_attn_token_to_image.", cells)
        self._upscale(f"{TRANSFORMER}layers.{LAYERS - 1}.1", cells)
        self.sort()

    def _find_image(self) -> str:
        """Returns the cells ``[M, C, n]`` before the first block; finds their number and ``pe``."""
        weight = self.find(f"{TRANSFORMER}layers.0.cross_attn_token_to_image.v_weight")
        means = self.back(self.users(weight, "MatMul", 1)[0].input[0], "Reshape", "MatMul")
        products = self.back(means.input[0], "Softmax", "MatMul")
        keys = self.back(products.input[1], "Transpose", "Add")
        if keys.input[0] != means.input[1]:
            raise UnknownGraphError("keys")
        self.count = self.shape(keys.input[1])[1]
        self.pe = self.turned(keys.input[1])
        return self.turned(keys.input[0])

    def _attend_to_image(self, attention: str, cells: _Cells) -> None:
        """Replaces attention from tokens to cells: ``[B, heads, t, d]`` from queries of that shape."""
        weight = self.find(f"{attention}k_weight")  # [heads, d, C]
        values = self.find(f"{attention}v_weight")  # [heads, C, d]
        keys = self._keys(weight, cells)
        of_image = self.op("MatMul", self.with_axis(self.turned(cells.image)), values)  # [M, h, n, d]
        for last in self.users(values, "MatMul", 1):
            means = self.back(last.input[0], "Reshape", "MatMul")
            first = self.back(means.input[0], "Softmax", "MatMul", "Reshape", "MatMul")
            if first.input[1] != weight:
                raise UnknownGraphError(weight)
            shares = self.op("Softmax", self._score(first.input[0], weight, keys, cells), axis=-1)
            if not cells.scale:
                self.op("MatMul", shares, of_image, output=last.output[0])
                continue
            scaled = self.op("Mul", shares, self.with_axis(cells.scale))
            image = self.op("MatMul", scaled, of_image)
            sums = self.op("MatMul", self._flat(shares, self.count), self.turned(cells.weights))
            vectors = self._by_head(self.op("MatMul", sums, cells.vectors), self.channels)
            vectors = self.op("MatMul", vectors, values)
            bias = self.with_axis(self.op("MatMul", cells.bias, values))  # [h, 1, d]
            self.op("Add", self.op("Add", image, bias), vectors, output=last.output[0])

    def _keys(self, weight: str, cells: _Cells, bias: str = "") -> tuple[str, str]:
        """Returns the keys ``[M, heads, d, n]`` of the image, and those of its places with all biases.

        Args:
            weight: ``[heads, d, C]``, which makes keys of cells.
            cells: of the image.
            bias: ``[heads, d, 1]``, of the keys.
        """
        places = self.op("Add", self.pe, self._column(cells.bias)) if cells.bias else self.pe
        places = self.op("MatMul", weight, self.with_axis(places))
        if bias:
            places = self.op("Add", places, bias)
        return self.op("MatMul", weight, self.with_axis(cells.image)), places

    def _score(self, queries: str, weight: str, keys: tuple[str, str], cells: _Cells) -> str:
        """Returns ``[B, heads, t, n]``: queries ``[B, heads, t, d]`` times the keys of the cells.

        Args:
            queries: of the tokens.
            weight, cells: as for ``_keys``.
            keys: what that returned.
        """
        if not cells.scale:
            return self.op("MatMul", queries, self.op("Add", *keys))
        image, places = (self.op("MatMul", queries, of) for of in keys)
        image = self.op("Mul", image, self.with_axis(cells.scale))
        asked = self._flat(self.op("MatMul", queries, weight), self.channels)
        asked = self.op("MatMul", asked, self.turned(cells.vectors))  # [B, h·t, R]
        vectors = self._by_head(self.op("MatMul", asked, cells.weights), self.count)
        return self.op("Add", self.op("Add", image, places), vectors)

    def _attend_to_tokens(self, layer: str, cells: _Cells) -> _Cells:
        """Returns the cells after a block: after their attention to the tokens, and the norm."""
        attention = f"{layer}cross_attn_image_to_token."
        names = ("q_weight", "q_bias", "out_weight", "out_bias")
        weight, bias, outputs, out_bias = (self.find(attention + name) for name in names)
        tokens = self.users(weight, "MatMul", 1)[0].input[0]  # [B, heads, T, d]
        values = self.users(outputs, "MatMul", 1)[0].input[0]
        # the product is the same from either side: of a token's keys and the cells' queries
        scores = self._score(tokens, weight, self._keys(weight, cells, bias), cells)
        # Softmax along another axis than the last is slow
        shares = self.op("Exp", self.op("Sub", scores, self.op("ReduceMax", scores, self.ints(2))))
        shares = self.op("Div", shares, self.op("ReduceSum", shares, self.ints(2)))
        constant = self.op("Mul", out_bias, self.number(self.heads))  # a head's share of it is stored
        if cells.bias:
            constant = self.op("Add", constant, cells.bias)
        added = self._flat(shares, self.count), values, self.centred(outputs, 2)
        return self._norm(f"{layer}norm4", *self._add(cells, added, self.centred(constant, 0)))

    def _add(self, cells: _Cells, added: tuple[str, str, str], constant: str) -> tuple[_Cells, str]:
        """Returns cells after an addition, less their mean over the channels; and their squares' sums.

        The sums, ``[B, 1, n]``, are a quadratic form of a cell's scale and weights.

        Args:
            cells: before the addition.
            added: weights, which add up to the number of heads for each cell, values and outputs.
            constant: ``[C]``, which is added to each cell, too.
        """
        weights, values, outputs = added
        image = self.centred(cells.image, 1)
        vectors = self._flat(self.op("MatMul", values, outputs), self.channels)
        if not cells.scale:
            image = self.op("Add", image, self._column(constant))
        else:
            share = self.op("Mul", constant, self.number(1 / self.heads))
            vectors = self.op("Add", vectors, share)
            vectors = self.op("Concat", self.centred(cells.vectors, 2), vectors, axis=1)
            weights = self.op("Concat", cells.weights, weights, axis=1)
            values = self.op("Concat", cells.values, values, axis=1)
            outputs = self.op("Concat", self.centred(cells.outputs, 2), outputs, axis=0)
        twice = self.op("Mul", image, self.number(2))
        products = self.op("MatMul", values, self.op("MatMul", outputs, self.with_axis(twice)))
        products = self._flat(products, self.count)
        squares = self.total(self.op("Mul", image, image))
        if cells.scale:
            products = self.op("Mul", products, cells.scale)
            constants = self.total(self.op("Mul", twice, self._column(constant)))
            squares = self.op("Add", self.op("Mul", squares, cells.scale), constants)
            squares = self.op("Mul", squares, cells.scale)
        form = self.op("MatMul", self.op("MatMul", vectors, self.turned(vectors)), weights)
        form = self.op("Mul", weights, self.op("Add", form, products))
        squares = self.op("Add", self.total(form), squares)
        return _Cells(image, cells.scale, weights, vectors, "", values, outputs), squares

    def _norm(self, norm: str, cells: _Cells, squares: str) -> _Cells:
        """Returns the cells after a LayerNorm of that name; see ``_add`` for the arguments."""
        gain, bias = self.find(f"{norm}.weight"), self.find(f"{norm}.bias")
        node = self.users(gain, "LayerNormalization", 1)[0]
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), EPSILON)
        variance = self.op("Mul", squares, self.number(1 / self.channels))
        variance = self.op("Add", variance, self.number(epsilon))
        inverse = self.op("Reciprocal", self.op("Sqrt", variance))
        return _Cells(
            self.op("Mul", cells.image, self._column(gain)),
            self.op("Mul", cells.scale, inverse) if cells.scale else inverse,
            self.op("Mul", cells.weights, inverse),
            self.op("Mul", cells.vectors, gain),
            bias,
            cells.values,
            self.op("Mul", cells.outputs, gain),
        )

    def _upscale(self, name: str, cells: _Cells) -> None:
        """Replaces the products of all prompts' cells with weights ``[C, O]``, ``[B·n, O]``."""
        rows = self.users(name, "Reshape", 0)[0].output[0]
        for node in self.users(rows, "Gemm", 0):
            if any(entry.name == "transB" and entry.i for entry in node.attribute):
                raise UnknownGraphError(name)
            _, weight, bias = node.input
            image = self.op("MatMul", self.turned(cells.image), weight)  # [M, n, O]
            image = self.op("Mul", image, self.turned(cells.scale))
            vectors = self.op("MatMul", cells.vectors, weight)
            vectors = self.op("MatMul", self.turned(cells.weights), vectors)
            bias = self.op("Add", self.op("MatMul", cells.bias, weight), bias)
            products = self.op("Add", self.op("Add", vectors, image), bias)
            shape = self.ints(-1, self.shape(weight)[1])
            self.op("Reshape", products, shape, output=node.output[0])

    def _flat(self, name: str, width: int) -> str:
        """``[B, heads, t, width]`` to ``[B, heads·t, width]``."""
        return self.op("Reshape", name, self.ints(0, -1, width))

    def _by_head(self, name: str, width: int) -> str:
        """``[B, heads·t, width]`` to ``[B, heads, t, width]``."""
        return self.op("Reshape", name, self.ints(0, self.heads, -1, width))

    def _column(self, name: str) -> str:
        """``[C]`` to ``[C, 1]``."""
        return self.op("Unsqueeze", name, self.ints(1))
