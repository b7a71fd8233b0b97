"""The exact probability of every label, and the expected watch time and order value, of one exposure."""

from collections.abc import Callable, Collection

from data.errors import ConfigError
from data.schema import LABELS
from data.simulator import watch
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
from data.simulator.delays import order_probability_within
from data.simulator.shopping import FURTHER_UNITS, funnel
from data.simulator.taste import F64, I64
from data.simulator.world import World

QUANTITIES = (*LABELS, "watch_ms", "order_value_minor")
_SHOPPING = ("product_click", "add_to_cart", "purchase", "order_value_minor")


def expect(
    world: World, exposure: Exposure, stock_out_day: I64, window_days: float, quantities: Collection[str]
) -> dict[str, F64]:
    """The expectation of each of ``quantities`` for n exposures, float64 [n] each.

    Labels: the probability that the label is true, for ``purchase`` that the order comes within
    ``window_days`` of the impression (``order_value_minor`` alike, minor units of the user's currency).
    ``watch_ms`` is exact up to the half millisecond lost in rounding down.
    """
    strangers = sorted(set(quantities) - set(QUANTITIES))
    if strangers:
        raise ConfigError(f"no quantity {strangers[0]!r} in the simulator; there are {', '.join(QUANTITIES)}")
    taste = user_taste(world, exposure.user, exposure.day)
    affinity = video_affinity(world, exposure, taste)
    seen = examination(exposure)
    click = click_probability(world, exposure, affinity)
    clicked = seen * click
    log_median = watch_log_median(world, exposure, affinity)
    duration = world.videos.duration_ms[exposure.video]
    compute: dict[str, Callable[[], F64]] = {
        "click": lambda: clicked,
        "long_view": lambda: clicked * watch.long_view_probability(log_median, duration),
        "hide": lambda: seen * (1 - click) * hide_probability(world, exposure, affinity),
        "watch_ms": lambda: (
            clicked * watch.expected_watch_ms(log_median, duration)
            + seen * (1 - click) * watch.expected_glance_ms()
        ),
    }
    result = {name: compute[name]() for name in quantities if name in compute}
    for label in set(quantities) & set(REACTIONS):
        result[label] = clicked * reaction_probability(world, label, exposure, affinity)
    if any(name in _SHOPPING for name in quantities):
        steps = funnel(world, exposure, taste, stock_out_day)
        chosen = (clicked * steps.click)[:, None] * steps.share
        carted = chosen * steps.cart
        bought = carted * steps.buy * order_probability_within(window_days)
        value = (bought * steps.price_minor).sum(axis=1) * (1 + FURTHER_UNITS)
        shopping = (clicked * steps.click, carted.sum(axis=1), bought.sum(axis=1), value)
        result |= {name: row for name, row in zip(_SHOPPING, shopping, strict=True) if name in quantities}
    return {name: result[name] for name in quantities}
