"""How far every campaign of the plan has got, and what its slots cost the feed (``GET /v1/campaigns``)."""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

from serving.campaign_desk import Keys
from serving.campaigns import Campaign
from serving.live import LiveBundle
from serving.pacing import Traffic
from serving.schema import Id
from serving.state import Store
from serving.traffic_watch import TrafficWatch


class Flight(Enum):
    """Where a campaign stands in time."""

    scheduled = "scheduled"
    running = "running"
    ended = "ended"


class Pace(Struct, frozen=True, kw_only=True):
    """One period of a budget: ``spent`` of ``budget``, and ``due``, what should have been spent by now.

    In impressions, or in minor units of the campaign's currency.
    """

    period: str
    spent: int
    due: float
    budget: int


class CampaignReport(Struct, frozen=True, kw_only=True):
    """One campaign. ``cost_watch_ms`` and ``cost_orders`` are predictions of the videos that its slots
    displaced less its own, summed over ``cost_slots``: those for which there were predictions.
    ``missing_videos`` are not in the catalogue being served.
    """

    campaign_id: str
    label: str
    flight: Flight
    guaranteed: bool
    currency: str | None
    impressions: int
    spent: int
    budget: int | None
    pace: Pace | None
    cost_slots: int
    cost_watch_ms: int
    cost_orders: float
    missing_videos: list[Id]


class CampaignsResponse(Struct, frozen=True, kw_only=True):
    """Every campaign of the plan in force, in its order."""

    campaigns: list[CampaignReport]


class CampaignReporter:
    """Makes reports. Safe to call from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._traffic = TrafficWatch(store)

    def report(
        self, live: LiveBundle, campaigns: Mapping[str, Campaign], traffic: Traffic | None, now_ms: int
    ) -> CampaignsResponse:
        """The state of ``campaigns`` now."""
        reports = [self._one(live, name, campaigns[name], traffic, now_ms) for name in campaigns]
        return CampaignsResponse(campaigns=reports)

    def _one(
        self, live: LiveBundle, name: str, campaign: Campaign, traffic: Traffic | None, now_ms: int
    ) -> CampaignReport:
        keys = Keys(name)
        flight = campaign.flight(now_ms)
        period = campaign.period(now_ms) if flight == "running" else None
        wanted = [keys.total, keys.impressions, keys.costed, keys.watch_ms, keys.orders]
        wanted += [keys.period(period)] if period else []
        spent, impressions, costed, watch_ms, orders, *in_period = self._store.tallies(wanted, now_ms)
        pace = None
        if period is not None:
            curve = traffic or self._traffic.curve(campaign.markets, now_ms)
            due = period.budget * curve.passed(period.begin_ms, period.end_ms, now_ms)
            pace = Pace(period=period.name, spent=in_period[0], due=round(due, 2), budget=period.budget)
        return CampaignReport(
            campaign_id=name,
            label=campaign.label,
            flight=Flight(flight),
            guaranteed=campaign.guaranteed,
            currency=campaign.currency,
            impressions=impressions,
            spent=spent,
            budget=campaign.budget.total,
            pace=pace,
            cost_slots=costed,
            cost_watch_ms=watch_ms,
            cost_orders=orders / 1e6,
            missing_videos=live.missing(campaign.videos),
        )
