"""Linear layers that compute in 8 bits while they are trained: quantization-aware training.

Values are rounded on the way forward, and gradients pass as if they were not (the straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432). Weights stay in float, in an ordinary checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_STEPS, ACTIVATION_STEPS = 127, 255
"""From 0 to the widest weight of an output; from the least to the greatest value of an activation."""


class RoundedLinear(nn.Linear):
    """A linear layer with 8-bit inputs, and 8-bit weights with a scale for each output."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[..., outputs]`` of ``x [..., inputs]``."""
        return F.linear(round_input(x), round_weight(self.weight), self.bias)


def round_weight(weight: Tensor) -> Tensor:
    """Returns a weight ``[outputs, inputs]`` on symmetric steps for each output."""
    scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / WEIGHT_STEPS
    return _with_gradient(weight, (weight / scale).round() * scale)


def round_input(x: Tensor) -> Tensor:
    """Returns an activation on steps from its least to its greatest value, 0 among them."""
    low, high = (bound.detach().float() for bound in torch.aminmax(x))
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low).clamp_min(1e-8) / ACTIVATION_STEPS
    zero = (-low / scale).round()
    return _with_gradient(x, ((x / scale).round() + zero).clamp(0, ACTIVATION_STEPS).sub(zero) * scale)


def _with_gradient(value: Tensor, rounded: Tensor) -> Tensor:
    """Returns ``rounded`` with the gradient of ``value``."""
    return value + (rounded - value).detach()


def round_layers(encoder: nn.Module) -> None:
    """Gives an image encoder's linear layers 8 bits, and keeps the statistics of its BatchNorms."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear) and name != "head":
            module.__class__ = RoundedLinear
        elif isinstance(module, nn.BatchNorm2d):
            module.eval()
