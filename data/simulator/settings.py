"""What a simulated market is made of. Defaults live in ``configs/simulate.yaml`` only."""

from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from data.errors import ConfigError
from data.simulator.region import REGIONS

DAY_MS = 86_400_000


@dataclass(kw_only=True, slots=True)
class MarketSettings:
    """Sizes and strengths of one market; the YAML says what each means and in which unit."""

    users: int
    videos: int
    products: int
    days: int
    start: str
    markets: int
    clusters: int
    dimensions: int
    impressions_per_user_day: float
    slate_size: int
    pool_size: int
    policy_sharpness: float
    explore_share: float
    random_request_share: float
    new_video_share: float
    new_videos_from_day: int
    taste_strength: float
    taste_drift: float
    content_noise: float
    campaigns: int

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "users": (1, 50_000_000), "videos": (20, 50_000_000), "products": (10, 10_000_000),
            "days": (1, 3650), "markets": (1, len(REGIONS)), "clusters": (1, 1000), "dimensions": (2, 256),
            "impressions_per_user_day": (0.1, 1000.0), "slate_size": (1, 100), "pool_size": (10, 30_000),
            "policy_sharpness": (0.0, 5.0), "explore_share": (0.0, 1.0), "random_request_share": (0.0, 1.0),
            "new_video_share": (0.0, 1.0), "new_videos_from_day": (0, self.days - 1),
            "taste_strength": (0.0, 20.0), "taste_drift": (0.0, 1.0), "content_noise": (0.0, 100.0),
            "campaigns": (0, 10_000),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)} is outside {low:g} … {high:g}")
        if self.pool_size < 2 * self.slate_size:
            raise ConfigError(
                f"pool_size={self.pool_size} holds fewer than two slates of slate_size={self.slate_size}; "
                f"take pool_size={4 * self.slate_size} or more"
            )
        try:
            first = date.fromisoformat(self.start)
        except ValueError:
            raise ConfigError(f"start={self.start} is no date; write it as 2026-03-02") from None
        if first.year < 1990 or first + timedelta(days=self.days) > datetime.now(UTC).date():
            raise ConfigError(
                f"start={self.start} with days={self.days} leaves 1990 … today; take another start="
            )

    @property
    def start_ms(self) -> int:
        """Midnight UTC of the first day, Unix ms."""
        return int(datetime.fromisoformat(self.start).replace(tzinfo=UTC).timestamp()) * 1000

    @property
    def end_ms(self) -> int:
        """The moment the log ends: midnight UTC after the last day, Unix ms."""
        return self.start_ms + self.days * DAY_MS

    def values(self) -> dict[str, Any]:
        """The market's settings alone, by name, also when ``self`` is a wider config."""
        return {item.name: getattr(self, item.name) for item in fields(MarketSettings)}
