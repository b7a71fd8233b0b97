"""The hash of rollouts: fixed vectors, right shares, and a growing share moves nobody out."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.assignment import choose, point, within

#: Computed once with coreutils: printf 'SALT\0UNIT' | b2sum -l 64, upper 53 bits over 2^53.
VECTORS = [
    ("spring", 1, 0.21051215062791906),
    ("spring", 2, 0.6069549237056421),
    ("", "", 0.5818916442384907),
    ("2026/experiment/ranker", -9223372036854775808, 0.6599049363180176),
    ("2026/experiment/ranker", 9007199254740993, 0.9001145112415077),
    ("holdout", "v00ü", 0.37712550158860314),
]


@pytest.mark.parametrize(("salt", "unit", "expected"), VECTORS)
def test_vectors(salt: str, unit: int | str, expected: float) -> None:
    assert point(salt, unit) == expected


def test_another_process_agrees() -> None:
    code = "from data.assignment import point; print(point('spring', 12345).hex())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == point("spring", "12345").hex()


@given(st.text(), st.one_of(st.integers(-(2**63), 2**63 - 1), st.text()))
def test_points_lie_in_the_unit_interval(salt: str, unit: int | str) -> None:
    assert 0.0 <= point(salt, unit) < 1.0
    assert point(salt, unit) == point(salt, str(unit))


@given(st.text(), st.integers(), st.floats(0, 1), st.floats(0, 1))
def test_whoever_is_in_a_share_stays_in_a_larger_one(salt: str, unit: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert within(salt, unit, high) or not within(salt, unit, low)
    assert within(salt, unit, 1.0)
    assert not within(salt, unit, 0.0)


def test_arms_get_their_weights_and_salts_are_independent() -> None:
    users = range(40_000)
    weights = [("control", 7.0), ("a", 2.0), ("off", 0.0), ("b", 1.0)]
    first = [choose("one", user, weights) for user in users]
    counts = Counter(first)
    assert counts["off"] == 0
    for name, weight in weights:
        p = weight / 10
        assert abs(counts[name] - p * len(users)) <= 4.5 * (p * (1 - p) * len(users)) ** 0.5
    second = [choose("two", user, weights) for user in users]
    both = Counter(zip(first, second, strict=True))
    for name, weight in weights:  # within an arm of one experiment, the other splits as everywhere
        p = weight / 10
        size = counts["control"]
        assert abs(both["control", name] - p * size) <= 4.5 * (p * (1 - p) * size) ** 0.5


@pytest.mark.parametrize("weights", [[("a", 0.0)], [("a", -1.0), ("b", 2.0)], [("a", float("nan"))]])
def test_weights_that_choose_nobody_are_refused(weights: list[tuple[str, float]]) -> None:
    with pytest.raises(ValueError, match="weights"):
        choose("salt", 1, weights)
