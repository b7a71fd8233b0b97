"""Tests of a difference: known answers, corrections, A/A runs of the verdict, power."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluation.bootstrap import Estimate
from evaluation.comparison import Correction, compare_replicates, compare_requests, verdict
from evaluation.significance import (
    benjamini_hochberg,
    holm,
    minimum_detectable_effect,
    sign_flip_test,
)

NAMES = ["ndcg@20", "recall@20", "hit@20"]


def test_sign_flips_of_few_users_are_exact() -> None:
    difference = np.array([[1.0], [2.0], [3.0], [4.0], [-0.5]])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    exact = (np.abs(signs.T @ difference[:, 0]) >= abs(difference.sum()) - 1e-12).mean()
    assert sign_flip_test(difference, seed=0, permutations=20_000)[0] == pytest.approx(exact, abs=0.01)


def test_nothing_differs_gives_one() -> None:
    assert sign_flip_test(np.zeros((10, 2)), seed=0).tolist() == [1.0, 1.0]


def test_corrections_against_scipy_and_by_hand() -> None:
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.005])
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, np.nan, 0.02], nan_ok=True)
    known = ~np.isnan(p)
    assert benjamini_hochberg(p)[known] == pytest.approx(stats.false_discovery_control(p[known]))
    assert np.isnan(benjamini_hochberg(p)[3])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections_never_help_and_keep_order(values: list[float]) -> None:
    p = np.array(values)
    for adjusted in (holm(p), benjamini_hochberg(p)):
        assert (adjusted >= p - 1e-12).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


def a_a(seed: int, users: int = 250, lift: float = 0.0) -> tuple[list[str], np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng([21, seed])
    base = random.random((users, 3)) ** 3
    noise = 0.3 * random.normal(size=(2, users, 3))
    return NAMES, base + noise[0] + lift, base + noise[1]


@pytest.mark.slow
def test_verdicts_of_500_a_a_comparisons() -> None:
    false_alarms = any_alarm = 0
    for seed in range(500):
        names, new, old = a_a(seed)
        found = compare_requests(
            names, new, old, np.arange(len(new)), correction=Correction.holm, replicates=100, seed=seed
        )
        line = verdict("new", "old", "ndcg@20", found)
        false_alarms += "is not shown to differ" not in line
        any_alarm += any(difference.real for difference in found)
    assert false_alarms / 500 <= 0.05
    assert any_alarm / 500 <= 0.065  # of any of the three metrics, Holm; 5 % and its noise


def test_detectable_effect_is_found_four_times_of_five() -> None:
    detectable = []
    found = 0
    names, new, old = a_a(0)
    [first, *_] = compare_requests(
        names, new, old, np.arange(250), correction=Correction.none, replicates=500, seed=0
    )
    for seed in range(150):
        names, new, old = a_a(seed, lift=first.detectable)
        [difference, *_] = compare_requests(
            names, new, old, np.arange(250), correction=Correction.none, replicates=100, seed=seed
        )
        found += difference.p < 0.05
        detectable.append(difference.detectable)
    assert 0.7 < found / 150 < 0.9
    assert minimum_detectable_effect(1.0) == pytest.approx(2.8016, abs=1e-3)


def test_verdict_lines() -> None:
    names, new, old = a_a(1, lift=0.2)
    new[:, 1] -= 0.5
    found = compare_requests(
        names, new, old, np.arange(250), correction=Correction.holm, replicates=300, seed=0
    )
    line = verdict("new", "old", "ndcg@20", found)
    assert line.startswith("new is better than old: ndcg@20")
    assert "but worse on recall@20 (-0.3" in line
    assert "250 users" in line
    assert "smallest effect this test would see" in line
    reverse = compare_requests(
        names, old, new, np.arange(250), correction=Correction.holm, replicates=300, seed=0
    )
    assert verdict("old", "new", "ndcg@20", reverse).startswith("old is worse than new")
    assert verdict("a", "b", "map@3", found) == "a and b cannot be compared on map@3"


def test_less_is_better_for_errors() -> None:
    random = np.random.default_rng(0)
    draws = (
        {"ne/click": 0.8 + 0.01 * random.normal(size=500)},
        {"ne/click": 0.9 + 0.01 * random.normal(size=500)},
    )
    values = [{"ne/click": Estimate(mean, mean - 0.02, mean + 0.02, 900)} for mean in (0.8, 0.9)]
    [difference] = compare_replicates(*values, *draws, correction=Correction.holm)
    assert difference.direction == 1
    assert difference.delta.value == pytest.approx(-0.1)
    assert difference.delta.high < 0
