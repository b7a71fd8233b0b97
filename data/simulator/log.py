"""Day after day of the market onto disk: ``events/`` and ``actions/``, in memory bounded by one chunk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.schema import TIME
from data.simulator.behaviour import REACTIONS, SURFACES
from data.simulator.chunk import Audience, Day, Impressions, simulate_chunk
from data.simulator.ledger import Ledger, pace_campaigns, running_campaigns, sell_out
from data.simulator.policy import POLICIES
from data.simulator.pools import draw_pools
from data.simulator.region import REGIONS
from data.simulator.settings import DAY_MS
from data.simulator.shown import Shown
from data.simulator.streams import generator
from data.simulator.tables import product_ids
from data.simulator.taste import I64
from data.simulator.world import World

USERS_PER_CHUNK = 2_048
LABELS_IN_EVENTS = ("click", "long_view", *REACTIONS, "hide", "product_click")
EVENTS = pa.schema(
    [
        ("user_id", pa.int64()), ("video_id", pa.int64()), ("event_time", TIME), ("request_id", pa.string()),
        ("position", pa.int32()), ("surface", pa.string()), ("market", pa.string()), ("watch_ms", pa.int64()),
        *((label, pa.bool_()) for label in LABELS_IN_EVENTS),
        ("product_id", pa.int64()), ("propensity", pa.float64()), ("policy", pa.string()),
        ("campaign_id", pa.string()),
    ]
)  # fmt: skip
ACTIONS = pa.schema(
    [
        ("user_id", pa.int64()), ("video_id", pa.int64()), ("action", pa.string()), ("action_time", TIME),
        ("product_id", pa.int64()), ("order_value_minor", pa.int64()), ("currency", pa.string()),
        ("request_id", pa.string()),
    ]
)  # fmt: skip
#: Columns in which values repeat; the others are nearly all distinct and are written plainly.
_REPEATING = ["user_id", "request_id", "surface", "market", "policy", "campaign_id", "action", "currency"]


@dataclass(slots=True)
class LogCounts:
    """Rows written so far, and carts and orders that came after the end of the log."""

    impressions: int = 0
    carts: int = 0
    orders: int = 0
    after_the_end: int = 0


def simulate_days(world: World, ledger: Ledger, out: Path) -> Iterator[LogCounts]:
    """Write the log into ``out`` and fill ``ledger``; yields the running counts after every chunk.

    The iterator must be exhausted. Files: ``events/day-0000.parquet`` … and ``actions/`` alike, rows in the
    order of user and time.
    """
    users = np.argsort(world.users.segment, kind="stable")
    pool_of = np.searchsorted(ledger.segment, world.users.segment)
    shown, counts = Shown(len(users)), LogCounts()
    sold = np.zeros(len(world.products), dtype=np.int64)
    for table in ("events", "actions"):
        (out / table).mkdir()
    for number in range(world.settings.days):
        pools = draw_pools(world, number, pace_campaigns(world, ledger, number))
        ledger.video_TSP[number], ledger.campaign_slots_TS[number] = pools.video_SP, pools.campaign_S
        day = Day(number, pools, ledger.campaign_TR[number], ledger.stock_out_day)
        with (
            _writer(out / "events", number, EVENTS) as events,
            _writer(out / "actions", number, ACTIONS) as actions,
        ):
            for first in range(0, len(users), USERS_PER_CHUNK):
                chunk = users[first : first + USERS_PER_CHUNK]
                last = first + len(chunk)
                left_UP = shown.left(first, last, pool_of[chunk], pools.video_SP, len(world.videos))
                rng = generator(world.seed, "log", number, first)
                happened = simulate_chunk(rng, world, day, Audience(chunk, pool_of[chunk], left_UP))
                kept = np.flatnonzero(happened.kept)
                videos_U = np.bincount(happened.row[kept], minlength=len(chunk))
                shown.add(videos_U, happened.exposure.video[kept])
                requests = _request_ids(world, happened, number)
                events.write_table(_events_table(world, happened, number, requests, kept))
                actions.write_table(_actions_table(world, happened, number, requests, counts))
                _account(world, ledger, happened, number, sold)
                counts.impressions += len(kept)
                yield counts
        shown.end_day()
        sell_out(world, ledger, sold, number)


def _writer(folder: Path, day: int, schema: pa.Schema) -> pq.ParquetWriter:
    columns = [name for name in schema.names if name in _REPEATING]
    return pq.ParquetWriter(
        folder / f"day-{day:04d}.parquet",
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=columns,
    )


def _request_ids(world: World, happened: Impressions, day: int) -> pa.Array:
    """``<day>-<user id>-<number of the slate in the user's day>`` for every impression."""
    user, request = happened.exposure.user, happened.request
    change = np.ones(len(user), dtype=np.bool_)
    change[1:] = (user[1:] != user[:-1]) | (request[1:] != request[:-1])
    heads = np.flatnonzero(change)
    parts = (world.users.id[user[heads]], request[heads])
    names = pc.binary_join_element_wise(str(day), *(pa.array(part).cast(pa.string()) for part in parts), "-")
    return names.take(pa.array(np.cumsum(change) - 1))


def _events_table(world: World, happened: Impressions, day: int, requests: pa.Array, kept: I64) -> pa.Table:
    exposure, outcomes = happened.exposure, happened.outcomes
    region = world.users.region[exposure.user]
    campaign = np.full(world.settings.markets, -1, dtype=np.int64)
    for place, row in running_campaigns(world, day).items():
        campaign[place] = row
    columns = {
        "user_id": world.users.id[exposure.user],
        "video_id": world.videos.id[exposure.video],
        "event_time": _moment(world, day, happened.time_ms),
        "request_id": requests,
        "position": exposure.position.astype(np.int32),
        "surface": pa.array(SURFACES).take(pa.array(exposure.surface)),
        "market": pa.array([place.market for place in REGIONS]).take(pa.array(region)),
        "watch_ms": outcomes.watch_ms,
        **outcomes.labels,
        "product_id": product_ids(world.products, outcomes.purchases.product),
        "propensity": happened.propensity,
        "policy": pa.array(POLICIES).take(pa.array(happened.random.astype(np.int64))),
        "campaign_id": pa.array([item.campaign_id for item in world.campaigns], type=pa.string()).take(
            pa.array(campaign[region], mask=~happened.by_campaign)
        ),
    }
    table = pa.table([columns[name] for name in EVENTS.names], schema=EVENTS)
    return table if len(kept) == len(table) else table.take(pa.array(kept))


def _actions_table(
    world: World, happened: Impressions, day: int, requests: pa.Array, counts: LogCounts
) -> pa.Table:
    bought, exposure = happened.outcomes.purchases, happened.exposure
    row = np.concatenate([bought.cart, bought.order])
    delay = np.concatenate([bought.cart_delay_ms, bought.order_delay_ms])
    is_order = np.arange(len(row)) >= len(bought.cart)
    units = np.concatenate([np.zeros(len(bought.cart), dtype=np.int64), bought.units])
    time_ms = happened.time_ms[row] + delay
    late = time_ms + day * DAY_MS >= world.settings.days * DAY_MS
    known = happened.kept[row] & ~late
    counts.after_the_end += int((happened.kept[row] & late).sum())
    counts.carts += int((known & ~is_order).sum())
    counts.orders += int((known & is_order).sum())
    row, is_order, units, time_ms = row[known], is_order[known], units[known], time_ms[known]
    product, region = bought.product[row], world.users.region[exposure.user[row]]
    columns = {
        "user_id": world.users.id[exposure.user[row]],
        "video_id": world.videos.id[exposure.video[row]],
        "action": pa.array(["add_to_cart", "purchase"]).take(pa.array(is_order.astype(np.int64))),
        "action_time": _moment(world, day, time_ms),
        "product_id": product_ids(world.products, product),
        "order_value_minor": pa.array(units * world.products.price_minor_PR[product, region], mask=~is_order),
        "currency": pa.array([place.currency for place in REGIONS]).take(pa.array(region, mask=~is_order)),
        "request_id": requests.take(pa.array(row)),
    }
    return pa.table([columns[name] for name in ACTIONS.names], schema=ACTIONS)


def _account(world: World, ledger: Ledger, happened: Impressions, day: int, sold: I64) -> None:
    """Book campaign impressions and units sold; an order takes its units on the day of its impression."""
    bought, exposure = happened.outcomes.purchases, happened.exposure
    booked = happened.kept[bought.order]
    np.add.at(sold, bought.product[bought.order[booked]], bought.units[booked])
    region = world.users.region[exposure.user[happened.by_campaign & happened.kept]]
    for place, row in running_campaigns(world, day).items():
        ledger.spent[row] += int((region == place).sum())


def _moment(world: World, day: int, time_ms: I64) -> pa.Array:
    return pa.array((world.settings.start_ms + day * DAY_MS + time_ms) * 1000).cast(TIME)
