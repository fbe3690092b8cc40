"""Which layers of an image encoder get 8-bit activations: measured on photographs, within a budget."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pocketsam.errors import ConversionError
from pocketsam.export.cases import Case, samples_of
from pocketsam.export.quantization.decisions import FEW_BITS, STATIC
from pocketsam.export.quantization.grids import Steps
from pocketsam.export.quantization.prefix import Prefix
from pocketsam.export.quantization.rounding import (
    EIGHT_BITS,
    ENCODER,
    rounded_weights,
    static_layers,
    with_weights,
)
from pocketsam.export.quantization.simulation import Rounding, Spans, layers_of, measured, quantized
from pocketsam.export.traced import Encoder, TracedNetwork, count_macs
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c

Progress = Callable[[str], None]
_STEP_DB = 0.25
"""By which the budget of single layers shrinks while all chosen ones together exceed it."""
_MOST_DB = 100.0
"""Layers that seem to cost nothing fit any budget; beyond this one they are given up."""


@dataclass(frozen=True)
class LayerCost:
    """What a layer saves and costs in 8 bits, the others in float.

    Attributes:
        name: its path in the image encoder.
        macs: its multiply-adds on one image.
        noise: what it adds to the power of the embedding's error, over the embedding's power.
    """

    name: str
    macs: int
    noise: float


@dataclass(frozen=True)
class Plan:
    """The layers of an image encoder that have 8-bit activations and weights.

    Attributes:
        spans: of what each reads and writes, by name, in the order of computation.
        left: names of layers of the same kinds that stay in float.
        share: of the encoder's multiply-adds that are products of 8-bit numbers, 0..1.
        snr_db: of the embedding, simulated on the calibration photographs.
    """

    spans: Mapping[str, Spans]
    left: tuple[str, ...]
    share: float
    snr_db: float

    def to_json(self) -> dict[str, Any]:
        """Returns what the manifest says of it."""
        return {
            "layers": len(self.spans),
            "kept_in_float": list(self.left),
            "share_of_macs": round(self.share, 4),
            "simulated_snr_db": round(self.snr_db, 2),
        }


class Simulator:
    """An image encoder on calibration photographs, with and without layers in 8 bits.

    Args:
        model: the network, in any form whose linear layers are ``nn.Linear``.
        cases: calibration photographs with PyTorch's answers.
        kinds: of the layers that may have 8 bits.

    Raises:
        ConversionError: there is no photograph, or no layer that may have 8 bits.
    """

    def __init__(
        self, model: Sam, cases: Sequence[Case], kinds: tuple[type[nn.Module], ...] = STATIC.kinds
    ) -> None:
        self._model = model
        self.layers = layers_of(model.image_encoder, kinds)
        if not cases or not self.layers:
            raise ConversionError(
                "8-bit activations need photographs to calibrate on, and linear layers"
            )
        self.pixels = [torch.from_numpy(case.feeds[c.PIXEL_VALUES]) for case in cases]
        self.wanted = [torch.from_numpy(case.outputs[c.IMAGE_EMBEDDINGS]) for case in cases]
        with torch.inference_mode(), measured(self.layers) as self.spans:
            for pixels in self.pixels:
                model.encode(pixels)

    @torch.inference_mode()
    def encode(self, chosen: Sequence[str], how: Rounding, pixels: Tensor) -> Tensor:
        """Returns the embedding of ``pixels [1, 3, S, S]`` with the chosen layers rounded."""
        with quantized({name: self.layers[name] for name in chosen}, self.spans, how):
            return self._model.encode(pixels)

    def noise(self, chosen: Sequence[str], how: Rounding, prefixes: Sequence[Prefix] = ()) -> float:
        """Returns the power of the embeddings' error over their power, with the chosen layers rounded.

        Args:
            chosen: names of layers.
            how: what is rounded of each.
            prefixes: of the photographs to measure, the first ones, where a single layer is chosen;
                none: all photographs.
        """
        error = power = 0.0
        for number in range(len(prefixes) or len(self.pixels)):
            skips = prefixes and chosen
            with prefixes[number].starting_at(chosen[0]) if skips else nullcontext():
                found = self.encode(chosen, how, self.pixels[number])
            wanted = self.wanted[number]
            error += float((found - wanted).square().sum())
            power += float(wanted.square().sum())
        return error / power

    def costs(self, how: Rounding, progress: Progress = lambda _: None) -> list[LayerCost]:
        """Returns what rounding each layer alone costs, on the first ``STATIC.probes`` photographs."""
        macs, encoder = self.count_macs(), self._model.image_encoder
        prefixes = [Prefix(encoder, pixels) for pixels in self.pixels[: STATIC.probes]]
        rest = self.noise([], how, prefixes)
        costs = []
        for number, name in enumerate(self.layers, start=1):
            added = self.noise([name], how, prefixes) - rest
            costs.append(LayerCost(name, macs[name], max(added, 0.0)))
            progress(f"8 bits {number}/{len(self.layers)}: {name} alone: {to_db(added):.1f} dB")
        return costs

    @torch.inference_mode()
    def count_macs(self) -> dict[str, int]:
        """Returns the multiply-adds of each layer on one image."""
        macs: dict[str, int] = {}

        def keep(name: str) -> Any:
            def hook(module: Any, _inputs: Any, output: Tensor) -> None:
                macs[name] = output.numel() * module.weight[0].numel()

            return hook

        handles = [module.register_forward_hook(keep(n)) for n, module in self.layers.items()]
        self._model.encode(self.pixels[0])
        for handle in handles:
            handle.remove()
        return macs


def to_db(noise: float) -> float:
    """Returns a noise-to-signal ratio of powers as a signal-to-noise ratio in dB."""
    return float(-10 * torch.tensor(max(noise, 1e-20)).log10())


def choose(costs: Sequence[LayerCost], min_snr_db: float) -> list[str]:
    """Returns the layers that fit a budget of noise, those first that add the least per multiply-add.

    The noises of layers are taken to be independent, so they add up.

    Args:
        costs: of all layers.
        min_snr_db: of the embedding with all chosen layers in 8 bits.

    Returns:
        Their names, in the order of ``costs``.
    """
    budget, names = 10 ** (-min_snr_db / 10), set[str]()
    for cost in sorted(costs, key=lambda cost: cost.noise / cost.macs):
        if cost.noise > budget:
            break
        budget -= cost.noise
        names.add(cost.name)
    return [cost.name for cost in costs if cost.name in names]


def plan(
    model: Sam,
    cases: Sequence[Case],
    macs: int,
    *,
    outputs: bool,
    largest: int = 127,
    weights: Mapping[str, Tensor] = MappingProxyType({}),
    progress: Progress = lambda _: None,
) -> Plan:
    """Returns the layers that get 8 bits: all of ``STATIC.kinds``, or as many as the budget allows.

    Args:
        model: the network whose encoder is quantized.
        cases: calibration photographs with PyTorch's answers.
        macs: of the whole encoder on one image.
        outputs: whether the target's layers also write 8 bits.
        largest: step of an 8-bit weight.
        weights: of layers with 8 bits, on that grid; the others' are rounded to the nearest.
        progress: called with a line about each layer that is measured.

    Raises:
        ConversionError: not one layer fits the budget.
    """
    simulator, how = Simulator(model, cases), Rounding(Steps(largest), weights, outputs=outputs)
    chosen = list(simulator.layers)
    noise = simulator.noise(chosen, how)
    progress(f"8 bits: all {len(chosen)} linear layers: {to_db(noise):.1f} dB")
    aim = STATIC.min_snr_db
    costs: list[LayerCost] = []
    while not to_db(noise) >= STATIC.min_snr_db:
        costs = costs or simulator.costs(how, progress)
        before, chosen, aim = chosen, choose(costs, aim), aim + _STEP_DB
        if not chosen or aim > _MOST_DB:
            rest = to_db(simulator.noise([], how))
            raise ConversionError(
                f"no layer bears 8-bit activations at {STATIC.min_snr_db:g} dB; without any, the "
                f"embedding has {rest:.1f} dB"
            )
        if chosen == before:
            continue
        noise = simulator.noise(chosen, how)
        progress(f"8 bits: {len(chosen)} layers: {to_db(noise):.1f} dB")
    done = simulator.count_macs()
    return Plan(
        spans={name: simulator.spans[name] for name in chosen},
        left=tuple(name for name in simulator.layers if name not in set(chosen)),
        share=sum(done[name] for name in chosen) / macs,
        snr_db=to_db(noise),
    )


def static_encoder(
    network: TracedNetwork,
    calibration: Sequence[Case],
    *,
    outputs: bool,
    smallest: float,
    largest: int = 127,
    progress: Progress = lambda _: None,
) -> tuple[TracedNetwork, Plan]:
    """Returns an encoder whose weights are those that the file will hold, and its ``plan``.

    Weights are rounded with error feedback; see ``rounded_weights``.

    Args:
        network: the encoder, which stays as it is.
        calibration, outputs, largest, progress: as for ``plan``.
        smallest: of layers whose activations stay in float, weights with fewer elements are stored in
            float, the others in 8 bits; infinity: all are in float.

    Raises:
        ConversionError: not one layer fits the budget.
    """
    macs = count_macs(Encoder(network.model))
    products: dict[str, Tensor] = {}  # of 8-bit numbers
    if isinstance(network.model.image_encoder, FEW_BITS.feedback):
        progress("rounding weights to 8 bits")
        layers, samples = static_layers(network.model), samples_of(network, calibration)
        grids = dict.fromkeys((EIGHT_BITS, Steps(largest)))  # one, where they are the same
        stored, *others = rounded_weights(network, samples, layers, *grids)
        products = others[0] if others else stored
        kept = {name: weight for name, weight in stored.items() if weight.numel() >= smallest}
        network = with_weights(network, kept)
    planned = plan(
        network.model,
        calibration,
        macs,
        outputs=outputs,
        largest=largest,
        weights={name.removeprefix(ENCODER): weight for name, weight in products.items()},
        progress=progress,
    )
    chosen = {f"{ENCODER}{name}" for name in planned.spans}
    weights = {name: weight for name, weight in products.items() if name in chosen}
    return (with_weights(network, weights) if weights else network), planned
