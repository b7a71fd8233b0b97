"""The shopping funnel: product click → cart → order, on the products tagged in a clicked video.

Axes: ``n`` impressions, ``J`` products of one video.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.behaviour import Exposure, sigmoid
from data.simulator.taste import F32, F64, I64, Bool
from data.simulator.world import World

#: Each step: bias, weight of the affinity to the product, of its appeal, of the price's fit to the budget.
PRODUCT_CLICK, CART, BUY = (-2.2, 2.0, 0.5, 1.0), (-1.2, 1.2, 0.3, 0.6), (-0.6, 0.4, 0.2, 0.5)
PRICE_FIT, WORST_FIT = -0.45, 6.0
#: Logits by surface (feed, shop, discover), on weekends, and how the wish to shop carries on to the cart.
PRODUCT_CLICK_SURFACE, PRODUCT_CLICK_WEEKEND, CART_WISH = np.array([0.0, 0.8, 0.2]), 0.3, 0.5
#: Units in an order: 1 + Poisson(this).
FURTHER_UNITS = 0.15


@dataclass(frozen=True, slots=True)
class Funnel:
    """``product`` int64 [n, J] rows or -1; ``click``: P(any product clicked | video clicked) [n];

    ``share``: P(product j | some product clicked), rows sum to 1 or are all 0; ``cart``, ``buy``:
    P(step | the step before, product j); ``price_minor`` in the user's currency; all [n, J].
    """

    product: I64
    click: F64
    share: F64
    cart: F64
    buy: F64
    price_minor: I64


def funnel(world: World, exposure: Exposure, taste: F32, stock_out_day: I64) -> Funnel:
    """The shopping steps of each exposure; a product out of stock is clicked but not put in the cart."""
    users, products = world.users, world.products
    product = world.videos.product_NJ[exposure.video]
    region = users.region[exposure.user]
    price_minor = products.price_minor_PR[product, region[:, None]]
    offered = (product >= 0) & (price_minor >= 0)
    fit_nd = np.einsum("nd,njd->nj", taste, products.vector_PD[product])
    gap = np.log(products.price_usd)[product] - users.log_budget[exposure.user][:, None]
    price = PRICE_FIT * np.minimum(gap * gap, WORST_FIT)
    appeal = products.appeal[product]
    shop = users.shop_bias[exposure.user][:, None]

    def logit(step: tuple[float, float, float, float]) -> F64:
        bias, by_fit, by_appeal, by_price = step
        return np.asarray(bias + by_fit * fit_nd + by_appeal * appeal + by_price * price, dtype=np.float64)

    weekend = PRODUCT_CLICK_WEEKEND * is_weekend(world, exposure.day)
    attraction = logit(PRODUCT_CLICK) + shop + (PRODUCT_CLICK_SURFACE[exposure.surface] + weekend)[:, None]
    weight = np.where(offered, np.exp(attraction), 0.0)
    total = weight.sum(axis=1)
    in_stock = offered & (exposure.day[:, None] < stock_out_day[product])
    return Funnel(
        product=np.where(offered, product, -1),
        click=np.asarray(total / (1.0 + total)),
        share=weight / np.where(total > 0, total, 1.0)[:, None],
        cart=np.where(in_stock, sigmoid(logit(CART) + CART_WISH * shop), 0.0),
        buy=sigmoid(logit(BUY)),
        price_minor=np.where(offered, price_minor, 0),
    )


def is_weekend(world: World, day: I64) -> Bool:
    """Whether each day of the log is a Saturday or Sunday (UTC)."""
    first = np.datetime64(world.settings.start, "D").astype(np.int64) + 3  # 1970-01-01 was a Thursday
    return np.asarray((first + day) % 7 >= 5)
