"""When users open the app and how many slates they ask for.

Axes: ``U`` users of a chunk, ``Q`` requests in the order of (user, session, time).
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.region import REGIONS
from data.simulator.settings import DAY_MS
from data.simulator.taste import F32, I64, Bool, draw_weighted
from data.simulator.world import World

#: Relative number of sessions that begin in each local hour.
HOURS = np.array(
    [3, 2, 1, 1, 1, 2, 4, 6, 7, 6, 6, 7, 9, 8, 6, 6, 7, 9, 11, 13, 14, 14, 11, 7], dtype=np.float64
)
SLATES_PER_SESSION, MOST_SLATES = 1.7, 8
WEEKEND_ACTIVITY = 1.15
SHOP_LOGIT, SHOP_WISH, DISCOVER_SHARE = -1.7, 0.6, 0.15


@dataclass(frozen=True, slots=True)
class Requests:
    """One row per slate: ``user`` is the row in the chunk, ``session`` numbers sessions from 0 in order,
    ``begin_ms`` is when the session would begin (ms of the day) were the user not still busy.
    """

    user: I64
    session: I64
    begin_ms: I64
    surface: I64
    random: Bool


def draw_requests(
    rng: np.random.Generator, world: World, users: I64, *, weekend: bool, most_U: I64
) -> Requests:
    """Draw one day's slates of ``users`` (rows of the world); at most ``most_U`` each."""
    mean_activity = (5 + 2 * WEEKEND_ACTIVITY) / 7
    activity = (WEEKEND_ACTIVITY if weekend else 1.0) / mean_activity
    rate = world.users.slate_rate[users] * activity / SLATES_PER_SESSION
    session_user = np.repeat(np.arange(len(users)), rng.poisson(rate))
    count = len(session_user)
    region = world.users.region[users[session_user]]
    offset = np.array([place.utc_offset_hours for place in REGIONS])
    hour = (draw_weighted(rng, HOURS, count) - offset[region]) % 24
    begin_ms = ((hour + rng.random(count)) * (DAY_MS / 24)).astype(np.int64)
    order = np.lexsort((begin_ms, session_user))
    session_user, begin_ms = session_user[order], begin_ms[order]
    surface = _surfaces(rng, world.users.shop_bias[users[session_user]])
    slates = np.minimum(rng.geometric(1 / SLATES_PER_SESSION, count), MOST_SLATES)
    session = np.repeat(np.arange(count), slates)
    user = session_user[session]
    keep = rank_within(user) < most_U[user]
    session, user = session[keep], user[keep]
    return Requests(
        user=user,
        session=session,
        begin_ms=begin_ms[session],
        surface=surface[session],
        random=rng.random(len(user)) < world.settings.random_request_share,
    )


def session_starts(user: I64, begin_ms: I64, length_ms: I64) -> I64:
    """When sessions really begin: as wished, or when the user's session before has ended.

    Rows are sessions in the order of (user, wished begin); ``length_ms`` is how long each takes.
    ``user=[0, 0, 1], begin=[10, 20, 5], length=[30, 1, 1]`` begin at ``[10, 40, 5]``.
    """
    total = np.cumsum(length_ms) - length_ms
    before = total - total[first_within(user)]
    # Idle time only grows within a user; a step larger than any day keeps users apart in one pass.
    step = np.int64(1) << 40
    idle = np.maximum.accumulate(begin_ms - before + user * step) - user * step
    return np.asarray(idle + before)


def first_within(group: I64) -> I64:
    """For each row the first row of its group; equal groups stand together."""
    start = np.ones(len(group), dtype=np.bool_)
    start[1:] = group[1:] != group[:-1]
    return np.maximum.accumulate(np.where(start, np.arange(len(group)), 0))


def rank_within(group: I64) -> I64:
    """For each row its number (from 0) within its group; equal groups stand together."""
    return np.arange(len(group)) - first_within(group)


def _surfaces(rng: np.random.Generator, shop_bias: F32) -> I64:
    """Surface row of each session: who likes to shop opens the shop more often."""
    shop = 1.0 / (1.0 + np.exp(-(SHOP_LOGIT + SHOP_WISH * shop_bias)))
    dice = rng.random(len(shop_bias))
    return np.where(dice < shop, 1, np.where(dice < shop + DISCOVER_SHARE * (1 - shop), 2, 0))
