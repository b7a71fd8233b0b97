"""Brand campaigns as the plan states them: shown to whom, when, for how much, and how good at least."""

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct

from data.schema import LABELS
from serving.schema import Id, Name

_ZONED = Meta(tz=True)
Moment = Annotated[datetime, _ZONED]
Count = Annotated[int, Meta(ge=1, le=2**53)]
Probability = Annotated[float, Meta(ge=0, le=1)]


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much at most, per day of the campaign's time zone, over the whole flight, or both."""

    per_day: Count | None = None
    total: Count | None = None


class Frequency(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``impressions`` per user within any ``hours``."""

    impressions: Annotated[int, Meta(ge=1, le=10_000)]
    hours: Annotated[float, Meta(gt=0, le=24 * 366)]


class Quality(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the ranker must predict for this user and video at least; without a ranker no floor holds."""

    value: float | None = None
    watch_ms: Annotated[float, Meta(ge=0)] | None = None
    probabilities: dict[str, Probability] = {}

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return self.value is not None or self.watch_ms is not None or bool(self.probabilities)


class Campaign(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One campaign. It either has guaranteed ``impressions``, or bids ``bid_minor`` for each and pays that
    from ``spend_minor``, in minor units of ``currency``.

    ``markets`` None is every market, ``cohort`` None everybody. ``label`` is what the viewer is told.
    """

    videos: Annotated[list[Id], Meta(min_length=1, max_length=50)]
    starts: Moment
    ends: Moment
    impressions: Budget | None = None
    spend_minor: Budget | None = None
    bid_minor: Count | None = None
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | None = None
    markets: list[Name] | None = None
    cohort: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,39}$")] | None = None
    frequency: Frequency | None = None
    quality: Quality = Quality()
    time_zone: str = "UTC"
    label: Annotated[str, Meta(min_length=1, max_length=64)] = "Sponsored"

    @property
    def guaranteed(self) -> bool:
        """Whether impressions are promised rather than bid for."""
        return self.impressions is not None

    @property
    def price(self) -> int:
        """What one impression takes from the budget."""
        return self.bid_minor or 1

    @property
    def budget(self) -> Budget:
        """Of impressions, or of minor units."""
        budget = self.impressions or self.spend_minor
        assert budget is not None
        return budget

    def runs(self, now_ms: int, market: str | None) -> bool:
        """Whether it is in flight, and meant for this market."""
        return self.flight(now_ms) == "running" and (self.markets is None or market in self.markets)

    def flight(self, now_ms: int) -> str:
        """``scheduled``, ``running`` or ``ended``."""
        if now_ms < _unix_ms(self.starts):
            return "scheduled"
        return "running" if now_ms < _unix_ms(self.ends) else "ended"

    def period(self, now_ms: int) -> "Period":
        """The stretch of time, holding ``now_ms``, over which the budget is paced: a day, or the flight."""
        begin_ms, end_ms = _unix_ms(self.starts), _unix_ms(self.ends)
        budget = self.budget
        if budget.per_day is None:
            assert budget.total is not None
            return Period("flight", begin_ms, end_ms, budget.total)
        zone = ZoneInfo(self.time_zone)
        day = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(zone).date()
        midnights = (datetime.combine(at, time(), zone) for at in (day, day + timedelta(days=1)))
        first_ms, last_ms = map(_unix_ms, midnights)
        return Period(day.isoformat(), max(first_ms, begin_ms), min(last_ms, end_ms), budget.per_day)


class Period(msgspec.Struct, frozen=True):
    """``budget`` for the time from ``begin_ms`` to before ``end_ms``."""

    name: str
    begin_ms: int
    end_ms: int
    budget: int


def mistakes(campaign: Campaign) -> Iterator[tuple[str, str]]:
    """What the types alone could not tell: (field, message)."""
    if (campaign.impressions is None) == (campaign.spend_minor is None):
        yield "impressions", "give either impressions (guaranteed) or spend_minor with bid_minor"
    elif campaign.budget.per_day is None and campaign.budget.total is None:
        yield "impressions" if campaign.guaranteed else "spend_minor", "give per_day, total or both"
    if campaign.spend_minor is not None and (campaign.bid_minor is None or campaign.currency is None):
        yield "bid_minor", "spend_minor needs bid_minor, the price of an impression, and currency"
    if campaign.impressions is not None and (campaign.bid_minor is not None or campaign.currency is not None):
        yield "bid_minor", "guaranteed impressions are not bid for: leave out bid_minor and currency"
    if campaign.starts >= campaign.ends:
        yield "ends", "is not after starts"
    if unknown := sorted(set(campaign.quality.probabilities) - set(LABELS)):
        yield "quality.probabilities", f"{unknown[0]} is no label; there are {', '.join(LABELS)}"
    if len(set(map(str, campaign.videos))) < len(campaign.videos):
        yield "videos", "names a video twice"
    try:
        ZoneInfo(campaign.time_zone)
    except (KeyError, ValueError, OSError):
        yield "time_zone", f"no such time zone as {campaign.time_zone}; write it as Asia/Seoul"


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
