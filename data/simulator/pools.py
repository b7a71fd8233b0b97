"""The retrieval stage of the logging system: one pool of candidates per segment of users and day.

A segment is a market times the cluster nearest to what the policy knows of the user. Its pool holds, in
this order, the videos of the running campaign, the best by (noisy) segment score, fresh videos, and a
uniform sample of everything eligible, so that every live video can be shown. A pool is fixed for the
day; it is part of the context that a propensity is conditional on. Axes: ``S`` segments, ``P`` slots.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.campaigns import Campaign
from data.simulator.streams import generator
from data.simulator.taste import F32, I32, I64
from data.simulator.world import World

BEST_SHARE, FRESH_SHARE, FRESH_DAYS = 0.55, 0.15, 3
SEGMENT_NOISE = 0.8
POLICY_QUALITY = 0.6


@dataclass(frozen=True, slots=True)
class Pools:
    """``segment`` int64 [S] ascending; ``video_SP`` int32 rows or -1; the first ``campaign_S`` slots of a
    pool are the campaign's.
    """

    segment: I64
    video_SP: I32
    campaign_S: I64


def segments(world: World) -> I64:
    """The segments that have users, ascending."""
    return np.unique(world.users.segment)


def draw_pools(world: World, day: int, campaigns: dict[int, Campaign]) -> Pools:
    """Draw all pools of ``day``; ``campaigns`` maps a region to the campaign that runs there."""
    rng = generator(world.seed, "pools", day)
    present = segments(world)
    region, cluster = np.divmod(present, len(world.clusters.weight_C))
    size = world.settings.pool_size
    video_SP = np.full((len(present), size), -1, dtype=np.int32)
    campaign_S = np.zeros(len(present), dtype=np.int64)
    live = world.videos.live_day <= day
    for place in np.unique(region):
        eligible = np.flatnonzero(live & world.videos.market_NR[:, place])
        promoted = campaigns[place].video if place in campaigns else np.zeros(0, dtype=np.int64)
        promoted = promoted[: size // 2]
        rest = np.setdiff1d(eligible, promoted, assume_unique=True)
        fresh = day - world.videos.live_day[rest] < FRESH_DAYS
        vector, quality = world.videos.vector_ND[rest], world.videos.quality[rest]
        for row in np.flatnonzero(region == place):
            score = policy_score(world, world.clusters.centroid_CD[cluster[row]] @ vector.T, quality)
            chosen = np.concatenate([promoted, rest[_fill(rng, score, fresh, size - len(promoted))]])
            video_SP[row, : len(chosen)] = chosen
            campaign_S[row] = len(promoted)
    return Pools(present, video_SP, campaign_S)


def policy_score(world: World, affinity: F32, quality: F32) -> F32:
    """The score by which the logging policy ranks, in the logit units of a click."""
    return np.asarray(
        np.float32(world.settings.taste_strength) * affinity + np.float32(POLICY_QUALITY) * quality
    )


def _fill(rng: np.random.Generator, score: F32, fresh: np.ndarray, size: int) -> I64:
    """Up to ``size`` distinct rows of ``score``: the best, then fresh ones, then any."""
    if len(score) <= size:
        return np.arange(len(score))
    noisy = score + SEGMENT_NOISE * rng.standard_normal(len(score), dtype=np.float32)
    best = _top(noisy, int(BEST_SHARE * size))
    key = rng.random(len(score), dtype=np.float32)
    key[best] = -1.0
    young = np.flatnonzero(fresh & (key >= 0))
    young = young[_top(key[young], int(FRESH_SHARE * size))]
    key[young] = -1.0
    return np.concatenate([best, young, _top(key, size - len(best) - len(young))])


def _top(score: F32, count: int) -> I64:
    """Rows of the ``count`` largest scores in ascending order of row."""
    count = min(count, len(score))
    if count == len(score):
        return np.arange(count)
    return np.sort(np.argpartition(-score, count)[:count])
