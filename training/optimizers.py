"""AdamW over two groups of parameters, and its warm-up."""

from collections.abc import Callable

import torch
from torch import nn


def build_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; only matrices of the dense part decay (embedding tables, norms and biases do not)."""
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        table = ".tables." in name or "embedding" in name
        (decay if parameter.ndim >= 2 and not table else keep).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def warmup(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 0 to 1 over ``steps``, then 1."""
    return lambda step: min(1.0, (step + 1) / max(steps, 1))
