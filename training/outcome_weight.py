"""How much the outcome towers count beside those that find videos: as much as validation does not mind.

A log can only reward what its policy showed, so its validation prefers what imitates that policy, where the
outcome towers say what is liked of anything. Of shares that validation hardly tells apart the largest is
right. Axes: as in :mod:`models.two_tower`.
"""

from dataclasses import replace

import numpy as np

from models.two_tower import TwoTowerShape
from training.distributed import ALONE, Ranks
from training.retrieval_validation import HeldVectors, deviation_ratio
from training.trend_shift import trend_shift

#: Scores' standard deviation over videos relative to that of the other towers' scores.
SHARES = (0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
#: Share of the best ndcg that a larger share must keep.
ENOUGH = 0.99
#: Trying ends after so many shares in a row that do not keep it.
FALLS = 2
#: Requests of a rank that are ranked for the choice.
RANKED = 1000


def outcome_weight(
    towers: HeldVectors,
    shape: TwoTowerShape,
    temperature: float,
    share: float | None,
    k: int,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """The share that the outcome columns of ``towers`` are to have, and its weight where they count once in
    them. Collective.

    ``share`` itself, or without one the largest that keeps :data:`ENOUGH` of the best ndcg@k, with the
    trend's weights fitted to the towers without outcomes.
    """
    columns, part = slice(shape.dim, shape.learnt), _part(towers, ranks)
    outcome_BE = part.user_BD[:, columns].copy()
    part.user_BD[:, columns] = 0.0
    others, apart = (part.user_BD, part.video_ND), (outcome_BE, part.video_ND[:, columns])
    unit = deviation_ratio(others, apart, ranks)
    if share is not None:
        return share, share * unit
    if shape.trend:
        shift_K = trend_shift(part, shape.trend_columns, temperature, ranks)
        part.user_BD[:, shape.trend_columns] += shift_K.astype(np.float32)
    chosen, falls = 0.0, 0
    best = part.metrics(k, ranks)[f"ndcg@{k}"]
    for tried in SHARES:
        part.user_BD[:, columns] = outcome_BE * np.float32(tried * unit)
        found = part.metrics(k, ranks)[f"ndcg@{k}"]
        best = max(best, found)
        if found >= ENOUGH * best:
            chosen, falls = tried, 0
        elif (falls := falls + 1) == FALLS:
            break
    return chosen, chosen * unit


def _part(towers: HeldVectors, ranks: Ranks) -> HeldVectors:
    """The first requests of every rank, in vectors of their own."""
    own = min(len(towers.held.requests), RANKED)
    return replace(
        towers,
        held=towers.held.take(np.arange(own)),
        users=round(ranks.sum([float(own)])[0]),
        user_BD=towers.user_BD[:own].copy(),
    )
