"""Which stage lost it? From every right video down to what was shown, step by step, adding up exactly.

A stage that only chooses (tower, index, filters) is judged by the best order its videos would allow: the
metric of a list with its right videos on top. The ranker's step is from that best order to its own
order; feed rules and campaigns are differences of the metric itself. So the steps telescope:
1 + Σ steps = the metric of the last stage, for every request and hence for every slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from evaluation.arrays import Bools, Floats, Ints
from evaluation.bootstrap import Estimate, estimates
from evaluation.hits import Hits
from evaluation.ranking import score_requests
from evaluation.truth import Truth

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
    """``step_RP`` is each request's loss (negative) or gain per step; ``final_R`` what was left of 1."""

    metric: str
    steps: list[str]
    step_RP: Floats
    final_R: Floats


def waterfall(
    stages: Mapping[str, Hits], truth: Truth, metric: str, kept_T: Bools | None = None
) -> Waterfall | None:
    """The steps between the stages that are there; None without ``exact`` or ``index``.

    ``stages`` maps ``exact``, ``index``, ``ranker``, ``feed`` and ``feed_without_campaigns`` to the hits
    of their runs. Requests left without a right video by ``kept_T`` are NaN throughout.
    """
    chosen = [name for name in ("exact", "index", "ranker") if name in stages]
    if not chosen or chosen == ["ranker"]:
        return None

    def value(hits: Hits) -> Floats:
        return score_requests(hits, truth, [metric], kept_T)[:, 0]

    names, values = [], []
    for name in chosen:
        names.append(
            {"exact": "tower", "index": "index" if "exact" in stages else "tower", "ranker": "filter"}[name]
        )
        values.append(value(best_order(stages[name], truth)))
    names.append("ranker" if "ranker" in stages else "order")
    values.append(value(stages[chosen[-1]]))
    if "feed" in stages:
        if "feed_without_campaigns" in stages:
            names.append("feed")
            values.append(value(stages["feed_without_campaigns"]))
        names.append("campaign" if "feed_without_campaigns" in stages else "feed")
        values.append(value(stages["feed"]))
    level_RP = np.stack([np.ones(truth.requests), *values], axis=1)
    return Waterfall(metric, names, np.diff(level_RP, axis=1), level_RP[:, -1])


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
