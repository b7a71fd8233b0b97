"""Intervals: pairing, clusters of requests, degenerate cases, coverage of the true mean."""

import numpy as np
import pytest

from evaluation import bootstrap
from evaluation.bootstrap import estimates, user_sums


def test_mean_counts_requests_and_draws_users() -> None:
    value_RM = np.array([[1.0], [0.0], [0.0], [1.0]])
    [found] = estimates(value_RM, np.array([0, 0, 0, 1]), replicates=500, seed=0)
    assert found.value == 0.5
    assert found.n == 2
    assert (found.low, found.high) == pytest.approx((1 / 3, 1.0))


def test_nan_takes_no_part_and_all_nan_is_nan() -> None:
    value_RM = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, np.nan]])
    first, second = estimates(value_RM, np.arange(3), replicates=200, seed=0)
    assert (first.value, first.n) == (0.5, 2)
    assert np.isnan([second.value, second.low, second.high]).all()
    assert second.n == 0


def test_no_requests_at_all() -> None:
    [found] = estimates(np.zeros((0, 1)), np.zeros(0, np.int64), replicates=200, seed=0)
    assert np.isnan(found.value)
    assert found.n == 0


def test_same_seed_same_interval() -> None:
    value_RM = np.random.default_rng(0).random((50, 2))
    assert estimates(value_RM, np.arange(50), replicates=300, seed=4) == estimates(
        value_RM, np.arange(50), replicates=300, seed=4
    )


def test_groups_of_users_give_the_width_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    value_RM = np.random.default_rng(0).exponential(size=(8000, 1))
    [exact] = estimates(value_RM, np.arange(8000), replicates=2000, seed=0)
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 1000)
    assert len(user_sums(value_RM, np.arange(8000)).sum_UM) == 1000
    [grouped] = estimates(value_RM, np.arange(8000), replicates=2000, seed=0)
    assert grouped.value == pytest.approx(exact.value)
    assert grouped.n == 8000
    assert grouped.high - grouped.low == pytest.approx(exact.high - exact.low, rel=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["rare hits", "skewed", "many requests of few users"])
def test_coverage_of_the_true_mean(world: str) -> None:
    covered = 0
    seeds = 400
    for seed in range(seeds):
        random = np.random.default_rng([7, seed])
        user_R = np.arange(400)
        if world == "rare hits":
            value, mean = (random.random(400) < 0.05).astype(float), 0.05
        elif world == "skewed":
            value, mean = random.lognormal(0, 1, 400), float(np.exp(0.5))
        else:
            user_R = np.repeat(np.arange(150), 1 + np.arange(150) % 5)
            value, mean = random.normal(size=150)[user_R] + random.normal(size=len(user_R)), 0.0
        [found] = estimates(value[:, None], user_R, replicates=600, seed=seed)
        covered += found.low <= mean <= found.high
    assert 0.92 <= covered / seeds <= 0.98
