"""Which stage lost it? From every right video down to what was shown, step by step, adding up exactly.

A stage that only chooses (tower, index, filters) is judged by the best order its videos would allow: the
metric of a list with its right videos on top. The ranker's step is from that best order to its own
order; feed rules and campaigns are differences of the metric itself. So the steps telescope:
1 + Σ steps = the metric of the last stage, for every request and hence for every slice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from evaluation.arrays import Floats, Ints
from evaluation.bootstrap import Estimate, estimates
from evaluation.hits import Hits
from evaluation.ranking import score_requests
from evaluation.truth import Truth

NOWHERE = np.iinfo(np.int64).max

#: Steps in pipeline order and what each one lost.
STEPS = {
    "tower": "right videos that exact search did not retrieve",
    "index": "lost by the approximate index against exact search",
    "filter": "taken out by hard filters (stock, market, hidden)",
    "ranker": "the ranker's order against the best order",
    "order": "the retrieval order against the best order",
    "feed": "changed by feed rules (caps, diversity, exploration)",
    "campaign": "displaced by campaign slots",
}


@dataclass(frozen=True, slots=True)
class Waterfall:
    """``level_RP`` is what reaches each step, ``step_RP`` its loss (negative) or gain, ``final_R`` the rest.

    Rows are requests, or right videos where each counts by itself.
    """

    metric: str
    steps: list[str]
    level_RP: Floats
    step_RP: Floats
    final_R: Floats


def waterfall(stages: Mapping[str, Hits], truth: Truth, metric: str) -> Waterfall | None:
    """The steps per request between the stages that are there; None without ``exact`` or ``index``.

    ``stages`` maps ``exact``, ``index``, ``ranker``, ``feed`` and ``feed_without_campaigns`` to the hits
    of their runs.
    """
    if not {"exact", "index"} & set(stages):
        return None

    def value(hits: Hits) -> Floats:
        return score_requests(hits, truth, [metric])[:, 0]

    return _fall(metric, stages, lambda hits: value(best_order(hits, truth)), value, truth.requests)


def video_waterfall(stages: Mapping[str, Hits], truth: Truth, k: int) -> Waterfall:
    """The steps per right video [T] in recall: in the list at all, then in its top ``k``."""
    return _fall(
        f"recall@{k}",
        stages,
        lambda hits: (rank_of_truth(hits, truth) < NOWHERE).astype(np.float64),
        lambda hits: (rank_of_truth(hits, truth) <= k).astype(np.float64),
        len(truth.gain_T),
    )


def _fall(
    metric: str,
    stages: Mapping[str, Hits],
    chosen: Callable[[Hits], Floats],
    ordered: Callable[[Hits], Floats],
    rows: int,
) -> Waterfall:
    choosing = [name for name in ("exact", "index", "ranker") if name in stages]
    named = {"exact": "tower", "index": "index" if "exact" in stages else "tower", "ranker": "filter"}
    steps = [(named[name], chosen(stages[name])) for name in choosing]
    steps.append(("ranker" if "ranker" in stages else "order", ordered(stages[choosing[-1]])))
    if "feed_without_campaigns" in stages:
        steps.append(("feed", ordered(stages["feed_without_campaigns"])))
        steps.append(("campaign", ordered(stages["feed"])))
    elif "feed" in stages:
        steps.append(("feed", ordered(stages["feed"])))
    level_RP = np.stack([np.ones(rows), *(value_R for _, value_R in steps)], axis=1)
    return Waterfall(
        metric, [name for name, _ in steps], level_RP[:, :-1], np.diff(level_RP, axis=1), level_RP[:, -1]
    )


def rank_of_truth(hits: Hits, truth: Truth) -> Ints:
    """The rank of each right video [T] in the run, ``NOWHERE`` where it is not listed."""
    rank_T = np.full(len(truth.gain_T), NOWHERE)
    rank_T[hits.truth_H] = hits.rank_H
    return rank_T


def best_order(hits: Hits, truth: Truth) -> Hits:
    """The same videos with the right ones on top, most gain first: the best any ranker could do."""
    order = np.lexsort((-truth.gain_T[hits.truth_H], hits.request_H))
    request_H = hits.request_H[order]
    starts = np.flatnonzero(np.r_[True, request_H[1:] != request_H[:-1]]) if len(order) else order
    rank_H: Ints = np.arange(1, len(order) + 1) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return replace(hits, request_H=request_H, rank_H=rank_H, truth_H=hits.truth_H[order])


def step_estimates(
    fall: Waterfall, user_R: Ints, *, replicates: int, seed: int
) -> tuple[dict[str, Estimate], Estimate]:
    """The mean of every step and of the final value, with intervals over users."""
    value_RP = np.concatenate([fall.step_RP, fall.final_R[:, None]], axis=1)
    *steps, final = estimates(value_RP, user_R, replicates=replicates, seed=seed)
    return dict(zip(fall.steps, steps, strict=True)), final


def kept_videos(stages: Mapping[str, Hits], k: int) -> dict[str, tuple[int, int]]:
    """Per step (kept, offered) right videos, counted over all requests.

    ``index`` and ``filter``: of those in the list before, how many are in theirs at any rank. ``feed``
    and ``campaign``: of those the list before put *first*, how many are in the top ``k``: a rule that
    drops the best video shows here and hardly in an average.
    """
    found = {}
    feed = "feed_without_campaigns" if "feed_without_campaigns" in stages else "feed"
    pairs = [("index", "exact", "index"), ("filter", "index", "ranker"), ("feed", "ranker", feed)]
    pairs += [("campaign", "feed_without_campaigns", "feed")]
    for step, before, after in pairs:
        if before in stages and after in stages:
            chooses = step in ("index", "filter")
            offered = stages[before].truth_H[chooses | (stages[before].rank_H == 1)]
            shown = stages[after].truth_H[chooses | (stages[after].rank_H <= k)]
            found[step] = int(np.isin(offered, shown).sum()), len(offered)
    return found
