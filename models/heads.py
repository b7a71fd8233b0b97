"""What the heads say, as losses and probabilities. Axes: B impressions, T tasks; ``…`` any leading axes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Bounds of the logarithm of sigma, the spread of the logarithm of order values.
LOG_SIGMA = (-3.0, 1.5)


def log_probabilities(logit_T: Tensor, parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``log p`` and ``log(1 − p)`` ``[…, T]`` of every task on the whole exposure space.

    A task with parent i is conditional on it: p = p_parent · σ(logit) (ESMM, Ma 2018). Parents stand before
    their children; −1 has none.
    """
    yes: list[Tensor] = []
    no: list[Tensor] = []
    for task, parent in enumerate(parents):
        logit = logit_T[..., task]
        log_yes, log_no = F.logsigmoid(logit), F.logsigmoid(-logit)
        if parent >= 0:
            log_no = torch.logaddexp(no[parent], yes[parent] + log_no)
            log_yes = yes[parent] + log_yes
        yes.append(log_yes)
        no.append(log_no)
    return torch.stack(yes, -1), torch.stack(no, -1)


def task_losses(logit_BT: Tensor, true_BT: Tensor, known_BT: Tensor, parents: Sequence[int]) -> Tensor:
    """Cross-entropy per task ``[T]``, the mean over impressions whose label is known; 0 where none is."""
    log_yes, log_no = log_probabilities(logit_BT, parents)
    loss_BT = -torch.where(true_BT > 0, log_yes, log_no)
    return torch.where(known_BT > 0, loss_BT, 0.0).sum(0) / known_BT.sum(0).clamp_min(1.0)


def counterfactual_losses(
    logit_BT: Tensor, true_BT: Tensor, known_BT: Tensor, parents: Sequence[int], max_weight: float = 20.0
) -> Tensor:
    """Cross-entropy of each conditional step as if every impression had reached it ``[T]``.

    ESCM² (Wang 2022): over impressions whose parent came true, weighted by one over the predicted chance of
    that (at most ``max_weight``; the weights teach nothing themselves). 0 for tasks without a parent, and
    without such an impression.
    """
    log_yes, _ = log_probabilities(logit_BT, parents)
    losses = []
    for task, parent in enumerate(parents):
        if parent < 0:
            losses.append(logit_BT.new_zeros(()))
            continue
        reached_B = (known_BT[:, task] > 0) & (known_BT[:, parent] > 0) & (true_BT[:, parent] > 0)
        weight_B = torch.where(reached_B, (-log_yes[:, parent].detach()).exp().clamp_max(max_weight), 0.0)
        logit_B, true_B = logit_BT[:, task], true_BT[:, task]
        loss_B = F.binary_cross_entropy_with_logits(logit_B, true_B, reduction="none")
        losses.append((weight_B * loss_B).sum() / weight_B.sum().clamp_min(1.0))
    return torch.stack(losses)


def order_value_loss(parameter_B2: Tensor, value_B: Tensor) -> Tensor:
    """Negative log-likelihood of a lognormal order value, mean over values above 0; 0 where there is none.

    The zero part of the zero-inflated lognormal (Wang 2019) is the purchase head.
    """
    bought = value_B > 0
    mu, log_sigma = parameter_B2[:, 0], parameter_B2[:, 1].clamp(*LOG_SIGMA)
    score = (value_B.clamp_min(1).log() - mu) * torch.exp(-log_sigma)
    loss_B = 0.5 * score.square() + log_sigma
    return torch.where(bought, loss_B, 0.0).sum() / bought.sum().clamp_min(1)


def expected_order_value(parameter_2: Tensor) -> Tensor:
    """Mean of the lognormal in minor units, given a purchase: ``[…, 2] → […]``."""
    sigma = parameter_2[..., 1].clamp(*LOG_SIGMA).exp()
    return torch.exp((parameter_2[..., 0] + 0.5 * sigma.square()).clamp_max(25.0))
