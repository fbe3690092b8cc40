"""Weights rounded with error feedback: what rounding an input's weights does to the outputs is made
good, as far as inputs are alike, by the weights of inputs that are rounded later.

This is GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns in the order of their inputs' power, the
inverse of the inputs' second moments in Cholesky's form, lazy updates in blocks.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pocketsam.export.cases import Case, samples_of
from pocketsam.export.quantization.decisions import FEW_BITS, STATIC
from pocketsam.export.quantization.grids import Grid, Steps, round_nearest
from pocketsam.export.quantization.simulation import layers_of
from pocketsam.export.target import Arrays, Progress
from pocketsam.export.traced import TracedNetwork, run_outputs
from pocketsam.models.sam import Sam

DAMPING, COLUMNS = 0.01, 64
"""Share of the mean power that is added to every input's; columns of a lazy update."""
EIGHT_BITS = Steps(127)
ENCODER = "image_encoder."
"""What the names of the image encoder's layers begin with in the whole network."""


def few_bit_layers(model: Sam) -> dict[str, nn.Linear]:
    """Returns the linear layers whose weights may have fewer than 8 bits, by name; see ``FEW_BITS``."""
    decoder = model.mask_decoder.named_modules()
    parents = [f"mask_decoder.{name}." for name, m in decoder if isinstance(m, FEW_BITS.decoder)]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith((ENCODER, *parents))
        and name != f"{ENCODER}head"
        and module.weight.numel() >= FEW_BITS.smallest
    }


def static_layers(model: Sam) -> dict[str, nn.Linear]:
    """Returns the linear layers that may have 8-bit activations, by their path in the whole network."""
    found = layers_of(model.image_encoder, STATIC.kinds)
    return {f"{ENCODER}{n}": m for n, m in found.items() if isinstance(m, nn.Linear)}


@contextmanager
def _moments(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Gives a dict that forward passes, while it is open, fill with the sums of outer products of each
    layer's inputs: ``[inputs, inputs]`` by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, axis: int) -> Any:
        def hook(_module: nn.Module, inputs: Any) -> None:
            rows = inputs[0].movedim(axis, -1).flatten(0, -2)
            found[name] = found.get(name, 0) + rows.T @ rows

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name, getattr(module, "channel_axis", -1)))
        for name, module in layers.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def round_matrix(weight: Tensor, moments: Tensor, grid: Grid) -> Tensor:
    """Returns a weight on a grid, with error feedback.

    Args:
        weight: ``[outputs, inputs]``.
        moments: ``[inputs, inputs]``, the sum of outer products of inputs that were seen.
        grid: what values it may take.
    """
    power = moments.diagonal().double()
    mean = power.mean().clamp_min(1e-12)
    damped = moments.double() + torch.eye(len(power), dtype=torch.double) * (DAMPING * mean)
    round_column = grid.columns(weight, (power + DAMPING * mean).float())
    order = power.argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left = weight[:, order].clone()
    result = torch.empty_like(weight)
    for start in range(0, len(order), COLUMNS):
        end = min(start + COLUMNS, len(order))
        errors = torch.empty(len(weight), end - start)
        for place in range(start, end):
            column = left[:, place]
            rounded = round_column(int(order[place]), column)
            result[:, order[place]] = rounded
            error = (column - rounded) / factor[place, place]
            errors[:, place - start] = error
            left[:, place + 1 : end] -= error[:, None] * factor[place, place + 1 : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return result


@torch.no_grad()
def rounded_weights(
    network: TracedNetwork,
    samples: Sequence[Arrays],
    layers: Mapping[str, nn.Linear],
    *grids: Grid,
) -> list[dict[str, Tensor]]:
    """Returns, for each grid, weights ``[outputs, inputs]`` of layers by name, on that grid.

    What one layer's weights become does not depend on the others'.

    Args:
        network: the encoder or the decoder, which stays as it is.
        samples: its inputs on calibration photographs.
        layers: of its model, by name; those that the network does not run are left out.
        grids: what values the weights may take.
    """
    fits = isinstance(network.model.image_encoder, FEW_BITS.feedback)
    with _moments(layers) as moments:
        for sample in samples if fits else samples[:1]:
            run_outputs(network, sample)
    found: list[dict[str, Tensor]] = [{} for _ in grids]
    for name, seen in moments.items():
        weight = layers[name].weight.detach()
        has_feedback = fits and weight.shape[1] <= FEW_BITS.most_inputs
        for grid, rounded in zip(grids, found, strict=True):
            rounded[name] = (
                round_matrix(weight, seen, grid) if has_feedback else round_nearest(weight, grid)
            )
    return found


def with_weights(network: TracedNetwork, weights: Mapping[str, Tensor]) -> TracedNetwork:
    """Returns a network with some layers' weights replaced; it shares all others with the old one.

    Args:
        network: it stays as it is.
        weights: by the layer's name in the model.
    """
    shared = {id(x): x for x in (*network.model.parameters(), *network.model.buffers())}
    model = copy.deepcopy(network.model, shared)
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    twin.model = model
    for name, weight in weights.items():
        model.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    return twin.eval()


def rounded_network(
    network: TracedNetwork,
    samples: Sequence[Arrays],
    select: Callable[[Sam], Mapping[str, nn.Linear]],
    grid: Grid,
) -> TracedNetwork:
    """Returns a network whose selected weights lie on a grid; it shares all others with the old one.

    Args:
        network: the encoder or the decoder, which stays as it is.
        samples: its inputs on calibration photographs.
        select: a model to the linear layers that are rounded, by name.
        grid: what values their weights may take.
    """
    return with_weights(network, *rounded_weights(network, samples, select(network.model), grid))


def rounded_encoder(
    network: TracedNetwork, calibration: Sequence[Case], smallest: int, progress: Progress
) -> TracedNetwork:
    """Returns an encoder whose linear layers' weights lie on a grid of 8 bits, with error feedback.

    A converter that rounds to the nearest stores them exactly. Encoders other than
    ``FEW_BITS.feedback`` are returned as they are: the converter rounds them just as well.

    Args:
        network: the encoder, which stays as it is.
        calibration: photographs with PyTorch's answers.
        smallest: weights with fewer elements stay as they are, since the converter stores them in
            float.
        progress: called with a line about it.
    """
    if not isinstance(network.model.image_encoder, FEW_BITS.feedback):
        return network
    progress("rounding weights to 8 bits")

    def select(model: Sam) -> Mapping[str, nn.Linear]:
        layers = static_layers(model)
        return {name: layer for name, layer in layers.items() if layer.weight.numel() >= smallest}

    return rounded_network(network, samples_of(network, calibration), select, EIGHT_BITS)
