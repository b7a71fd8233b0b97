"""``shopreel simulate``: a shopping-video market with a known truth → a dataset directory."""

from dataclasses import dataclass

from data.compose import compose
from data.dataset import DatasetInfo, writing_dataset
from data.errors import ConfigError
from data.progress import progress
from data.simulator.log import LABELS_IN_EVENTS, LogCounts
from data.simulator.market import Market
from data.simulator.settings import MarketSettings
from data.simulator.truth import FOLDER
from data.storage import refuse_taken


@dataclass(kw_only=True, slots=True)
class SimulateConfig(MarketSettings):
    """``configs/simulate.yaml``: the market's settings, its seed, and where the dataset goes."""

    out: str
    overwrite: bool
    seed: int

    def __post_init__(self) -> None:
        MarketSettings.__post_init__(self)
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is negative; take 0 or more")


CONFIG = SimulateConfig


def market_settings(*overrides: str) -> MarketSettings:
    """The settings of ``configs/simulate.yaml`` with ``key=value`` overrides, for tests and studies."""
    return _market(compose("simulate", ["out=unused", *overrides], SimulateConfig))


def run(config: SimulateConfig) -> None:
    """Simulate the market and write the dataset; the same config writes the same bytes."""
    refuse_taken(config.out, overwrite=config.overwrite)
    settings = _market(config)
    info = DatasetInfo(
        name=f"simulated-{config.seed}",
        source="shopreel simulate",
        licence="CC0-1.0",
        notes=[
            f"Simulated; {FOLDER}/ holds the true tastes and probabilities and is read by no command.",
            "propensity is P(this video at this position | user, the day's pool, all shown before).",
            "in_stock in products is the state at the end of the log.",
        ],
        tasks=[*LABELS_IN_EVENTS, "add_to_cart", "purchase"],
        extra={"seed": config.seed, "settings": settings.values()},
    )
    market = Market.build(settings, config.seed)
    expected = round(settings.users * settings.days * settings.impressions_per_user_day)
    counts = LogCounts()
    with (
        writing_dataset(config.out, info, overwrite=config.overwrite) as scratch,
        progress("impressions", expected, "impressions") as advance,
    ):
        for counts in market.write(scratch):
            advance(counts.impressions)
    print(
        f"{config.out}: {counts.impressions:,} impressions, {counts.carts:,} carts, {counts.orders:,} orders "
        f"({counts.after_the_end:,} more came after the end of the log)"
    )
    print(f"next: shopreel prepare dataset={config.out} out=PREPARED")


def _market(config: SimulateConfig) -> MarketSettings:
    return MarketSettings(**config.values())
