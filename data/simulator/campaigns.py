"""Brand campaigns: a brand pays for slots in one market between two days, up to a budget."""

from dataclasses import dataclass

import numpy as np

from data.simulator.products import Products
from data.simulator.settings import MarketSettings
from data.simulator.taste import F64, I64
from data.simulator.videos import Videos

#: The position of a slate at which a campaign may stand, and how often it may at most.
CAMPAIGN_POSITION = 3
LARGEST_SHARE = 0.6
VIDEOS_PER_CAMPAIGN = 12
#: A campaign buys this share of its market's impressions while it runs.
BUDGET_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class Campaign:
    """Days are days of the log, ``last_day`` included; ``video`` holds video rows; one market at a time."""

    campaign_id: str
    brand: int
    region: int
    first_day: int
    last_day: int
    budget_impressions: int
    video: I64

    def runs_on(self, day: int) -> bool:
        """Whether ``day`` lies between its dates."""
        return self.first_day <= day <= self.last_day


def build_campaigns(
    rng: np.random.Generator, settings: MarketSettings, videos: Videos, products: Products, user_share: F64
) -> list[Campaign]:
    """Spread the campaigns over markets and days so that at most one runs per market and day.

    ``user_share`` [R] is the share of users per region. A market without a brand of three eligible
    videos gets none.
    """
    campaigns: list[Campaign] = []
    daily = settings.users * settings.impressions_per_user_day
    for region in range(settings.markets):
        planned = settings.campaigns // settings.markets + (region < settings.campaigns % settings.markets)
        planned = min(planned, settings.days)
        for turn in range(planned):
            first = turn * settings.days // planned
            last = max(first, first + int(0.7 * settings.days / planned) - 1)
            candidates = _brand_videos(videos, products, region, first)
            if not candidates:
                continue
            brand = int(rng.choice(np.array(sorted(candidates))))
            rows = candidates[brand]
            chosen = np.sort(rng.permutation(rows)[:VIDEOS_PER_CAMPAIGN])
            budget = BUDGET_SHARE * daily * user_share[region] * (last - first + 1)
            name = f"campaign-{len(campaigns):03d}"
            campaigns.append(Campaign(name, brand, region, first, last, max(1, int(budget)), chosen))
    return campaigns


def paced_share(campaign: Campaign, day: int, spent: int, expected_slates: float) -> float:
    """Share of its market's campaign positions to give on ``day``: the budget left over the days left."""
    left = max(0, campaign.budget_impressions - spent) / (campaign.last_day - day + 1)
    return float(min(LARGEST_SHARE, left / max(expected_slates, 1.0)))


def _brand_videos(videos: Videos, products: Products, region: int, day: int) -> dict[int, I64]:
    first = videos.product_NJ[:, 0]
    live = np.flatnonzero((first >= 0) & videos.market_NR[:, region] & (videos.live_day <= day))
    live = live[products.price_minor_PR[first[live], region] >= 0]
    brand = products.brand[first[live]]
    order = np.argsort(brand, kind="stable")
    names, starts = np.unique(brand[order], return_index=True)
    groups = np.split(live[order], starts[1:])
    return {int(name): rows for name, rows in zip(names, groups, strict=True) if len(rows) >= 3}
