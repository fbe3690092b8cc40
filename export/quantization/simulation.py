"""A network with some layers in few bits, simulated: values are rounded, products are float."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pocketsam.export.quantization.decisions import STATIC
from pocketsam.export.quantization.grids import Steps, round_nearest


@dataclass(frozen=True)
class Span:
    """The least and the greatest value of a tensor over the calibration photographs."""

    low: float
    high: float

    def union(self, value: Tensor) -> "Span":
        """Returns the span that holds a tensor's values too."""
        low, high = (float(x) for x in torch.aminmax(value))
        return Span(min(self.low, low), max(self.high, high))

    def grid(self) -> tuple[float, int]:
        """Returns scale and zero point of unsigned codes: value = scale x (code - zero point)."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max(high - low, 1e-8) / (STATIC.activation_levels - 1)
        return scale, round(-low / scale)


EMPTY = Span(float("inf"), float("-inf"))


@dataclass(frozen=True)
class Spans:
    """The spans of what a layer reads and of what it writes."""

    input: Span = EMPTY
    output: Span = EMPTY


def round_activation(x: Tensor, span: Span) -> Tensor:
    """Returns float values on the grid of a span; what lies outside is clipped."""
    scale, zero = span.grid()
    codes = (torch.round(x / scale) + zero).clamp(0, STATIC.activation_levels - 1)
    return (codes - zero) * scale


def round_weight(weight: Tensor, grid: Steps) -> Tensor:
    """Returns a weight ``[outputs, ...]`` rounded to the nearest step of its outputs' grids."""
    return round_nearest(weight.flatten(1), grid).view(weight.shape)


def layers_of(encoder: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Returns the layers of an image encoder that are of some kinds, by name, in order.

    The classifier that TinyViT was pretrained with is none of them: nothing runs it.
    """
    return {name: m for name, m in encoder.named_modules() if isinstance(m, kinds) and name != "head"}


@dataclass(frozen=True)
class Rounding:
    """What is rounded of a layer.

    Attributes:
        weight: the steps of its weight; None: it stays as it is.
        given: weights by the layer's name that are on these steps already.
        inputs: whether its input has 8 bits.
        outputs: whether its output has 8 bits too, as kernels of integers alone want it.
    """

    weight: Steps | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: bool = True
    outputs: bool = False


@contextmanager
def measured(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Spans]]:
    """Gives a dict that forward passes, while it is open, fill with the spans of layers by name."""
    found: dict[str, Spans] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            old = found.get(name, Spans())
            found[name] = Spans(old.input.union(inputs[0]), old.output.union(output))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quantized(
    layers: Mapping[str, nn.Module], spans: Mapping[str, Spans], how: Rounding
) -> Iterator[None]:
    """Runs layers in 8 bits while it is open.

    Args:
        layers: the layers, by name.
        spans: from ``measured``, of these layers and perhaps of others.
        how: what is rounded of each.
    """
    handles: list[Any] = []
    weights: list[tuple[Any, Tensor]] = []
    try:
        for name, module in layers.items():
            if how.weight is not None:
                weight: Any = module.weight
                weights.append((weight, weight.data))
                given = how.given.get(name)
                weight.data = round_weight(weight.data, how.weight) if given is None else given
            if how.inputs:
                handles.append(module.register_forward_pre_hook(_input_hook(spans[name].input)))
            if how.outputs:
                handles.append(module.register_forward_hook(_output_hook(spans[name].output)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, values in weights:
            parameter.data = values


def _input_hook(span: Span) -> Any:
    return lambda _module, inputs: (round_activation(inputs[0], span),)


def _output_hook(span: Span) -> Any:
    return lambda _module, _inputs, output: round_activation(output, span)
