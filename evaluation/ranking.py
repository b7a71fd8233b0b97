"""Ranking metrics of one request each, from the ranks at which its right videos stood.

Every function takes the hits of a run up to cutoff ``k`` and returns one float64 per request ``R``. A
request that the run does not cover scores 0: leaving it out would reward a run for staying silent.
The truth has at least one right video per request, so no value is undefined; requests without truth
never reach this module (they are counted in the protocol section). All values lie in [0, 1], higher is
better; ``gain`` is graded where said, and binary (any gain is right) elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Bools, Floats, Ints, stack, sum_by
from evaluation.hits import Hits
from evaluation.truth import Truth

#: Persistence of rank-biased precision: the reader looks at the next video with this probability.
PERSISTENCE = 0.8


@dataclass(frozen=True, slots=True)
class Ranked:
    """Hits ``H`` of one run in rank order, and what the truth holds per request ``R``.

    ``ordinal_H`` numbers the hits of a request from 1; ``ideal_gain_T``/``ideal_rank_T``/``request_T``
    are the truth's videos in the best possible order.
    """

    requests: int
    request_H: Ints
    rank_H: Ints
    gain_H: Floats
    ordinal_H: Ints
    right_R: Floats
    request_T: Ints
    ideal_gain_T: Floats
    ideal_rank_T: Ints

    def per_request(self, weight_H: Floats, kept_H: Bools) -> Floats:
        """Sum of ``weight_H`` over the kept hits of each request."""
        return sum_by(self.request_H[kept_H], weight_H[kept_H], self.requests)


def ranked(hits: Hits, truth: Truth) -> Ranked:
    """Order hits and truth for the metrics below."""
    ideal = np.lexsort((-truth.gain_T, truth.request_T))
    return Ranked(
        requests=truth.requests,
        request_H=hits.request_H,
        rank_H=hits.rank_H,
        gain_H=truth.gain_T[hits.truth_H],
        ordinal_H=_ordinal(hits.request_H),
        right_R=np.bincount(truth.request_T, minlength=truth.requests).astype(np.float64),
        request_T=truth.request_T[ideal],
        ideal_gain_T=truth.gain_T[ideal],
        ideal_rank_T=_ordinal(truth.request_T[ideal]),
    )


def recall(data: Ranked, k: int) -> Floats:
    """Share of the right videos found in the top ``k``: |hits@k| / |right|.

    The denominator is every right video, not min(k, right), as trec_eval's ``recall_k`` and the
    published retrieval tables have it; so recall@k cannot reach 1 where a request has more than ``k``.
    Source: van Rijsbergen, Information Retrieval, 1979, ch. 7.
    """
    return data.per_request(np.ones(len(data.rank_H)), data.rank_H <= k) / data.right_R


def precision(data: Ranked, k: int) -> Floats:
    """Right videos in the top ``k`` divided by ``k``, also where the run returned fewer than ``k``.

    Source: van Rijsbergen, Information Retrieval, 1979, ch. 7; trec_eval ``P_k``.
    """
    return data.per_request(np.ones(len(data.rank_H)), data.rank_H <= k) / k


def hit(data: Ranked, k: int) -> Floats:
    """1 where at least one right video is in the top ``k``, else 0 (trec_eval ``success_k``; "HR@k").

    Source: Deshpande and Karypis, Item-based top-N recommendation algorithms, TOIS 2004.
    """
    return (data.per_request(np.ones(len(data.rank_H)), data.rank_H <= k) > 0).astype(np.float64)


def mrr(data: Ranked, k: int) -> Floats:
    """Reciprocal rank of the first right video within the top ``k``, 0 where there is none.

    Source: Kantor and Voorhees, The TREC-5 confusion track, 2000.
    """
    first = (data.ordinal_H == 1) & (data.rank_H <= k)
    return data.per_request(1.0 / data.rank_H, first)


def average_precision(data: Ranked, k: int) -> Floats:
    """Mean over all right videos of the precision at their rank; 0 for those below ``k`` ("MAP@k").

    Divided by the number of right videos, not min(k, right): trec_eval ``map_cut_k``.
    Source: Harman, Overview of TREC-2, 1993; Buckley and Voorhees 2000.
    """
    return data.per_request(data.ordinal_H / data.rank_H, data.rank_H <= k) / data.right_R


def ndcg(data: Ranked, k: int) -> Floats:
    """Normalised discounted cumulative gain with the truth's own gain and discount 1/log2(rank + 1).

    DCG@k of the run over DCG@k of the truth in its best order. The gain enters linearly (trec_eval
    ``ndcg_cut_k``); for exponential gain write 2^grade − 1 into the truth.
    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002.
    """
    found = data.per_request(data.gain_H / np.log2(data.rank_H + 1.0), data.rank_H <= k)
    kept = data.ideal_rank_T <= k
    discounted = data.ideal_gain_T[kept] / np.log2(data.ideal_rank_T[kept] + 1.0)
    return found / sum_by(data.request_T[kept], discounted, data.requests)


def rank_biased_precision(data: Ranked, k: int) -> Floats:
    """(1 − p) Σ p^(rank − 1) over right videos in the top ``k``, persistence p = 0.8.

    The chance that a viewer who scrolls on with probability p is looking at a right video; it cannot
    reach 1 on a short list. Source: Moffat and Zobel, Rank-biased precision, TOIS 2008.
    """
    return data.per_request((1.0 - PERSISTENCE) * np.power(PERSISTENCE, data.rank_H - 1.0), data.rank_H <= k)


METRICS: dict[str, Callable[[Ranked, int], Floats]] = {
    "recall": recall,
    "ndcg": ndcg,
    "hit": hit,
    "mrr": mrr,
    "precision": precision,
    "map": average_precision,
    "rbp": rank_biased_precision,
}


def score_requests(hits: Hits, truth: Truth, names: list[str]) -> Floats:
    """Values [R, M] of metrics named like ``recall@20``, one column each, in the order given."""
    data = ranked(hits, truth)
    return stack([METRICS[kind](data, k) for kind, k in map(parse_metric, names)], truth.requests)


def parse_metric(name: str) -> tuple[str, int]:
    """``recall@20`` → (``recall``, 20). Raises ValueError naming what is known."""
    kind, _, cutoff = name.partition("@")
    if kind not in METRICS or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(
            f"metric {name!r} is not one of {', '.join(METRICS)} followed by @k, such as ndcg@20"
        )
    return kind, int(cutoff)


def _ordinal(sorted_rows: Ints) -> Ints:
    """1, 2, 3, … within each run of equal rows. ``[4, 4, 9]`` → ``[1, 2, 1]``."""
    starts = (
        np.flatnonzero(np.r_[True, sorted_rows[1:] != sorted_rows[:-1]]) if len(sorted_rows) else sorted_rows
    )
    lengths = np.diff(np.r_[starts, len(sorted_rows)])
    return np.arange(1, len(sorted_rows) + 1) - np.repeat(starts, lengths)
