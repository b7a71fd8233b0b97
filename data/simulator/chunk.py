"""One day of a chunk of users: requests, slates, outcomes and the moments at which all that happens.

Axes: ``U`` active users, ``P`` pool slots, ``S`` steps of a user's day, ``n`` impressions in the order of
(user, time).
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.behaviour import Exposure
from data.simulator.campaigns import CAMPAIGN_POSITION
from data.simulator.outcomes import Outcomes, draw
from data.simulator.policy import Candidates, Choices, draw_sequences, weights
from data.simulator.pools import Pools, policy_score
from data.simulator.sessions import Requests, draw_requests, first_within, rank_within, session_starts
from data.simulator.settings import DAY_MS
from data.simulator.shopping import is_weekend
from data.simulator.taste import F32, F64, I64, Bool
from data.simulator.world import World

#: Pause before each video, and before each further slate of a session, in ms.
SWIPE_MS, NEXT_SLATE_MS = (250, 1_200), 1_500


@dataclass(frozen=True, slots=True)
class Day:
    """What is fixed for day ``number``: the pools, ``campaign_R`` (the share of campaign positions that goes
    to the campaign of each region) and ``stock_out_day`` of every product.
    """

    number: int
    pools: Pools
    campaign_R: F64
    stock_out_day: I64


@dataclass(frozen=True, slots=True)
class Audience:
    """Users (rows) who draw from the rows ``pool_U`` of the day's pools what ``left_UP`` leaves them."""

    user: I64
    pool_U: I64
    left_UP: Bool

    def take(self, rows: I64) -> "Audience":
        """The users at ``rows``."""
        return Audience(self.user[rows], self.pool_U[rows], self.left_UP[rows])


@dataclass(frozen=True, slots=True)
class Impressions:
    """n impressions of one day. ``row`` is the user's row in the chunk, ``request`` numbers slates from 0
    within the user's day; ``time_ms`` counts from the day's midnight; ``kept`` is false for what would
    have begun after midnight (never logged).
    """

    row: I64
    exposure: Exposure
    outcomes: Outcomes
    request: I64
    time_ms: I64
    propensity: F64
    random: Bool
    by_campaign: Bool
    kept: Bool


def simulate_chunk(rng: np.random.Generator, world: World, day: Day, audience: Audience) -> Impressions:
    """Simulate one day of the audience."""
    size = world.settings.slate_size
    left_U = audience.left_UP.sum(axis=1)
    # At most half of what is left, so that a slate seldom has to scrape the bottom of its pool.
    most_U = np.minimum(np.maximum(left_U // (2 * size), 1), left_U)
    weekend = bool(is_weekend(world, np.array([day.number]))[0])
    requests = draw_requests(rng, world, audience.user, weekend=weekend, most_U=most_U)
    active, requests_U = np.unique(requests.user, return_counts=True)
    length = np.minimum(requests_U * size, left_U[active])
    choices = _choose(rng, world, day, audience.take(active), requests, length)
    user, step = np.nonzero(np.arange(choices.slot_US.shape[1]) < length[:, None])
    first_request = np.concatenate([[0], np.cumsum(requests_U)])[:-1]
    request = first_request[user] + step // size
    row = active[user]
    exposure = Exposure(
        user=audience.user[row],
        video=day.pools.video_SP[audience.pool_U[row], choices.slot_US[user, step]].astype(np.int64),
        day=np.full(len(user), day.number, dtype=np.int64),
        surface=requests.surface[request],
        position=step % size,
    )
    outcomes = draw(world, exposure, day.stock_out_day, rng)
    time_ms = _times(rng, requests, request, exposure.position, outcomes.watch_ms)
    return Impressions(
        row=row,
        exposure=exposure,
        outcomes=outcomes,
        request=step // size,
        time_ms=time_ms,
        propensity=choices.propensity_US[user, step],
        random=requests.random[request],
        by_campaign=choices.by_campaign_US[user, step],
        kept=time_ms < DAY_MS,
    )


def scores(world: World, pools: Pools, audience: Audience) -> F32:
    """The policy's score of every candidate, float32 [U, P]; slots without a video hold anything."""
    score = np.empty(audience.left_UP.shape, dtype=np.float32)
    for pool in np.unique(audience.pool_U):
        rows = np.flatnonzero(audience.pool_U == pool)
        video = pools.video_SP[pool]
        taste = world.users.policy_taste_UD[audience.user[rows]]
        affinity = taste @ world.videos.vector_ND[video].T
        score[rows] = policy_score(world, affinity, world.videos.quality[video])
    return score


def _choose(
    rng: np.random.Generator, world: World, day: Day, audience: Audience, requests: Requests, length: I64
) -> Choices:
    size = world.settings.slate_size
    steps = int(length.max(initial=0))
    random_UQ = np.zeros((len(length), -(-steps // size)), dtype=np.bool_)
    row = np.unique(requests.user, return_inverse=True)[1]
    random_UQ[row, rank_within(requests.user)] = requests.random
    random_US = np.repeat(random_UQ, size, axis=1)[:, :steps]
    at_campaign = np.arange(steps) % size == CAMPAIGN_POSITION
    share_U = day.campaign_R[world.users.region[audience.user]]
    weight_UP = weights(scores(world, day.pools, audience), audience.left_UP, world.settings.policy_sharpness)
    return draw_sequences(
        rng,
        Candidates(weight_UP, audience.left_UP, day.pools.campaign_S[audience.pool_U]),
        explore_US=np.where(random_US, 1.0, world.settings.explore_share),
        campaign_US=np.where(random_US | ~at_campaign, 0.0, share_U[:, None]),
        length_U=length,
    )


def _times(rng: np.random.Generator, requests: Requests, request: I64, position: I64, watch_ms: I64) -> I64:
    """The moment of each impression, ms of the day: one video after the other, sessions never overlap."""
    session = requests.session[request]
    first = first_within(session)
    opening = first == np.arange(len(session))
    pause = rng.integers(*SWIPE_MS, size=len(session))
    pause += np.where((position == 0) & ~opening, NEXT_SLATE_MS, 0)
    elapsed = np.cumsum(pause + watch_ms)
    begin_in_session = elapsed - watch_ms - (elapsed - watch_ms - pause)[first]
    heads = np.flatnonzero(opening)
    ends = np.append(heads[1:], len(session)) - 1
    length_ms = (begin_in_session + watch_ms)[ends] if len(ends) else np.zeros(0, dtype=np.int64)
    start = session_starts(requests.user[request[heads]], requests.begin_ms[request[heads]], length_ms)
    return np.repeat(start, ends - heads + 1) + begin_in_session
