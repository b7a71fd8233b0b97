"""What is sold: products with a place in taste space, a price in every market and a stock.

Axes: ``P`` products, ``R`` regions, ``D`` latent dimensions.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.merchants import Merchants
from data.simulator.region import REGIONS
from data.simulator.settings import MarketSettings
from data.simulator.taste import F32, I64, Bool, Clusters, draw_weighted, jitter, unit

ID_BASE, ID_STEP = 5_300_000_000, 11
PRODUCTS_PER_BRAND = 10
ABROAD_SHARE = 0.45
NEVER_STOCKED_SHARE = 0.02
#: Roughly how many orders come of one impression; sizes the stock, nothing else.
ORDERS_PER_IMPRESSION = 0.004
#: Stock over expected sales of a usual product.
STOCK_COVER = 4.0
#: Median price of a cluster's products in US dollars, spread log-normally around this.
MEDIAN_PRICE_USD = 28.0


@dataclass(frozen=True, slots=True)
class Products:
    """Row r is product r.

    ``price_minor_PR`` int64 in minor units of the region's currency, -1 where it is not sold;
    ``stock`` units at the start of the log; ``appeal`` is standard normal.
    """

    id: I64
    cluster: I64
    vector_PD: F32
    merchant: I64
    brand: I64
    region: I64
    price_usd: F32
    price_minor_PR: I64
    appeal: F32
    stock: I64
    style: I64

    def __len__(self) -> int:
        return len(self.id)

    def sold_in(self) -> Bool:
        """Where each product is sold, bool [P, R]."""
        return self.price_minor_PR >= 0


def build_products(
    rng: np.random.Generator, settings: MarketSettings, clusters: Clusters, merchants: Merchants
) -> Products:
    """Draw the catalogue; a few products never have stock."""
    count, markets = settings.products, settings.markets
    impressions = settings.users * settings.days * settings.impressions_per_user_day
    demand = ORDERS_PER_IMPRESSION * impressions / count
    brands = max(2, count // PRODUCTS_PER_BRAND)
    brand_cluster = draw_weighted(rng, clusters.weight_C, brands)
    brand_level = rng.normal(0.0, 0.45, brands)
    cluster_level = rng.normal(0.0, 0.5, len(clusters.weight_C))
    brand = rng.integers(brands, size=count)
    cluster = brand_cluster[brand]
    merchant = draw_weighted(rng, merchants.size, count)
    region = merchants.region[merchant]
    centre = clusters.centroid_CD[cluster]
    level = cluster_level[cluster] + brand_level[brand] + rng.normal(0, 0.45, count)
    price_usd = MEDIAN_PRICE_USD * np.exp(level)
    rate = np.array([place.minor_per_usd for place in REGIONS[:markets]])
    price_minor = np.maximum(1, np.rint(price_usd[:, None] * rate)).astype(np.int64)
    sold = rng.random((count, markets)) < ABROAD_SHARE
    sold[np.arange(count), region] = True
    appeal = rng.standard_normal(count, dtype=np.float32)
    stock = np.ceil(STOCK_COVER * demand * np.exp(0.5 * appeal + rng.normal(0.0, 0.9, count))).astype(
        np.int64
    )
    stock[rng.random(count) < NEVER_STOCKED_SHARE] = 0
    return Products(
        id=ID_BASE + ID_STEP * np.arange(count, dtype=np.int64),
        cluster=cluster,
        vector_PD=unit(0.8 * centre + 0.6 * jitter(rng, *centre.shape)),
        merchant=merchant,
        brand=brand,
        region=region,
        price_usd=price_usd.astype(np.float32),
        price_minor_PR=np.where(sold, price_minor, -1),
        appeal=appeal,
        stock=stock,
        style=rng.integers(1 << 30, size=count),
    )
