"""Watch time without duration bias: quantiles among videos of similar duration (D2Q, Zhan 2022).

The head predicts, ordinally, above which quantiles of its duration group a watch lies; tables turn that
back into milliseconds. Axes: B impressions, G duration groups, Q bins.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

I64 = npt.NDArray[np.int64]
#: A watch counts in a mean as at most so many times the last bound between bins of its group.
LONGEST = 10


@dataclass(frozen=True, slots=True)
class WatchBins:
    """``duration_ms`` [G − 2] bounds between the groups 1 … G − 1 of known duration; group 0 is unknown.

    ``edge_ms`` [G, Q − 1] bounds between bins, ascending; ``mean_ms`` [G, Q] mean watch of each bin, of
    the last one with watches up to ``LONGEST`` times its bound.
    """

    duration_ms: npt.NDArray[np.float64]
    edge_ms: npt.NDArray[np.float64]
    mean_ms: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, duration_ms: I64, watch_ms: I64, groups: int, bins: int) -> "WatchBins":
        """From training impressions with known watch time; at least one."""
        known = duration_ms[duration_ms >= 0]
        cuts = np.unique(np.quantile(known, np.arange(1, groups) / groups)) if len(known) else np.zeros(0)
        place = cls._group(duration_ms, cuts)
        edges, means = [], []
        for group in range(len(cuts) + 2):
            watch = watch_ms[place == group] if (place == group).sum() >= bins else watch_ms
            edge = np.quantile(watch, np.arange(1, bins) / bins)
            number = np.searchsorted(edge, watch, side="left")
            # a clock that ran all night would otherwise be most of the mean
            bounded = np.minimum(watch, LONGEST * edge[-1]) if edge[-1] > 0 else watch
            total = np.bincount(number, bounded, bins)
            count = np.bincount(number, minlength=bins)
            # an empty bin (ties) stands at its own bound
            bound = np.append(edge, edge[-1])
            edges.append(edge)
            means.append(np.where(count > 0, total / np.maximum(count, 1), bound))
        return cls(cuts.astype(np.float64), np.stack(edges), np.stack(means))

    def group(self, duration_ms: I64) -> I64:
        """Duration group of videos; 0 for an unknown duration."""
        return self._group(duration_ms, self.duration_ms)

    @staticmethod
    def _group(duration_ms: I64, cuts: npt.NDArray[np.float64]) -> I64:
        group = np.searchsorted(cuts, duration_ms, side="left") + 1
        return np.where(duration_ms >= 0, group, 0).astype(np.int64)


def ordinal_targets(watch_B: Tensor, edge_BE: Tensor) -> Tensor:
    """Whether each watch lies above each bound ``[B, Q − 1]``, as floats."""
    return (watch_B[:, None] > edge_BE).to(torch.float32)


def expected_watch_ms(logit_E: Tensor, mean_Q: Tensor) -> Tensor:
    """Σ over bins of P(bin) · mean watch; ``[…, Q − 1], […, Q] → […]``.

    Exceedance probabilities are made non-increasing, as they are by definition.
    """
    above = torch.sigmoid(logit_E).cummin(dim=-1).values
    ones, zeros = torch.ones_like(above[..., :1]), torch.zeros_like(above[..., :1])
    share = torch.cat([ones, above], -1) - torch.cat([above, zeros], -1)
    return (share * mean_Q).sum(-1)


def median_watch_ms(logit_E: Tensor, edge_E: Tensor, mean_Q: Tensor) -> Tensor:
    """The watch time that is passed with probability one half, linear within a bin; ``[…, Q − 1] → […]``.

    ``edge_E`` are the bounds between bins; the first bin begins at 0, the last ends as far above its mean as
    it began below. What an absolute error and an order of pairs ask for, where the mean is drawn upwards
    by few long watches.
    """
    above = torch.sigmoid(logit_E).cummin(dim=-1).values
    ones, zeros = torch.ones_like(above[..., :1]), torch.zeros_like(above[..., :1])
    begin, end = torch.cat([ones, above], -1), torch.cat([above, zeros], -1)
    place = (end > 0.5).sum(-1, keepdim=True)
    last = 2 * mean_Q[..., -1:] - edge_E[..., -1:]
    bound = torch.cat([torch.zeros_like(last), edge_E, torch.maximum(last, edge_E[..., -1:])], -1)
    high, low = begin.gather(-1, place), end.gather(-1, place)
    within = (high - 0.5) / (high - low).clamp_min(1e-9)
    left, right = bound.gather(-1, place), bound.gather(-1, place + 1)
    return (left + within.clamp(0.0, 1.0) * (right - left)).squeeze(-1)
