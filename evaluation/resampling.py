"""Intervals of statistics that are not means (AUC, ECE, NE, RMSE …), by resampling groups of users.

The statistic of a resample is computed from summed group statistics. Those may be coarser than the data
(a curve of 256 scores); so only the *deviation* from the same coarse statistic of all groups is used,
added to the exact value.
"""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.arrays import Floats
from evaluation.bootstrap import Estimate, draws
from evaluation.classification import BinaryStats, binary_values

Replicates = dict[str, Floats]


def binary_replicates(models: Sequence[BinaryStats], replicates: int, seed: int) -> list[Replicates]:
    """Each metric of each model on the same resamples of users: ``[{name: [B]}, …]``, exact values inside.

    Models are paired by sharing the draws, so ``a[name] − b[name]`` has the paired distribution.
    """

    def values(of: BinaryStats) -> Callable[[Floats], dict[str, Floats]]:
        shape, bins = of.curve_GK2.shape[1:], of.bin_GQ3.shape[1:]
        curve_GX, bin_GX = of.curve_GK2.reshape(len(of.sum_GA), -1), of.bin_GQ3.reshape(len(of.sum_GA), -1)

        def measure(drawn_BG: Floats) -> dict[str, Floats]:
            return binary_values(
                drawn_BG @ of.sum_GA,
                (drawn_BG @ curve_GX).reshape(-1, *shape),
                (drawn_BG @ bin_GX).reshape(-1, *bins),
            )

        return measure

    used_G = np.any([model.sum_GA[:, 0] > 0 for model in models], axis=0)
    found = resample(used_G, [values(model) for model in models], replicates, seed)
    return [_centred(model.exact, deviations) for model, deviations in zip(models, found, strict=True)]


def resample(
    used_G: Floats, statistics: Sequence[Callable[[Floats], dict[str, Floats]]], replicates: int, seed: int
) -> list[Replicates]:
    """Each statistic on every draw minus the statistic of all groups, ``[{name: [B]}, …]``.

    ``used_G`` says which groups have any user; the others are never drawn.
    """
    where = np.flatnonzero(used_G)
    parts: list[list[dict[str, Floats]]] = [[] for _ in statistics]
    for drawn_BU in draws(len(where), replicates, seed) if len(where) else ():
        drawn_BG = np.zeros((len(drawn_BU), len(used_G)))
        drawn_BG[:, where] = drawn_BU
        for kept, statistic in zip(parts, statistics, strict=True):
            kept.append(statistic(drawn_BG))
    whole = [statistic(np.ones((1, len(used_G)))) for statistic in statistics]
    return [
        {name: np.concatenate([part[name] for part in kept] or [np.zeros(0)]) - all_[name] for name in all_}
        for kept, all_ in zip(parts, whole, strict=True)
    ]


def interval(
    value: float, replicates_B: Floats, n: int, *, centre: bool = False, level: float = 0.95
) -> Estimate:
    """Percentile interval; ``centre`` shifts the replicates' median onto the value.

    Centring is for ECE, which resampling inflates: a bin's noise adds to its error and never cancels.
    """
    known_B = replicates_B[~np.isnan(replicates_B)]
    if np.isnan(value) or not len(known_B):
        return Estimate(value, float("nan"), float("nan"), n)
    if centre:
        known_B = np.maximum(known_B - np.median(known_B) + value, 0.0)
    low, high = np.quantile(known_B, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def _centred(exact: dict[str, float], deviations: Replicates) -> Replicates:
    return {name: exact[name] + deviation_B for name, deviation_B in deviations.items()}
