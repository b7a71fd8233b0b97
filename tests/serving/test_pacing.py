"""Pacing: the share of the traffic that has passed, known by arithmetic; and whole days spent by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pacing import FLAT, HOUR_MS, HOURS, Traffic, learned, may_spend

DAY_MS = HOURS * HOUR_MS
MIDNIGHT = 19_700 * DAY_MS
#: Pages per hour of a day: a deep night, lunch, and an evening four times as busy as the mean of the night.
DIURNAL = (20, 12, 8, 6, 6, 10, 25, 45, 60, 62, 64, 75, 90, 84, 70, 66, 68, 78, 95, 120, 135, 128, 90, 45)


def test_shares_by_hand() -> None:
    traffic = Traffic((1.0,) * 6 + (3.0,) * 6 + (0.0,) * 12)
    assert traffic.passed(MIDNIGHT, MIDNIGHT + DAY_MS, MIDNIGHT) == 0
    assert traffic.passed(MIDNIGHT, MIDNIGHT + DAY_MS, MIDNIGHT + 6 * HOUR_MS) == pytest.approx(0.25)
    assert traffic.passed(MIDNIGHT, MIDNIGHT + DAY_MS, MIDNIGHT + 7 * HOUR_MS) == pytest.approx(0.375)
    assert traffic.passed(MIDNIGHT, MIDNIGHT + DAY_MS, MIDNIGHT + 18 * HOUR_MS) == pytest.approx(1.0)
    # two days and a period that begins at nine: 3 + 3 + 3 of it, then 24
    begin = MIDNIGHT + 9 * HOUR_MS
    assert traffic.passed(begin, MIDNIGHT + 2 * DAY_MS, MIDNIGHT + DAY_MS) == pytest.approx(9 / 33)
    # hours in which nobody is expected pass by the clock
    assert traffic.passed(MIDNIGHT + 12 * HOUR_MS, MIDNIGHT + DAY_MS, MIDNIGHT + 15 * HOUR_MS) == 0.25


MOMENTS = st.integers(MIDNIGHT - DAY_MS, MIDNIGHT + 5 * DAY_MS)
TRAFFICS = st.lists(st.floats(0, 1e6), min_size=HOURS, max_size=HOURS).filter(any).map(tuple).map(Traffic)


@given(TRAFFICS, MOMENTS, st.integers(1, 4 * DAY_MS), MOMENTS, MOMENTS)
def test_a_share_grows_from_nothing_to_all(
    traffic: Traffic, begin: int, length: int, one: int, other: int
) -> None:
    earlier, later = sorted((one, other))
    shares = [traffic.passed(begin, begin + length, at) for at in (begin, earlier, later, begin + length)]
    assert shares[0] == 0
    assert shares[3] == 1
    assert 0 <= shares[1] <= shares[2] <= 1


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**9), st.floats(0, 1))
def test_no_budget_is_passed_nor_its_pace_by_more_than_a_price(
    spent: int, price: int, budget: int, passed: float
) -> None:
    if may_spend(spent, price, budget, passed):
        assert spent + price <= budget
        assert spent + price <= budget * passed + price
    elif spent + price <= budget:
        assert spent >= budget * passed


def test_learning_takes_the_mean_of_each_hour() -> None:
    assert learned([], 0) == FLAT
    assert learned([5] * 23, 0) == FLAT
    assert learned([0] * 48, 0) == FLAT
    two_days = [*range(24), *(hour + 10 for hour in range(24))]
    assert learned(two_days, 24 * 100).weight_H == tuple(hour + 5.0 for hour in range(24))
    assert learned(two_days[5:], 24 * 100 + 5).weight_H[:6] == (10.0, 11.0, 12.0, 13.0, 14.0, 10.0)


@pytest.mark.parametrize("weights", [(1.0,) * 23, (0.0,) * 24, (-1.0,) + (1.0,) * 23, (float("inf"),) * 24])
def test_traffic_that_cannot_be_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="24 weights"):
        Traffic(weights)


def spend_a_day(
    traffic: Traffic, pages_H: np.ndarray, budget: int, price: int, reachable: float, seed: int
) -> np.ndarray:
    """What is spent by the end of every hour, where a page fits the campaign with chance ``reachable``."""
    dice = np.random.default_rng(seed)
    spent, by_hour = 0, []
    for hour, pages in enumerate(pages_H):
        moments = np.sort(dice.integers(0, HOUR_MS, pages)) + MIDNIGHT + hour * HOUR_MS
        for moment in moments[dice.random(pages) < reachable].tolist():
            passed = traffic.passed(MIDNIGHT, MIDNIGHT + DAY_MS, moment)
            if may_spend(spent, price, budget, passed):
                spent += price
        by_hour.append(spent)
    return np.array(by_hour)


@pytest.mark.parametrize("price", [1, 25])
@pytest.mark.parametrize("known", ["given", "learned", "flat"])
def test_a_day_is_delivered_in_full_and_never_burnt_early(known: str, price: int) -> None:
    """A day of some 30,000 pages, a third of them for the campaign, a budget of half of what could be had."""
    dice = np.random.default_rng(7)
    pages_H = dice.poisson(20 * np.array(DIURNAL))
    yesterday_H = dice.poisson(20 * np.array(DIURNAL))
    traffic = {
        "given": Traffic(tuple(map(float, DIURNAL))),
        "learned": learned(yesterday_H.tolist(), MIDNIGHT // HOUR_MS - 24),
        "flat": FLAT,
    }[known]
    budget = price * int(pages_H.sum() / 6)
    by_hour = spend_a_day(traffic, pages_H, budget, price, 1 / 3, seed=1)
    assert by_hour[-1] <= budget
    assert by_hour[-1] >= 0.95 * budget
    if known == "flat":  # the evening makes up for the night
        assert (by_hour <= budget * (np.arange(24) + 1) / 24 + price).all()
        return
    traffic_H = np.cumsum(pages_H) / pages_H.sum()
    assert np.abs(by_hour / budget - traffic_H).max() < 0.03  # it follows the viewers, all day long
