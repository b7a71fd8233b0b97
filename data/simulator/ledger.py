"""What happened to the market while the log was made: pools, campaign spending and sold-out products.

Together with the world it determines every probability, so it is stored with the truth.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.campaigns import CAMPAIGN_POSITION, Campaign, paced_share
from data.simulator.pools import Pools, segments
from data.simulator.taste import F64, I32, I64
from data.simulator.world import World

#: Stands for "not during this log" in ``stock_out_day``.
NEVER = np.int64(1) << 40


@dataclass(frozen=True, slots=True)
class Ledger:
    """Axes: ``days`` T, segments S, slots P, regions R, products.

    ``stock_out_day`` int64 [products] is the first day without stock; ``campaign_TR`` the share of campaign
    positions given; ``spent`` int64 [campaigns] the campaign impressions delivered.
    """

    segment: I64
    video_TSP: I32
    campaign_slots_TS: I64
    campaign_TR: F64
    stock_out_day: I64
    spent: I64

    def pools(self, day: int) -> Pools:
        """The pools of ``day``."""
        return Pools(self.segment, self.video_TSP[day], self.campaign_slots_TS[day])


def open_ledger(world: World) -> Ledger:
    """An empty ledger; products that never had stock are sold out from the first day."""
    days, regions = world.settings.days, world.settings.markets
    segment = segments(world)
    return Ledger(
        segment=segment,
        video_TSP=np.full((days, len(segment), world.settings.pool_size), -1, dtype=np.int32),
        campaign_slots_TS=np.zeros((days, len(segment)), dtype=np.int64),
        campaign_TR=np.zeros((days, regions)),
        stock_out_day=np.where(world.products.stock > 0, NEVER, 0),
        spent=np.zeros(len(world.campaigns), dtype=np.int64),
    )


def running_campaigns(world: World, day: int) -> dict[int, int]:
    """Row of the campaign that runs on ``day`` in each region that has one."""
    return {item.region: row for row, item in enumerate(world.campaigns) if item.runs_on(day)}


def pace_campaigns(world: World, ledger: Ledger, day: int) -> dict[int, Campaign]:
    """Fix the day's campaign shares from what is left of each budget; returns the campaigns by region."""
    rate, region = world.users.slate_rate, world.users.region
    slates_R = np.bincount(region, weights=rate, minlength=world.settings.markets)
    has_position = world.settings.slate_size > CAMPAIGN_POSITION
    running = running_campaigns(world, day) if has_position else {}
    for place, row in running.items():
        campaign = world.campaigns[row]
        production = (1 - world.settings.random_request_share) * float(slates_R[place])
        ledger.campaign_TR[day, place] = paced_share(campaign, day, int(ledger.spent[row]), production)
    return {place: world.campaigns[row] for place, row in running.items()}


def sell_out(world: World, ledger: Ledger, sold: I64, day: int) -> None:
    """After ``day``: products of which all units are sold are out of stock from the next day on."""
    out = (sold >= world.products.stock) & (ledger.stock_out_day == NEVER)
    ledger.stock_out_day[out] = day + 1
