"""Does the model give every user the same videos? The signs, measured before a model is served.

Axes: U users, K list length, N catalogue rows, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.exact import Rows, Vectors

#: Videos over which the spread of scores is taken.
SPREAD_VIDEOS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseReport:
    """What top-K lists of U users look like together.

    ``distinct_share``: distinct videos shown, as a share of the most there could be, min(N, U·K), in
    (0, 1]. ``overlap``: mean share of one user's list that the next user has too, 0 to 1.
    ``exposure_gini`` over the catalogue: 0 when all videos are shown equally often, near 1 when few are.
    ``score_spread``: mean standard deviation of a user's scores over videos; ``user_spread``: of a
    video's scores over users. 0 in either means that the towers say nothing.
    """

    users: int
    k: int
    distinct_videos: int
    distinct_share: float
    overlap: float
    exposure_gini: float
    score_spread: float
    user_spread: float


def collapse_report(lists: Sequence[Rows], k: int, vectors_ND: Vectors, user_UD: Vectors) -> CollapseReport:
    """Measure the lists (at most ``k`` rows each) and the scores behind them. Needs at least one user."""
    shown = np.bincount(np.concatenate(lists), minlength=len(vectors_ND))[1:]
    step = -(-max(1, len(vectors_ND) - 1) // SPREAD_VIDEOS)
    score_UV = user_UD.astype(np.float64) @ vectors_ND[1::step].astype(np.float64).T
    pairs = zip(lists, [*lists[1:], lists[0]], strict=True)
    overlaps = [len(np.intersect1d(mine, theirs)) / max(1, len(mine)) for mine, theirs in pairs]
    return CollapseReport(
        users=len(lists), k=k, distinct_videos=int((shown > 0).sum()),
        distinct_share=float((shown > 0).sum() / max(1, min(len(shown), len(lists) * k))),
        overlap=float(np.mean(overlaps)), exposure_gini=gini(shown),
        score_spread=float(score_UV.std(axis=1).mean()), user_spread=float(score_UV.std(axis=0).mean()),
    )  # fmt: skip


def gini(counts: NDArray[np.int64]) -> float:
    """Gini coefficient of non-negative counts, 0 (all equal, or none at all) to nearly 1 (one has all)."""
    total, size = counts.sum(), len(counts)
    if not total:
        return 0.0
    rank = np.arange(1, size + 1)
    return float(2 * (rank * np.sort(counts)).sum() / (size * total) - (size + 1) / size)
