"""Metrics of predicted watch time against the time watched, both in milliseconds.

Errors are summed per group of users as in ``evaluation.classification``. The order metric XAUC is exact
up to ``spool.MEMORY_ROWS`` rows and comes from a 1024 × 1024 histogram beyond, with a bound of its error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.arrays import Floats, Ints, Words, sum_by
from evaluation.classification import UNITS, groups_of
from evaluation.curves import divide
from evaluation.resampling import Replicates, resample
from evaluation.spool import Spool

GRID = 1024
SMALL = 64
ADDED = ("rows", "absolute", "squared", "bias", "concordant", "comparable")
NAMES = ("mae", "rmse", "bias", "xauc")


@dataclass(frozen=True, slots=True)
class WatchStats:
    """Sums per group of users (columns ``ADDED``) and the exact values of ``NAMES``."""

    exact: dict[str, float]
    xauc_error: float
    rows: int
    users: int
    sum_GA: Floats


def watch_stats(source: Iterator[tuple[Words, Floats, Floats]], rows: int) -> WatchStats:
    """Statistics of (user word, predicted ms, watched ms) batches; zero rows give NaN.

    ``mae`` and ``rmse`` in ms, ≥ 0; ``bias`` = mean of prediction minus truth in ms. ``xauc`` = share of
    row pairs with different watch times that the prediction orders rightly, ties of the prediction ½; in
    [0, 1], .5 = random, NaN without such a pair (Zhan et al., Deconfounding duration bias in watch-time
    prediction, KDD 2022).
    """
    with Spool(rows, [np.float64, np.float64]) as spool:
        for user_N, predicted_N, watched_N in source:
            spool.append(user_N, predicted_N, watched_N)
        return _stats(spool)


def watch_values(sum_A: Floats) -> dict[str, Floats]:
    """The metrics of ``NAMES`` from summed statistics; leading axes are bootstrap replicates."""
    total = {name: sum_A[..., column] for column, name in enumerate(ADDED)}
    return {
        "mae": divide(total["absolute"], total["rows"]),
        "rmse": np.sqrt(divide(total["squared"], total["rows"])),
        "bias": divide(total["bias"], total["rows"]),
        "xauc": divide(total["concordant"], total["comparable"]),
    }


def watch_replicates(models: Sequence[WatchStats], replicates: int, seed: int) -> list[Replicates]:
    """The metrics of each model on shared resamples of users, ``[{name: [B]}, …]``.

    XAUC is a mean over *pairs*: a row's share of it moves both ends of its pairs, so the deviation of
    the mean over rows counts twice (Hoeffding's projection of a U-statistic).
    """
    used_G = np.any([model.sum_GA[:, 0] > 0 for model in models], axis=0)
    measures = [lambda drawn_BG, of=model: watch_values(drawn_BG @ of.sum_GA) for model in models]
    found = resample(used_G, measures, replicates, seed)
    return [
        {
            name: model.exact[name] + deviation_B * (2.0 if name == "xauc" else 1.0)
            for name, deviation_B in d.items()
        }
        for model, d in zip(models, found, strict=True)
    ]


def xauc(predicted_N: Floats, watched_N: Floats) -> float:
    """Exact XAUC of rows in memory, in O(n log n) through Kendall's count of discordant pairs."""
    pairs = len(predicted_N) * (len(predicted_N) - 1) / 2
    comparable = pairs - _tied_pairs(watched_N)
    ordered = pairs - _tied_pairs(predicted_N)
    if comparable == 0:
        return float("nan")
    if ordered == 0:
        return 0.5
    if len(predicted_N) <= SMALL:  # scipy's p-value divides by zero on two rows
        sign_NN = np.sign(np.subtract.outer(predicted_N, predicted_N)) * np.sign(
            np.subtract.outer(watched_N, watched_N)
        )
        return float((comparable + sign_NN.sum() / 2) / (2 * comparable))
    tau = stats.kendalltau(predicted_N, watched_N, method="asymptotic").statistic
    surplus = tau * np.sqrt(comparable) * np.sqrt(ordered)
    return float((comparable + surplus) / (2 * comparable))


def _stats(spool: Spool) -> WatchStats:
    predicted_edges = watched_edges = np.zeros(1)
    for _, predicted_N, watched_N in spool:  # the first partition is a random sample of the users
        predicted_edges, watched_edges = _edges(predicted_N), _edges(watched_N)
        break
    shape = (len(predicted_edges), len(watched_edges))
    grid = np.zeros(shape[0] * shape[1], np.int64)
    for _, predicted_N, watched_N in spool:
        grid += np.bincount(
            _cell(predicted_edges, watched_edges, predicted_N, watched_N), minlength=len(grid)
        )
    concordant, comparable = _pairs_of_cell(grid.reshape(shape).astype(np.float64))
    sum_GA = np.zeros((UNITS, len(ADDED)))
    users = 0
    exact = float("nan")
    for user_N, predicted_N, watched_N in spool:
        group_N = groups_of(user_N)
        users += len(np.unique(user_N))
        error_N = predicted_N - watched_N
        cell_N = _cell(predicted_edges, watched_edges, predicted_N, watched_N)
        weights = (
            np.ones(len(error_N)), np.abs(error_N), error_N**2, error_N,
            concordant.ravel()[cell_N], comparable.ravel()[cell_N],
        )  # fmt: skip
        sum_GA += np.stack([sum_by(group_N, weight_N, UNITS) for weight_N in weights], axis=1)
        if spool.in_memory:
            exact = xauc(predicted_N, watched_N)
    values = {name: float(value) for name, value in watch_values(sum_GA.sum(axis=0)).items()}
    rows = int(sum_GA[:, 0].sum())
    bound = 0.0 if spool.in_memory or not rows else _unresolved(grid.reshape(shape)) / rows**2
    if spool.in_memory:
        values["xauc"] = exact
    return WatchStats(values, bound, rows, users, sum_GA)


def _pairs_of_cell(grid: Floats) -> tuple[Floats, Floats]:
    """For a row of each cell: how many others it is ordered rightly against (ties ½), and comparable to."""
    below = np.cumsum(np.cumsum(grid, axis=0), axis=1)
    padded = np.pad(below, ((1, 0), (1, 0)))
    total = padded[-1, -1]
    less = padded[:-1, :-1]
    more = total - padded[1:, -1:] - padded[-1:, 1:] + padded[1:, 1:]
    row = grid.sum(axis=1, keepdims=True)
    tied = row - grid
    comparable = np.broadcast_to(total - grid.sum(axis=0, keepdims=True), grid.shape)
    return less + more + 0.5 * tied, comparable


def _unresolved(grid: Ints) -> float:
    """Row pairs that share a bin of either axis, whose order the histogram cannot tell."""
    return float(
        (grid.sum(axis=1).astype(np.float64) ** 2).sum() + (grid.sum(axis=0).astype(np.float64) ** 2).sum()
    )


def _cell(predicted_edges: Floats, watched_edges: Floats, predicted_N: Floats, watched_N: Floats) -> Ints:
    row_N = np.maximum(np.searchsorted(predicted_edges, predicted_N, side="right") - 1, 0)
    column_N = np.maximum(np.searchsorted(watched_edges, watched_N, side="right") - 1, 0)
    return (row_N * len(watched_edges) + column_N).astype(np.int64)


def _edges(value_N: Floats) -> Floats:
    distinct = np.unique(value_N)
    if len(distinct) <= GRID:
        return distinct
    return np.unique(np.quantile(value_N, np.linspace(0, 1, GRID, endpoint=False), method="lower"))


def _tied_pairs(value_N: Floats) -> float:
    counts = np.unique(value_N, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())
