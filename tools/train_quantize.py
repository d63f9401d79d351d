"""Per-tensor symmetric INT8 rounding in float arithmetic, for training and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def round_int8(weight: Tensor) -> Tensor:
    """The weight rounded to the nearest of 255 multiples of max|w| / 127."""
    step = (weight.abs().max() / 127).clamp_min(1e-12)
    return torch.clamp(torch.round(weight / step), -127, 127) * step


def straight_through(network: nn.Module) -> dict[str, Tensor]:
    """Gives `torch.func.functional_call` the parameters with every matrix rounded.

    Gradients pass as if it were not: the straight-through estimator of Bengio et al., 2013.
    """
    return {
        name: weight if weight.ndim < 2 else weight + (round_int8(weight) - weight).detach()
        for name, weight in network.named_parameters()
    }


@torch.no_grad()
def round_matrices(network: nn.Module) -> None:
    """Rounds every matrix in place, as INT8 storage would."""
    for weight in network.parameters():
        if weight.ndim == 2:
            weight.copy_(round_int8(weight))


@torch.no_grad()
def clip_outliers(network: nn.Module, deviations: float) -> None:
    """Clamps each matrix to so many of its standard deviations: max|w| sets the INT8 step."""
    for weight in network.parameters():
        if weight.ndim == 2:
            limit = float(deviations * weight.std())
            weight.clamp_(-limit, limit)
