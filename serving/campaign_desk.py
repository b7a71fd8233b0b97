"""Which campaigns may have a slot on a page, with which videos, and what the page then owes them.

What was given out is counted in the store with the page itself (:class:`serving.state.protocol.Tally`): a
page that is asked for again counts nothing, and no budget is ever passed, however many replicas serve it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.campaigns import Campaign, Period, Quality
from serving.exact import NO_ROWS, Rows
from serving.feed import Candidates, Claim, Slot
from serving.live import LiveBundle
from serving.pacing import Traffic, may_spend
from serving.state import Store
from serving.state.protocol import DAY_MS, Id, Tally, id_key
from serving.traffic_watch import TrafficWatch

#: Videos of campaigns that are scored for one page at most.
MOST_VIDEOS = 64
HOUR_MS = 3_600_000
#: How long counts are kept after a campaign's end.
_KEPT_MS = 90 * DAY_MS


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of a campaign's counts in the store."""

    campaign_id: str

    @staticmethod
    def campaign_of(key: str) -> str:
        """The campaign that a count belongs to."""
        return key.split(":")[1]

    @property
    def total(self) -> str:
        """Spent since it began."""
        return f"campaign:{self.campaign_id}:spent"

    @property
    def impressions(self) -> str:
        """Slots given since it began."""
        return f"campaign:{self.campaign_id}:slots"

    @property
    def watch_ms(self) -> str:
        """Predicted watch time that its slots cost, in ms."""
        return f"campaign:{self.campaign_id}:watch"

    @property
    def orders(self) -> str:
        """Predicted orders that its slots cost, in millionths."""
        return f"campaign:{self.campaign_id}:orders"

    @property
    def costed(self) -> str:
        """Slots of which it is predicted what they cost."""
        return f"campaign:{self.campaign_id}:costed"

    def period(self, period: Period) -> str:
        """Spent in a period."""
        return f"campaign:{self.campaign_id}:spent:{period.name}"

    def user(self, user_id: Id) -> str:
        """Seen by a user."""
        return f"campaign:{self.campaign_id}:user:{id_key(user_id)}"


@dataclass(frozen=True, slots=True)
class Bid:
    """A campaign that may have a slot now; ``rows`` are its videos in the catalogue."""

    campaign_id: str
    campaign: Campaign
    period: Period
    rows: Rows


class CampaignDesk:
    """Knows who is next. Safe to call from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._traffic = TrafficWatch(store)

    def bids(
        self, live: LiveBundle, campaigns: Mapping[str, Campaign], user_id: Id, market: str | None,
        now_ms: int, traffic: Traffic | None,
    ) -> list[Bid]:  # fmt: skip
        """The campaigns for this user that keep to budget, pace and frequency now, first come first.

        Guaranteed ones stand before bids; among them whoever is furthest behind its pace, among bids the
        highest. ``traffic`` None is learned.
        """
        running = {name: c for name, c in campaigns.items() if c.runs(now_ms, market)}
        if not running:
            return []
        periods = {name: campaign.period(now_ms) for name, campaign in running.items()}
        keys = [
            key
            for name in running
            for key in (Keys(name).period(periods[name]), Keys(name).total, Keys(name).user(user_id))
        ]
        counts = iter(self._store.tallies(keys, now_ms))
        found: list[tuple[tuple[bool, float, str], Bid]] = []
        for name, campaign in running.items():
            spent, total, seen = next(counts), next(counts), next(counts)
            if campaign.frequency is not None and seen >= campaign.frequency.impressions:
                continue
            if campaign.budget.total is not None and total + campaign.price > campaign.budget.total:
                continue
            period = periods[name]
            curve = traffic or self._traffic.curve(campaign.markets, now_ms)
            passed = curve.passed(period.begin_ms, period.end_ms, now_ms)
            if not may_spend(spent, campaign.price, period.budget, passed):
                continue
            rows = live.rows_of([live.video_id(video_id) for video_id in campaign.videos])
            if len(rows):
                behind = passed - spent / period.budget
                eager = behind if campaign.guaranteed else float(campaign.price)
                rank = (not campaign.guaranteed, -eager, name)
                found.append((rank, Bid(name, campaign, period, rows)))
        return [bid for _, bid in sorted(found, key=lambda pair: pair[0])]

    @staticmethod
    def candidates(bids: Sequence[Bid]) -> Rows:
        """The videos to be scored, those of the first bids first, distinct."""
        rows = np.concatenate([NO_ROWS, *(bid.rows for bid in bids)])
        first = np.sort(np.unique(rows, return_index=True)[1])
        return rows[first][:MOST_VIDEOS]

    @staticmethod
    def claims(bids: Sequence[Bid], candidates: Candidates) -> list[Claim]:
        """What each bid could show, best first, as places among the scored ``candidates``."""
        claims = []
        for bid in bids:
            mine = np.flatnonzero(np.isin(candidates.row, bid.rows))
            places = tuple(int(at) for at in mine if _good_enough(bid.campaign.quality, candidates, int(at)))
            if places:
                claims.append(Claim(bid.campaign_id, bid.campaign.label, places))
        return claims

    @staticmethod
    def tallies(bids: Sequence[Bid], slots: Sequence[Slot], user_id: Id, now_ms: int) -> list[Tally]:
        """What a page with these ``slots`` counts for."""
        by_id = {bid.campaign_id: bid for bid in bids}
        tallies: list[Tally] = []
        for slot in slots:
            if slot.campaign_id is None:
                continue
            bid = by_id[slot.campaign_id]
            campaign, keys = bid.campaign, Keys(slot.campaign_id)
            kept_ms = int(campaign.ends.timestamp() * 1000) - now_ms + _KEPT_MS
            tallies += [
                Tally(keys.period(bid.period), campaign.price, kept_ms, bid.period.budget),
                Tally(keys.total, campaign.price, kept_ms, campaign.budget.total),
                Tally(keys.impressions, 1, kept_ms),
            ]
            if campaign.frequency is not None:
                window_ms = int(campaign.frequency.hours * HOUR_MS)
                tallies.append(Tally(keys.user(user_id), 1, window_ms, campaign.frequency.impressions))
            cost = slot.cost
            if cost is not None and (cost.watch_ms is not None or cost.orders is not None):
                tallies.append(Tally(keys.costed, 1, kept_ms))
            if cost is not None and cost.watch_ms is not None:
                tallies.append(Tally(keys.watch_ms, round(cost.watch_ms), kept_ms))
            if cost is not None and cost.orders is not None:
                tallies.append(Tally(keys.orders, round(1e6 * cost.orders), kept_ms))
        return tallies


def _good_enough(floor: Quality, candidates: Candidates, place: int) -> bool:
    if not floor.asks:
        return True
    if floor.value is not None and not (candidates.probabilities and candidates.score[place] >= floor.value):
        return False
    watch_ms = candidates.watch_ms
    if floor.watch_ms is not None and (watch_ms is None or watch_ms[place] < floor.watch_ms):
        return False
    heads = candidates.probabilities
    return all(task in heads and heads[task][place] >= p for task, p in floor.probabilities.items())
