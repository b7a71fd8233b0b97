"""How long after the impression a cart and an order come.

Carts come within half an hour. Orders come in two waves, within the hour and over days; a few take
longer than the usual attribution window of seven days, which is why labels by attribution miss them.
"""

import numpy as np

from data.simulator.settings import DAY_MS
from data.simulator.taste import I64

ATTRIBUTION_DAYS = 7.0
SOONEST_MS = 5_000
CART_MEAN_MS, CART_LIMIT_MS = 240_000.0, 1_500_000
#: Share and mean of each wave of orders.
ORDER_WAVES = ((0.65, 1_500_000.0), (0.35, 2.5 * DAY_MS))


def draw_cart_ms(rng: np.random.Generator, count: int) -> I64:
    """Whole ms from the impression to the cart, 5 s … 25 min."""
    delay = SOONEST_MS + rng.exponential(CART_MEAN_MS, count).astype(np.int64)
    return np.minimum(delay, CART_LIMIT_MS)


def draw_order_ms(rng: np.random.Generator, count: int) -> I64:
    """Whole ms from the impression to the order, at least 5 s."""
    (soon, first), (_, second) = ORDER_WAVES
    mean = np.where(rng.random(count) < soon, first, second)
    return SOONEST_MS + (mean * rng.standard_exponential(count)).astype(np.int64)


def order_probability_within(days: float) -> float:
    """P(an order that comes at all comes within ``days`` of its impression)."""
    limit = max(0.0, days * DAY_MS - SOONEST_MS)
    return float(sum(share * -np.expm1(-limit / mean) for share, mean in ORDER_WAVES))
