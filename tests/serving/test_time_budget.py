"""Ranker → tower score → popularity: what still fits into the time is done, and the answer says what not."""

from contextlib import suppress
from dataclasses import dataclass

import pytest

from serving.time_budget import StepCost


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(cost: StepCost, clock: Clock, seconds: float) -> None:
    with cost.measured():
        clock.now += seconds


def test_a_step_fits_when_it_lately_took_less_than_is_left(clock: Clock) -> None:
    cost = StepCost(clock)
    assert cost.fits(clock.now)
    assert not cost.fits(clock.now - 0.001)
    run(cost, clock, 2.0)
    assert cost.fits(clock.now + 2.0)
    assert not cost.fits(clock.now + 1.9)
    assert cost.fits(float("inf"))


def test_the_estimate_follows_what_the_step_takes_now(clock: Clock) -> None:
    cost = StepCost(clock)
    run(cost, clock, 10.0)
    for _ in range(30):
        run(cost, clock, 1.0)
    assert cost.fits(clock.now + 1.1)
    assert not cost.fits(clock.now + 0.9)


def test_one_slow_run_does_not_end_the_step_for_good(clock: Clock) -> None:
    cost = StepCost(clock)
    run(cost, clock, 100.0)
    tries = 0
    while not cost.fits(clock.now + 1.0):
        tries += 1
        assert tries < 500
    assert tries > 10


def test_a_step_that_fails_costs_time_too(clock: Clock) -> None:
    cost = StepCost(clock)
    with suppress(ValueError), cost.measured():
        clock.now += 5.0
        raise ValueError
    assert not cost.fits(clock.now + 4.9)
