"""Retrieval losses as pure functions. Axes: P positives, C candidates, D dimensions."""

import torch
from torch import Tensor
from torch.nn import functional as F


def full_softmax(
    user_PD: Tensor, video_CD: Tensor, target_P: Tensor, weight_P: Tensor, temperature: Tensor
) -> Tensor:
    """Weighted cross-entropy over the whole catalogue, scalar.

    ``target_P`` are rows of ``video_CD``. Weights are relative: the loss is the weighted mean; all
    weights zero gives zero. ``temperature`` > 0 divides the scores.
    """
    logit_PC = (user_PD / temperature) @ video_CD.T
    return weighted_mean(F.cross_entropy(logit_PC, target_P, reduction="none"), weight_P)


def sampled_softmax(
    user_PD: Tensor,
    video_CD: Tensor,
    target_P: Tensor,
    weight_P: Tensor,
    temperature: Tensor,
    log_correction_C: Tensor,
) -> Tensor:
    """Softmax over sampled candidates with the logQ correction, scalar.

    Candidates are *distinct* videos; ``log_correction_C = log(count / expected count)`` of each under
    the sampling mixture (see ``data.negatives``), so that Σ exp(score + correction) estimates the full
    softmax's denominator without bias. A video never drawn as a negative has correction −inf and takes
    part only where it is the target. The target itself is certain, not sampled: it stands once, without
    correction (an accidental hit is thereby masked). Sources: Bengio and Senécal 2008; Yi et al. 2019;
    for the uncorrected target, Khrylchenko et al. 2025.
    """
    score_PC = (user_PD / temperature) @ video_CD.T
    target_score_P = score_PC.gather(1, target_P[:, None]).squeeze(1)
    logit_PC = score_PC + log_correction_C
    logit_PC = logit_PC.scatter(1, target_P[:, None], target_score_P[:, None])
    return weighted_mean(torch.logsumexp(logit_PC, dim=1) - target_score_P, weight_P)


def weighted_mean(value_P: Tensor, weight_P: Tensor) -> Tensor:
    """Σ weight·value / Σ weight; zero where there is no weight."""
    return (value_P * weight_P).sum() / weight_P.sum().clamp_min(1e-12)
