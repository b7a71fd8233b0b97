"""Who sells: merchants, of whom few are large and most are small."""

from dataclasses import dataclass

import numpy as np

from data.simulator.region import region_weights
from data.simulator.taste import F64, I64, draw_weighted, zipf_weights

PRODUCTS_PER_MERCHANT = 12


@dataclass(frozen=True, slots=True)
class Merchants:
    """Row r is merchant r: its home region and its share of all products (sums to 1)."""

    region: I64
    size: F64

    def __len__(self) -> int:
        return len(self.region)


def build_merchants(rng: np.random.Generator, products: int, markets: int) -> Merchants:
    """Draw one merchant for every twelve products, at least four."""
    count = max(4, products // PRODUCTS_PER_MERCHANT)
    return Merchants(
        region=draw_weighted(rng, region_weights(markets), count), size=zipf_weights(rng, count, 0.9)
    )


def merchant_ids(rows: I64) -> list[str]:
    """The public ids of merchant rows."""
    return [f"m{row:05d}" for row in rows]
