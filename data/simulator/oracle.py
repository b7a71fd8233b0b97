"""The best ranking there can be, and how near to it another one comes.

The log shows only what its policy chose to show, so on logged truths the oracle is no upper bound: a
model that imitates the policy may pass it. :func:`expected_ndcg` has no such flaw: it grades a ranking
by true expectations, whether or not anybody was shown the video. Axes: ``U`` users, ``K`` ranks, ``N``
videos.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.simulator.market import Market, Time
from data.simulator.taste import F64, I64, Bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to rank for: the best ``quantity`` at ``time`` on ``surface``.

    ``among_N`` limits the candidates (say, to cold videos), None for all; ``seen`` maps a user id to the
    video ids that are masked for that user.
    """

    time: Time
    quantity: str = "long_view"
    surface: str = "feed"
    among_N: Bool | None = None
    seen: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)


def candidate_scores(market: Market, user_id: int, question: Question) -> F64:
    """True expectation of every video for one user, -inf for what is not a candidate, float64 [N]."""
    scores = market.oracle_scores(
        user_id, question.time, quantity=question.quantity, surface=question.surface
    )
    if question.among_N is not None:
        scores[~question.among_N] = -np.inf
    if user_id in question.seen:
        scores[np.isin(market.video_ids, question.seen[user_id])] = -np.inf
    return scores


def expected_ndcg(
    market: Market, user_ids: Sequence[int], ranked_UK: npt.NDArray[np.int64], question: Question, k: int = 20
) -> F64:
    """True expected gain of each user's ranking over that of the best ranking, float64 [U] in [0, 1].

    ``ranked_UK`` holds video ids, best first (entries that are no candidates, such as -1, gain nothing);
    rank r counts 1 / log2(r + 1). A user without candidates of positive expectation gets NaN. A video id
    twice in one row gains once, at its first rank.
    """
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    result = np.full(len(user_ids), np.nan)
    for row, user_id in enumerate(user_ids):
        gain = np.maximum(candidate_scores(market, int(user_id), question), 0.0)
        best = np.sort(_largest(gain, k))[::-1]
        ideal = float(best @ discount[: len(best)])
        if ideal > 0:
            result[row] = (
                float(_gains(market, gain, ranked_UK[row, :k]) @ discount[: ranked_UK.shape[1]]) / ideal
            )
    return result


def oracle_run(
    market: Market, user_ids: Sequence[int], question: Question, *, k: int = 100, split: str = "test"
) -> pa.Table:
    """The oracle's ranking as a run table; ``request_id`` is ``<split>:<user_id>``, ranks begin at 1."""
    blocks = list(_ranked(market, user_ids, question, k))
    lengths = np.array([len(score) for _, score in blocks], dtype=np.int64)
    names = pa.array([f"{split}:{user_id}" for user_id in user_ids], type=pa.string())
    rank = [np.arange(1, length + 1, dtype=np.int64) for length in lengths]
    return pa.table(
        {
            "request_id": names.take(pa.array(np.repeat(np.arange(len(lengths)), lengths))),
            "video_id": np.concatenate([ids for ids, _ in blocks] or [np.zeros(0, dtype=np.int64)]),
            "rank": np.concatenate(rank or [np.zeros(0, dtype=np.int64)]),
            "score": np.concatenate([score for _, score in blocks] or [np.zeros(0)]),
        }
    )


def _ranked(market: Market, user_ids: Sequence[int], question: Question, k: int) -> Iterator[tuple[I64, F64]]:
    for user_id in user_ids:
        scores = candidate_scores(market, int(user_id), question)
        top = np.argsort(-scores, kind="stable")[:k]
        top = top[np.isfinite(scores[top])]
        yield market.video_ids[top], scores[top]


def _largest(values: F64, count: int) -> F64:
    return values if len(values) <= count else np.partition(values, len(values) - count)[-count:]


def _gains(market: Market, gain_N: F64, ranked: npt.NDArray[np.int64]) -> F64:
    rows = np.minimum(np.searchsorted(market.video_ids, ranked), len(gain_N) - 1)
    gain = np.where(market.video_ids[rows] == ranked, gain_N[rows], 0.0)
    again = np.ones(len(ranked), dtype=np.bool_)
    again[np.unique(ranked, return_index=True)[1]] = False
    gain[again] = 0.0
    return gain
