"""Is it real? Tests of a difference, corrected for how many were made, and what could have been seen."""

from collections.abc import Callable

import numpy as np
from scipy import special

from evaluation.arrays import Floats

ALPHA = 0.05
POWER = 0.8
PERMUTATIONS = 10_000


def sign_flip_test(difference_UM: Floats, seed: int, permutations: int = PERMUTATIONS) -> Floats:
    """Two-sided p-values of paired differences, one per metric [M], by randomly swapping the two systems.

    ``difference_UM`` is the summed difference of each user (or group of users). Under the null the two
    systems are exchangeable within a user, so every sign is as likely as its opposite. The observed
    labelling counts as one permutation: p ≥ 1/(permutations + 1), and 1 where nothing differs.
    Source: Fisher 1935; Smucker, Allan and Carterette, A comparison of statistical significance tests
    for IR evaluation, CIKM 2007.
    """
    users, metrics = difference_UM.shape
    observed_M = np.abs(difference_UM.sum(axis=0))
    tolerance_M = 1e-12 * np.abs(difference_UM).sum(axis=0)
    random = np.random.default_rng([seed, 3])
    reached_M = np.ones(metrics)
    block = max(1, min(permutations, (1 << 22) // max(users, 1)))
    for start in range(0, permutations, block):
        size = min(block, permutations - start)
        bits = np.unpackbits(random.integers(0, 256, (size, -(-users // 8)), np.uint8), axis=1, count=users)
        flipped_BM = (bits * 2.0 - 1.0) @ difference_UM
        reached_M += (np.abs(flipped_BM) >= observed_M - tolerance_M).sum(axis=0)
    p_M: Floats = reached_M / (permutations + 1)
    return p_M


def normal_test(value_M: Floats, error_M: Floats) -> Floats:
    """Two-sided p-values of ``value`` against 0 with standard error ``error``; 1 where both are 0."""
    z_M = np.divide(np.abs(value_M), error_M, out=np.zeros_like(value_M), where=error_M > 0)
    z_M = np.where((error_M == 0) & (value_M != 0), np.inf, z_M)
    p_M: Floats = 2.0 * special.ndtr(-z_M)
    return np.where(np.isnan(value_M) | np.isnan(error_M), np.nan, p_M)


def holm(p_M: Floats) -> Floats:
    """P-values adjusted so that the chance of *any* false discovery stays below the level.

    NaN stays NaN and is not counted as a test. Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    return _adjusted(p_M, lambda sorted_p: np.maximum.accumulate(sorted_p * np.arange(len(sorted_p), 0, -1)))


def benjamini_hochberg(p_M: Floats) -> Floats:
    """P-values adjusted so that the expected *share* of false discoveries stays below the level.

    NaN stays NaN and is not counted as a test. Source: Benjamini and Hochberg, JRSS B 1995.
    """
    return _adjusted(
        p_M,
        lambda sorted_p: np.minimum.accumulate(
            (sorted_p * len(sorted_p) / np.arange(1, len(sorted_p) + 1))[::-1]
        )[::-1],
    )


def minimum_detectable_effect(error: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that a two-sided test at ``alpha`` would find with ``power``, given its error.

    (z₁₋α/₂ + z_power) · standard error = 2.80 · error at the defaults.
    Source: Bloom, Minimum detectable effects, Evaluation Review 1995.
    """
    return float((special.ndtri(1 - alpha / 2) + special.ndtri(power)) * error)


def _adjusted(p_M: Floats, adjust: Callable[[Floats], Floats]) -> Floats:
    result = np.full(len(p_M), np.nan)
    known = np.flatnonzero(~np.isnan(p_M))
    order = known[np.argsort(p_M[known], kind="stable")]
    result[order] = np.minimum(adjust(p_M[order]), 1.0)
    return result
