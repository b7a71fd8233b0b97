"""One draw of what came of each impression, from the true probabilities."""

from dataclasses import dataclass

import numpy as np

from data.simulator import delays, watch
from data.simulator.behaviour import (
    REACTIONS,
    Exposure,
    click_probability,
    examination,
    hide_probability,
    reaction_probability,
    user_taste,
    video_affinity,
    watch_log_median,
)
from data.simulator.shopping import FURTHER_UNITS, Funnel, funnel
from data.simulator.taste import I64, Bool
from data.simulator.world import World


@dataclass(frozen=True, slots=True)
class Purchases:
    """Clicked products, carts and orders among n exposures.

    ``product`` int64 [n] is the clicked product's row or -1. ``cart`` and ``order`` are rows into the
    exposures, each with its delay after the impression in ms; ``units`` belong to ``order``.
    """

    product: I64
    cart: I64
    cart_delay_ms: I64
    order: I64
    order_delay_ms: I64
    units: I64


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of n exposures: labels bool [n] each, ``watch_ms`` int64 [n], and the purchases."""

    labels: dict[str, Bool]
    watch_ms: I64
    purchases: Purchases


def draw(world: World, exposure: Exposure, stock_out_day: I64, rng: np.random.Generator) -> Outcomes:
    """Let every exposure happen once."""
    count = len(exposure)
    taste = user_taste(world, exposure.user, exposure.day)
    affinity = video_affinity(world, exposure, taste)
    seen = examination(exposure)
    dice = rng.random(count)
    click = dice < seen * click_probability(world, exposure, affinity)
    clicked, glance = np.flatnonzero(click), np.flatnonzero((dice < seen) & ~click)
    shown, fit = exposure.take(clicked), affinity[clicked]
    duration = world.videos.duration_ms[shown.video]
    watch_ms = np.zeros(count, dtype=np.int64)
    watch_ms[clicked] = watch.draw_watch_ms(rng, watch_log_median(world, shown, fit), duration)
    watch_ms[glance] = watch.draw_glance_ms(rng, len(glance))
    labels = {
        "click": click,
        "long_view": _at(count, clicked, watch_ms[clicked] >= watch.long_view_ms(duration)),
    }
    for label in REACTIONS:
        reacts = rng.random(len(clicked)) < reaction_probability(world, label, shown, fit)
        labels[label] = _at(count, clicked, reacts)
    hides = rng.random(len(glance)) < hide_probability(world, exposure.take(glance), affinity[glance])
    labels["hide"] = _at(count, glance, hides)
    tagged = clicked[world.videos.product_NJ[shown.video, 0] >= 0]
    steps = funnel(world, exposure.take(tagged), taste[tagged], stock_out_day)
    purchases = _draw_purchases(rng, count, tagged, steps)
    labels["product_click"] = purchases.product >= 0
    return Outcomes(labels, watch_ms, purchases)


def _draw_purchases(rng: np.random.Generator, count: int, tagged: I64, steps: Funnel) -> Purchases:
    """Walk down the funnel of the clicked videos with products, which are the rows ``tagged``."""
    hit = np.flatnonzero(rng.random(len(tagged)) < steps.click)
    share = steps.share[hit]
    choice = (np.cumsum(share, axis=1) <= rng.random(len(hit))[:, None]).sum(axis=1)
    # Rounding may leave the last sum a hair below one: the last offered product takes that hair.
    choice = np.minimum(choice, share.shape[1] - 1 - np.argmax(share[:, ::-1] > 0, axis=1))
    product = np.full(count, -1, dtype=np.int64)
    product[tagged[hit]] = steps.product[hit, choice]
    in_cart = rng.random(len(hit)) < steps.cart[hit, choice]
    bought = in_cart & (rng.random(len(hit)) < steps.buy[hit, choice])
    order_delay_ms = delays.draw_order_ms(rng, len(hit))
    cart_delay_ms = delays.draw_cart_ms(rng, len(hit))
    before_order = (0.9 * order_delay_ms).astype(np.int64)
    cart_delay_ms = np.where(bought, np.minimum(cart_delay_ms, before_order), cart_delay_ms)
    return Purchases(
        product=product,
        cart=tagged[hit[in_cart]],
        cart_delay_ms=cart_delay_ms[in_cart],
        order=tagged[hit[bought]],
        order_delay_ms=order_delay_ms[bought],
        units=1 + rng.poisson(FURTHER_UNITS, int(bought.sum())),
    )


def _at(count: int, rows: I64, values: Bool) -> Bool:
    """``values`` at ``rows``, false elsewhere, bool [count]."""
    label = np.zeros(count, dtype=np.bool_)
    label[rows] = values
    return label
