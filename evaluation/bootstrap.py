"""Intervals of means by resampling users: the unit that behaves independently of the next one.

A metric is a ratio of sums over users, Σ value / Σ count, so that users with several requests count
with each of them but are drawn as a whole. All metrics of a call share their draws, which is what makes
the difference of two of them *paired*.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from evaluation.arrays import Floats, Ints, ratio, stack, sum_by

#: More users than this are first put into this many random groups, which are then resampled.
MAX_UNITS = 16_384


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; ``n`` is the number of users behind it. NaN = undefined."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class UserSums:
    """``sum_UM`` and ``count_UM``: per user (or group of users) and metric, what to add up."""

    sum_UM: Floats
    count_UM: Floats
    users_M: Ints

    def value(self) -> Floats:
        """Σ sum / Σ count per metric, NaN where nothing was counted."""
        return ratio(self.sum_UM.sum(axis=0), self.count_UM.sum(axis=0))


def user_sums(value_RM: Floats, user_R: Ints, seed: int = 0, *, count_RM: Floats | None = None) -> UserSums:
    """Add per-request values up per user; NaN values take no part.

    ``count_RM`` is what each value is counted as in the denominator of the ratio, 1 where not given.

    Above ``MAX_UNITS`` users the sums are those of ``MAX_UNITS`` random groups of users: resampling
    groups has the same expectation and 1/√(2·MAX_UNITS) = 0.6 % noise in the standard error.
    """
    users = int(user_R.max()) + 1 if len(user_R) else 0
    known_RM = ~np.isnan(value_RM)
    clean_RM = np.where(known_RM, value_RM, 0.0)
    seen_UM = [sum_by(user_R, known, users) > 0 for known in known_RM.T]
    unit_R, users = resampling_units(user_R, users, seed)
    sums = [sum_by(unit_R, column, users) for column in clean_RM.T]
    weight_RM = known_RM if count_RM is None else np.where(known_RM, count_RM, 0.0)
    counts = [sum_by(unit_R, column, users) for column in weight_RM.T]
    return UserSums(stack(sums, users), stack(counts, users), np.array([s.sum() for s in seen_UM], np.int64))


def resampling_units(user_R: Ints, users: int, seed: int) -> tuple[Ints, int]:
    """The unit that each row is drawn with, and how many there are: its user, or a random group of them."""
    if users <= MAX_UNITS:
        return user_R, users
    group_U = np.random.default_rng([seed, 1]).permutation(users) % MAX_UNITS
    return group_U[user_R], MAX_UNITS


def draws(units: int, replicates: int, seed: int) -> Iterator[Floats]:
    """Blocks [b, units] of how often each unit is drawn: ``units`` draws with replacement a row."""
    block = max(1, (1 << 22) // max(units, 1))
    for start in range(0, replicates, block):
        yield _drawn(units, min(block, replicates - start), seed, start).astype(np.float64)


@lru_cache(maxsize=16)
def _drawn(units: int, rows: int, seed: int, start: int) -> npt.NDArray[np.uint8]:
    """One block of draws, kept because every metric and slice of a report asks for the same ones.

    At most 64 MiB are kept. A unit is drawn more than 255 times with a chance below 1e-500.
    """
    random = np.random.default_rng([seed, 2, start])
    drawn = random.integers(0, units, (rows, units)) + np.arange(rows)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.uint8)


def replicate(sums: UserSums, replicates: int, seed: int) -> Floats:
    """The statistic on each of ``replicates`` resamples of the users: [replicates, M]."""
    units = len(sums.sum_UM)
    if units == 0:
        return np.full((replicates, sums.sum_UM.shape[1]), np.nan)
    parts = [ratio(drawn @ sums.sum_UM, drawn @ sums.count_UM) for drawn in draws(units, replicates, seed)]
    return np.concatenate(parts)


def estimates(
    value_RM: Floats, user_R: Ints, *, replicates: int, seed: int, level: float = 0.95
) -> list[Estimate]:
    """Mean over requests of each column with its bias-corrected accelerated (BCa) bootstrap interval.

    Empty case: a column that is NaN everywhere gives NaN with n = 0. One user gives an interval of
    width 0. Source: Efron, Better bootstrap confidence intervals, JASA 1987.
    """
    return sum_estimates(user_sums(value_RM, user_R, seed), replicates=replicates, seed=seed, level=level)


def sum_estimates(sums: UserSums, *, replicates: int, seed: int, level: float = 0.95) -> list[Estimate]:
    """Ratio of sums of each column with its BCa interval."""
    low_M, high_M = bca(sums, replicate(sums, replicates, seed), level)
    rows = zip(sums.value(), low_M, high_M, sums.users_M, strict=True)
    return [Estimate(float(v), float(low), float(high), int(n)) for v, low, high, n in rows]


def bca(sums: UserSums, replicate_BM: Floats, level: float) -> tuple[Floats, Floats]:
    """BCa bounds per metric; the acceleration comes from the users' influence on the ratio."""
    value_M = sums.value()
    mean_count_M = np.maximum(sums.count_UM.sum(axis=0), 1e-300) / max(len(sums.count_UM), 1)
    influence_UM = (sums.sum_UM - np.nan_to_num(value_M) * sums.count_UM) / mean_count_M
    square_M = (influence_UM**2).sum(axis=0)
    acceleration_M = np.divide(
        (influence_UM**3).sum(axis=0), 6.0 * square_M**1.5, out=np.zeros_like(value_M), where=square_M > 0
    )
    low_M, high_M = np.full_like(value_M, np.nan), np.full_like(value_M, np.nan)
    for m, value in enumerate(value_M):
        column = replicate_BM[:, m]
        column = column[~np.isnan(column)]
        if len(column):
            low_M[m], high_M[m] = bca_bounds(float(value), column, float(acceleration_M[m]), level)
    return low_M, high_M


def bca_bounds(value: float, replicates_B: Floats, acceleration: float, level: float) -> tuple[float, float]:
    """The BCa interval of one statistic from its bootstrap replicates."""
    below = (replicates_B < value).mean() + 0.5 * (replicates_B == value).mean()
    edge = 0.5 / len(replicates_B)
    bias = special.ndtri(min(max(below, edge), 1 - edge))
    tail = special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = bias + (bias + tail) / (1 - acceleration * (bias + tail))
    low, high = np.quantile(replicates_B, special.ndtr(shifted))
    return float(low), float(high)
