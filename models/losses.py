"""Retrieval losses as pure functions. Axes: P positives, C candidates, D dimensions."""

from typing import Any

import torch
from torch import Tensor

from models.devices import low_precision

#: Scores held at once: few enough to stay in a CPU's cache, and many enough to fill a GPU (512 MiB).
SCORES_AT_ONCE, SCORES_AT_ONCE_ON_CUDA = 1 << 20, 1 << 27


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
    return _cross_entropy(user_PD, video_CD, target_P, weight_P, temperature, hidden_PX, None)


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
    return _cross_entropy(user_PD, video_CD, target_P, weight_P, temperature, hidden_PX, log_correction_C)


def weighted_mean(value_P: Tensor, weight_P: Tensor) -> Tensor:
    """Σ weight·value / Σ weight; zero where there is no weight."""
    return (value_P * weight_P).sum() / weight_P.sum().clamp_min(1e-12)


def _cross_entropy(
    user_PD: Tensor, video_CD: Tensor, target_P: Tensor, weight_P: Tensor, temperature: Tensor,
    hidden_PX: Tensor, log_correction_C: Tensor | None,
) -> Tensor:  # fmt: skip
    """Weighted mean cross-entropy, scalar; with a correction as :func:`sampled_softmax` describes."""
    low = low_precision(user_PD.device)
    if low:  # what the caller's autocast rounded stays float32 from here on, but for matrix products
        user_PD, video_CD = user_PD.float(), video_CD.float()
    share_P = weight_P / weight_P.sum().clamp_min(1e-12)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        user_PD / temperature, video_CD, target_P, share_P.to(user_PD.dtype), hidden_PX, log_correction_C, low
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ share·cross-entropy of ``user_PD @ video_CD.T``, gradients computed along with the loss.

    The ``[P, C]`` scores never exist as a whole: a chunk of positives at a time goes through the matrix
    product, the softmax and both gradients (about half the time of autograd's path). ``low``: factors of
    products are rounded to bfloat16, sums and the softmax are float32.
    """

    @staticmethod
    def forward(
        ctx: Any, user_PD: Tensor, video_CD: Tensor, target_P: Tensor, share_P: Tensor, hidden_PX: Tensor,
        log_correction_C: Tensor | None, low: bool,
    ) -> Tensor:  # fmt: skip
        with torch.autocast(user_PD.device.type, enabled=False):
            user_grad_PD, video_grad_CD = torch.empty_like(user_PD), torch.zeros_like(video_CD)
            factor_CD = video_CD.bfloat16() if low else video_CD
            loss = user_PD.new_zeros(())
            at_once = SCORES_AT_ONCE_ON_CUDA if user_PD.is_cuda else SCORES_AT_ONCE
            chunk = max(at_once // max(video_CD.shape[0], 1), 16)
            for begin in range(0, user_PD.shape[0], chunk):
                user = user_PD[begin : begin + chunk].to(factor_CD.dtype)
                target, share = target_P[begin : begin + chunk, None], share_P[begin : begin + chunk]
                score = _product(user, factor_CD.T)
                target_score = score.gather(1, target)
                if log_correction_C is not None:
                    score.add_(log_correction_C)
                score.scatter_(1, hidden_PX[begin : begin + chunk], float("-inf")).scatter_(
                    1, target, target_score
                )
                highest = score.amax(1, keepdim=True)
                target_score = (target_score - highest).squeeze(1)
                score.sub_(highest)
                total = score.exp_().sum(1)
                loss += ((total.log() - target_score) * share).sum()
                score.mul_((share / total)[:, None]).scatter_add_(1, target, -share[:, None])
                factor = score.to(factor_CD.dtype)
                user_grad_PD[begin : begin + chunk] = _product(factor, factor_CD)
                if low:
                    video_grad_CD.add_(_product(factor.T, user))
                else:
                    video_grad_CD.addmm_(factor.T, user)
        ctx.save_for_backward(user_grad_PD, video_grad_CD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        user_grad_PD, video_grad_CD = ctx.saved_tensors
        return user_grad_PD * grad[0], video_grad_CD * grad[0], None, None, None, None, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A float32 sum of products, also of bfloat16 factors."""
    if left.dtype is torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right
