"""The retrieval loss as a pure function.

Axes: Q queries, P targets, C candidates, D dimensions, X columns of a trend.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.devices import low_precision

#: Scores held at once: few enough to stay in a CPU's cache, and many enough to fill a GPU (512 MiB).
SCORES_AT_ONCE, SCORES_AT_ONCE_ON_CUDA = 1 << 20, 1 << 27


@dataclass(slots=True)
class Targets:
    """What each query should have found: P targets of Q queries, grouped by query.

    Query q owns targets ``offsets[q]:offsets[q + 1]`` (int64 ``[Q + 1]``, on the host); ``query_P`` repeats q
    for each. ``video_P`` are rows of the candidates, ``weight_P`` relative weights. ``hidden_QX`` are rows of
    the candidates that no feed would show at that moment (seen before; the unknown video): they take no part,
    unless they are targets; pad with a target of the query.
    """

    offsets: np.ndarray
    query_P: Tensor
    video_P: Tensor
    weight_P: Tensor
    hidden_QX: Tensor

    @classmethod
    def single(cls, video_Q: Tensor, weight_Q: Tensor, hidden_QX: Tensor) -> "Targets":
        """One target per query."""
        count = len(video_Q)
        return cls(
            np.arange(count + 1), torch.arange(count, device=video_Q.device), video_Q, weight_Q, hidden_QX
        )


@dataclass(slots=True)
class Moving:
    """What moves from day to day: scores of queries ``bounds[g]:bounds[g + 1]`` have
    ``user[:, D:] @ candidates_CX[g].T`` added.
    """

    bounds: list[int]
    candidates_CX: list[Tensor]


def softmax_loss(
    user_QD: Tensor,
    video_CD: Tensor,
    targets: Targets,
    temperature: Tensor,
    log_correction_C: Tensor | None = None,
    moving: Moving | None = None,
) -> Tensor:
    """Weighted multinomial cross-entropy of every query's targets among the candidates, scalar.

    ``Σ weight·(log Σ_c exp(score_c) − score_target) / Σ weight`` where scores are inner products divided by
    ``temperature`` > 0; all weights zero gives zero. With ``moving``, ``user_QD`` has X further columns.

    ``log_correction_C`` is None where the candidates are the whole catalogue (full softmax). Else they are a
    sample of *distinct* videos and it is ``log(count / expected count)`` of each under the sampling mixture
    (see ``data.negatives``), so that ``Σ exp(score + correction)`` estimates the full softmax's denominator
    without bias. A video never drawn as a negative has −inf and takes part only where it is a target. A
    query's targets are certain, not sampled: each stands once, without correction (an accidental hit is
    thereby masked). Sources: Bengio and Senécal 2008; Yi et al. 2019; for the uncorrected target, Khrylchenko
    et al. 2025; several targets per query: the multinomial likelihood of Liang et al. 2018.
    """
    if moving is None:
        moving = Moving([0, user_QD.shape[0]], [video_CD.new_zeros(video_CD.shape[0], 0)])
    low = low_precision(user_QD.device)
    if low:  # what the caller's autocast rounded stays float32 from here on, but for matrix products
        user_QD, video_CD = user_QD.float(), video_CD.float()
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        user_QD / temperature, video_CD, targets, log_correction_C, moving, low
    )
    return loss


def ignored_loss(
    user_QD: Tensor,
    video_CD: Tensor,
    targets: Targets,
    contrast_P: Tensor,
    temperature: Tensor,
    bias: Tensor,
    moving: Moving | None = None,
) -> Tensor:
    """Weighted log loss of telling the targets that were engaged with from those that were shown and ignored.

    ``contrast_P`` is the weight of a target that was engaged with, the negative of the weight of one that
    was ignored, and 0 for one that takes no part; log-odds are the scores of :func:`softmax_loss` plus
    ``bias``. The sum is divided by ``Σ weight_P``, as there, so that the two may be added up; without
    positives it is 0. The softmax teaches what gets shown and liked, which is mostly a matter of what gets
    shown; this, what is liked of what was shown.
    """
    if low_precision(user_QD.device):
        user_QD, video_CD = user_QD.float(), video_CD.float()
    user_PD, video_PD = user_QD[targets.query_P], video_CD[targets.video_P]
    if moving is not None:
        bounds = targets.offsets[moving.bounds].tolist()
        parts = [
            part_CX[targets.video_P[first:last]]
            for part_CX, first, last in zip(moving.candidates_CX, bounds, bounds[1:], strict=False)
        ]
        video_PD = torch.cat([video_PD, torch.cat(parts)], dim=1)
    log_odds_P = (user_PD * video_PD).sum(1) / temperature + bias
    engaged_P = (contrast_P > 0).to(log_odds_P.dtype)
    loss_P = F.binary_cross_entropy_with_logits(log_odds_P, engaged_P, reduction="none")
    total = targets.weight_P.sum().to(log_odds_P.dtype)
    return (loss_P * contrast_P.abs()).sum() * torch.where(total > 0, 1 / total, 0.0)


def outcome_loss(user_QE: Tensor, video_CE: Tensor, targets: Targets, outcome_P: Tensor) -> Tensor:
    """Log loss of what came of targets, of which the inner products are the log-odds.

    ``outcome_P`` is 1 or -1 where it is known, 0 where not. Divided by ``Σ weight_P`` like the other losses.
    """
    log_odds_P = (user_QE[targets.query_P] * video_CE[targets.video_P]).sum(1).float()
    loss_P = F.softplus(-log_odds_P * outcome_P) * (outcome_P != 0)
    total = targets.weight_P.sum().to(loss_P.dtype)
    return loss_P.sum() * torch.where(total > 0, 1 / total, 0.0)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss with its gradients computed along with it.

    The ``[Q, C]`` scores never exist as a whole: a chunk of queries at a time goes through the matrix
    product, the softmax and both gradients (about half the time of autograd's path). ``low``: factors of
    products are rounded to bfloat16, sums and the softmax are float32.
    """

    @staticmethod
    def forward(
        ctx: Any, user_QD: Tensor, video_CD: Tensor, targets: Targets, correction_C: Tensor | None,
        moving: Moving, low: bool,
    ) -> Tensor:  # fmt: skip
        with torch.autocast(user_QD.device.type, enabled=False):
            return _forward(ctx, user_QD, video_CD, targets, correction_C, moving, low)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        user_grad_QD, video_grad_CD = ctx.saved_tensors
        return user_grad_QD * grad[0], video_grad_CD * grad[0], None, None, None, None


def _forward(
    ctx: Any, user_QD: Tensor, video_CD: Tensor, targets: Targets, correction_C: Tensor | None,
    moving: Moving, low: bool,
) -> Tensor:  # fmt: skip
    dim, dtype = video_CD.shape[1], torch.bfloat16 if low else user_QD.dtype
    weight_P = targets.weight_P.to(user_QD.dtype)
    share_P = weight_P / weight_P.sum().clamp_min(1e-12)
    user_grad_QD, video_grad_CD = torch.empty_like(user_QD), torch.zeros_like(video_CD)
    loss = user_QD.new_zeros(())
    size = max(
        (SCORES_AT_ONCE_ON_CUDA if user_QD.is_cuda else SCORES_AT_ONCE) // max(video_CD.shape[0], 1), 16
    )
    for moving_CX, first, last in zip(moving.candidates_CX, moving.bounds, moving.bounds[1:], strict=False):
        factor_CD = torch.cat([video_CD, moving_CX], dim=1) if moving_CX.shape[1] else video_CD
        factor_CD = factor_CD.to(dtype)
        for begin in range(first, last, size):
            end = min(begin + size, last)
            chosen = slice(int(targets.offsets[begin]), int(targets.offsets[end]))
            row, column, share = targets.query_P[chosen] - begin, targets.video_P[chosen], share_P[chosen]
            user = user_QD[begin:end].to(dtype)
            score = _product(user, factor_CD.T)
            target_score = score[row, column]
            if correction_C is not None:
                score.add_(correction_C)
            score.scatter_(1, targets.hidden_QX[begin:end], float("-inf"))
            score.index_put_((row, column), target_score)
            highest = score.amax(1)
            # in one pass; in place, what a CPU's cache holds is not moved (a tenth of the loss's time)
            score = torch.softmax(score, 1, out=None if score.is_cuda else score)
            log_total = highest - score.amax(1).log()
            loss += ((log_total[row] - target_score) * share).sum()
            share_Q = share.new_zeros(end - begin).index_add_(0, row, share)
            # the scores' gradient but for the query's share, by which the narrow factors are multiplied
            part = share / share_Q.clamp_min(1e-30)[row]
            factor = score.index_put_((row, column), -part, accumulate=True).to(dtype)
            user_grad_QD[begin:end] = _product(factor, factor_CD).mul_(share_Q[:, None])
            shared = (user_QD[begin:end, :dim] * share_Q[:, None]).to(dtype)
            if low:
                video_grad_CD.add_(_product(factor.T, shared))
            else:
                video_grad_CD.addmm_(factor.T, shared)
    ctx.save_for_backward(user_grad_QD, video_grad_CD)
    return loss


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A float32 sum of products, also of bfloat16 factors."""
    if left.dtype is torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right
