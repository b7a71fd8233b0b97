"""The propensities of a whole log once more, from the tables and the truth alone.

With the logging policy's own settings this gives back the recorded propensities, which verifies them.
With other settings it gives the probability that another policy would have made the same choice in the
same place: what an off-policy estimator divides by the recorded one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset import Dataset
from data.simulator.campaigns import CAMPAIGN_POSITION
from data.simulator.chunk import Audience, scores
from data.simulator.log import USERS_PER_CHUNK
from data.simulator.market import Market, rows_of
from data.simulator.policy import POLICIES, weights
from data.simulator.shown import Shown
from data.simulator.taste import F64, I64


@dataclass(frozen=True, slots=True)
class Target:
    """A policy on the same pools: the softmax's sharpness, its share of exploration, and whether campaigns
    get their slots. It answers every request, also those that the log answered at random.
    """

    sharpness: float
    explore_share: float
    campaigns: bool = False


def retrace(market: Market, dataset: Dataset, target: Target | None = None) -> Iterator[pa.Array]:
    """Yield float64 propensities for each file of ``events``, row for row; None is the logging policy."""
    world, ledger = market.world, market.ledger
    users = np.argsort(world.users.segment, kind="stable")
    order_of = np.argsort(users)
    pool_of = np.searchsorted(ledger.segment, world.users.segment)
    shown = Shown(len(users))
    for day, file in enumerate(dataset.files("events")):
        table = pq.read_table(file, columns=["user_id", "video_id", "position", "policy"])
        user = rows_of(world.users.id, table["user_id"].to_numpy(), "user_id")
        video = rows_of(world.videos.id, table["video_id"].to_numpy(), "video_id")
        position = table["position"].to_numpy()
        random = np.asarray(table["policy"].combine_chunks().to_numpy(zero_copy_only=False) == POLICIES[1])
        offset = np.searchsorted(order_of[user], np.arange(len(users) + 1))
        propensity = np.empty(len(user))
        for first in range(0, len(users), USERS_PER_CHUNK):
            chunk = users[first : first + USERS_PER_CHUNK]
            last = first + len(chunk)
            pools = ledger.pools(day)
            left_UP = shown.left(first, last, pool_of[chunk], pools.video_SP, len(world.videos))
            audience = Audience(chunk, pool_of[chunk], left_UP)
            here = slice(offset[first], offset[last])
            explore, campaign = _shares(market, day, user[here], position[here], random[here], target)
            sharpness = world.settings.policy_sharpness if target is None else target.sharpness
            weight_UP = weights(scores(world, pools, audience), left_UP, sharpness)
            row = order_of[user[here]] - first
            slot = np.argmax(pools.video_SP[audience.pool_U[row]] == video[here, None], axis=1)
            promoted = slot < pools.campaign_S[audience.pool_U[row]]
            promotable_UP = left_UP & (
                np.arange(left_UP.shape[1]) < pools.campaign_S[audience.pool_U][:, None]
            )
            weight = weight_UP[row, slot]
            mass = weight_UP.sum(axis=1)[row] - _before(row, weight)
            left = left_UP.sum(axis=1)[row] - _before(row, np.ones(len(row)))
            promotable = promotable_UP.sum(axis=1)[row] - _before(row, promoted.astype(np.float64))
            campaign = np.where(promotable > 0, campaign, 0.0)
            propensity[here] = (1 - campaign) * ((1 - explore) * weight / mass + explore / left)
            propensity[here] += np.where(promoted, campaign / np.maximum(promotable, 1), 0.0)
            shown.add(np.diff(offset[first : last + 1]), video[here])
        shown.end_day()
        yield pa.array(propensity)


def _shares(
    market: Market, day: int, user: I64, position: I64, random: np.ndarray, target: Target | None
) -> tuple[F64, F64]:
    settings = market.world.settings
    campaign = market.ledger.campaign_TR[day, market.world.users.region[user]]
    campaign = np.where(position == CAMPAIGN_POSITION, campaign, 0.0)
    if target is None:
        return np.where(random, 1.0, settings.explore_share), np.where(random, 0.0, campaign)
    return np.full(len(user), target.explore_share), campaign * target.campaigns


def _before(row: I64, value: F64) -> F64:
    """Sum of ``value`` over the earlier entries of the same row; equal rows stand together."""
    total = np.cumsum(value) - value
    start = np.ones(len(row), dtype=np.bool_)
    start[1:] = row[1:] != row[:-1]
    return total - total[np.maximum.accumulate(np.where(start, np.arange(len(row)), 0))]
