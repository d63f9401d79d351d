"""Muon for the matrices, AdamW for the embedding and the norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients of Jordan et al., "Muon: an optimizer for hidden layers in
# neural networks" (2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Brings the singular values of each (rows, columns) matrix of a batch near 1."""
    a, b, c = _QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.transpose(-2, -1)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(-2, -1)
        x = torch.add(a * x, (b * gram + c * gram @ gram) @ x)
    return x if wide else x.transpose(-2, -1)


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalized; parameters of one shape go as one batch."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": same} for same in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Takes one step from the gradients; there is no closure to call."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
            buffers = [
                self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters
            ]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            looked_ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
            updates = orthogonalize(torch.stack(list(looked_ahead)))
            rows, columns = updates.shape[-2:]
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates.unbind()), alpha=-rate)
