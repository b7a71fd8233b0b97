"""What fixes the numbers that the ranker reads: which tasks, matches, counts and sides of products."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.counters import DAY_MS
from data.features import BagFeature, FeatureSpec
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
#: Bag features whose equality between a candidate and a step of the history is counted.
MATCHED = ("video_id", "video_creator_id", "video_category", "video_tags", "video_duration_ms",
           "video_product_ids", "product_merchant_id", "product_brand", "product_category")  # fmt: skip
#: Bag features that carry decayed counts over all users.
COUNTED = ("video_id", "video_creator_id", "video_product_ids")
#: Bag features that say where products are sold, and what language user and video speak.
OFFERED, SPOKEN = "product_markets", ("user_language", "video_language")
#: Bag feature of prices: quantiles among the prices of one currency, so that currencies compare.
PRICED = "product_price_minor"
#: Base rate from which a task is regressed on the content of a user's steps.
MIN_REGRESSED = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingSpec:
    """What fixes the numbers: stored with the model. ``base_rate`` is of each task in training.

    ``price_rows`` counts the rows of the products' price feature, 0 without one; ``market_rows`` and
    ``language_rows`` translate: row of a request's market → row in ``product_markets``, row in
    ``user_language`` → row in ``video_language``; 0 has no counterpart, empty without the feature.
    With ``content`` the frequent tasks (:attr:`regressed`) are regressed on the videos' vectors.
    ``day_zero_ms`` is the first moment of validation (0 for a given split); without real times
    (``use_time`` false) neither clocks nor counts of days are read.
    """

    tasks: tuple[str, ...]
    base_rate: tuple[float, ...]
    matched: tuple[str, ...]
    counted: tuple[str, ...]
    half_life_days: tuple[float, ...]
    day_zero_ms: int
    use_time: bool
    max_steps: int
    price_rows: int = 0
    market_rows: tuple[int, ...] = ()
    language_rows: tuple[int, ...] = ()
    content: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` gives back an equal spec."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RankingSpec":
        """Rebuild a spec; unknown or missing keys raise ``TypeError``."""
        plain: dict[str, Any] = {n: tuple(x) if isinstance(x, list) else x for n, x in value.items()}
        return cls(**plain)

    def day(self, time_ms: I64) -> I64:
        """Day of a moment; day 0 begins validation."""
        return (time_ms - self.day_zero_ms) // DAY_MS

    def hour(self, time_ms: I64) -> I64:
        """Local hour plus one, 1 … 24; 0 where the log's clock means nothing."""
        return ((time_ms - self.day_zero_ms) % DAY_MS // 3_600_000 + 1) * self.use_time

    def weekend(self, time_ms: I64) -> npt.NDArray[np.bool_]:
        """Whether a moment lies on a Saturday or Sunday; false where the log's clock means nothing."""
        # noon of a day lies on the same date in UTC, whatever the time zone; 1 January 1970 was a Thursday
        date = (self.day_zero_ms + DAY_MS // 2) // DAY_MS + self.day(time_ms)
        return np.asarray(((date + 3) % 7 >= 5) & self.use_time)

    @property
    def regressed(self) -> tuple[str, ...]:
        """Tasks that come true often enough for a regression within one user's history."""
        return tuple(
            task for task, rate in zip(self.tasks, self.base_rate, strict=True) if rate >= MIN_REGRESSED
        )

    @property
    def user_names(self) -> list[str]:
        """Columns of :func:`user_statistics`."""
        per_task = [f"{what}_{task}" for what in ("rate", "count", "recent") for task in self.tasks]
        return [*per_task, "steps", "watched", "watch_ratio", "recent_watch_ratio", "gap_s", "session_steps",
                "weekend"]  # fmt: skip

    @property
    def candidate_names(self) -> list[str]:
        """Columns of :func:`candidate_statistics`."""
        matches = [
            f"{name}.{what}"
            for name in (*self.matched, "surface")
            for what in (*self.tasks, "steps", "watch_ratio")
        ]
        counts = [
            f"{name}.{half_life:g}d.{what}"
            for name in self.counted
            for half_life in self.half_life_days
            for what in (*self.tasks, "impressions", "watch_ratio")
        ]
        spoken = ["own_language"] if self.language_rows else []
        drawn = [f"content.{what}" for what in (*self.regressed, "shown")] if self.content else []
        return [*matches, *counts, *self.product_names, *spoken, *drawn, "duration", "age", "age_known"]

    @property
    def product_names(self) -> list[str]:
        """Those of :attr:`candidate_names` that tell of the products' prices and where they are sold."""
        priced = ["price", "price_known", "price_above_usual", "price_apart"] if self.price_rows else []
        return [*priced, *(["products", "sold_here"] if self.market_rows else [])]

    @property
    def product_columns(self) -> tuple[int, int]:
        """First of the columns :attr:`product_names` and the one after the last."""
        names = self.product_names
        first = self.candidate_names.index(names[0]) if names else 0
        return first, first + len(names)


def ranking_spec_features(spec: FeatureSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Those of ``names`` that the dataset has as bags of the video side."""
    have = {feature.name for feature in spec.bags if isinstance(feature, BagFeature)}
    return tuple(name for name in names if name in have)


def translation(source: Vocabulary | None, target: Vocabulary | None) -> tuple[int, ...]:
    """For every row of ``source`` the row of the same value in ``target``, 0 where it has none.

    Empty without either vocabulary, and where they have no value in common.
    """
    if source is None or target is None or source.known.type != target.known.type:
        return ()
    rows = target.rows(source.known)
    return (0, *map(int, rows)) if (rows > 0).any() else ()
