"""The countries in which the simulated platform runs: a market each, with its currency and language."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Region:
    """``minor_per_usd`` is how many minor units of ``currency`` one US dollar buys (fixed all along)."""

    market: str
    currency: str
    minor_per_usd: float
    language: str
    utc_offset_hours: int
    weight: float


REGIONS = (
    Region("us", "USD", 100.0, "en", -5, 0.40),
    Region("gb", "GBP", 79.0, "en", 0, 0.18),
    Region("de", "EUR", 92.0, "de", 1, 0.22),
    Region("jp", "JPY", 150.0, "ja", 9, 0.20),
    Region("br", "BRL", 510.0, "pt", -3, 0.15),
    Region("fr", "EUR", 92.0, "fr", 1, 0.12),
)
LANGUAGES = tuple(dict.fromkeys(region.language for region in REGIONS))
#: Row in ``LANGUAGES`` of each region's language.
REGION_LANGUAGE = np.array([LANGUAGES.index(region.language) for region in REGIONS], dtype=np.int8)


def region_weights(count: int) -> npt.NDArray[np.float64]:
    """Share of users and creators in each of the first ``count`` regions; sums to 1."""
    weights = np.array([region.weight for region in REGIONS[:count]])
    return np.asarray(weights / weights.sum())
