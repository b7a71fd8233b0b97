"""Retrieval losses as pure functions. Axes: P positives, C candidates, D dimensions."""

from typing import Any

import torch
from torch import Tensor

#: Scores held at once by the full softmax: small enough to stay in a CPU's cache.
SCORES_AT_ONCE = 1 << 20


def full_softmax(
    user_PD: Tensor,
    video_CD: Tensor,
    target_P: Tensor,
    weight_P: Tensor,
    temperature: Tensor,
    hidden_PX: Tensor,
) -> Tensor:
    """Weighted cross-entropy over all of ``video_CD``, scalar.

    ``target_P`` are rows of ``video_CD``. ``hidden_PX`` are rows that no feed would show to this user (seen
    before; the unknown video): they take no part, except the target itself, so an entry is padded with
    the target. Weights are relative: the loss is the weighted mean; all weights zero gives zero.
    ``temperature`` > 0 divides the scores.
    """
    share_P = weight_P / weight_P.sum().clamp_min(1e-12)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        user_PD / temperature, video_CD, target_P, share_P, hidden_PX
    )
    return loss


def sampled_softmax(
    user_PD: Tensor,
    video_CD: Tensor,
    target_P: Tensor,
    weight_P: Tensor,
    temperature: Tensor,
    hidden_PX: Tensor,
    log_correction_C: Tensor,
) -> Tensor:
    """Softmax over sampled candidates with the logQ correction, scalar; see :func:`full_softmax`.

    Candidates are *distinct* videos; ``log_correction_C = log(count / expected count)`` of each under
    the sampling mixture (see ``data.negatives``), so that Σ exp(score + correction) estimates the full
    softmax's denominator without bias. A video never drawn as a negative has correction −inf and takes
    part only where it is the target. The target itself is certain, not sampled: it stands once, without
    correction (an accidental hit is thereby masked). Sources: Bengio and Senécal 2008; Yi et al. 2019;
    for the uncorrected target, Khrylchenko et al. 2025.
    """
    score_PC = (user_PD / temperature) @ video_CD.T
    target_score_P1 = score_PC.gather(1, target_P[:, None])
    logit_PC = (score_PC + log_correction_C).scatter(1, hidden_PX, float("-inf"))
    logit_PC = logit_PC.scatter(1, target_P[:, None], target_score_P1)
    return weighted_mean(torch.logsumexp(logit_PC, dim=1) - target_score_P1.squeeze(1), weight_P)


def weighted_mean(value_P: Tensor, weight_P: Tensor) -> Tensor:
    """Σ weight·value / Σ weight; zero where there is no weight."""
    return (value_P * weight_P).sum() / weight_P.sum().clamp_min(1e-12)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ share·cross-entropy of ``user_PD @ video_CD.T``, gradients computed along with the loss.

    The ``[P, C]`` scores never exist as a whole: a chunk of positives at a time goes through the matrix
    product, the softmax and both gradients while it is in cache (about half the time of autograd's path).
    """

    @staticmethod
    def forward(
        ctx: Any, user_PD: Tensor, video_CD: Tensor, target_P: Tensor, share_P: Tensor, hidden_PX: Tensor
    ) -> Tensor:
        user_grad_PD, video_grad_CD = torch.empty_like(user_PD), torch.zeros_like(video_CD)
        loss = user_PD.new_zeros(())
        chunk = max(SCORES_AT_ONCE // max(video_CD.shape[0], 1), 16)
        for begin in range(0, user_PD.shape[0], chunk):
            user = user_PD[begin : begin + chunk]
            target, share = target_P[begin : begin + chunk, None], share_P[begin : begin + chunk]
            score = user @ video_CD.T
            target_score = score.gather(1, target)
            score.scatter_(1, hidden_PX[begin : begin + chunk], float("-inf")).scatter_(
                1, target, target_score
            )
            highest = score.amax(1, keepdim=True)
            target_score = (target_score - highest).squeeze(1)
            score.sub_(highest)
            total = score.exp_().sum(1)
            loss += ((total.log() - target_score) * share).sum()
            score.mul_((share / total)[:, None]).scatter_add_(1, target, -share[:, None])
            torch.mm(score, video_CD, out=user_grad_PD[begin : begin + chunk])
            video_grad_CD.addmm_(score.T, user)
        ctx.save_for_backward(user_grad_PD, video_grad_CD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        user_grad_PD, video_grad_CD = ctx.saved_tensors
        return user_grad_PD * grad[0], video_grad_CD * grad[0], None, None, None
