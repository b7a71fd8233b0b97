"""Metrics of one predicted probability against a yes-or-no label, over any number of rows.

Two passes: one counts scores, the other, over rows brought together by user, adds up what belongs to
users. Users fall into ``UNITS`` random groups, which are what the bootstrap resamples; so memory does
not grow with rows, and everything is exact up to ``spool.MEMORY_ROWS`` rows. Beyond that AUC and PR-AUC
come from a histogram of 4 M bins, and ``auc_error`` bounds what that costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation import curves
from evaluation.arrays import Bools, Floats, Ints, Words, sum_by
from evaluation.curves import DenseCounts, ScoreCounts, exact_counts
from evaluation.ids import mix
from evaluation.spool import Spool

UNITS = 2048
CURVE_BINS = 256
RELIABILITY_BINS = 15
#: What is summed per group of users, the columns of ``BinaryStats.sum_GA``.
ADDED = ("rows", "positives", "probability", "loss", "gauc", "gauc_rows")
NAMES = ("auc", "gauc", "pr_auc", "log_loss", "ne", "ece", "calibration")


@dataclass(frozen=True, slots=True)
class BinaryStats:
    """Sufficient statistics of one task; ``G`` groups of users, ``A`` sums, ``K`` score bins, ``Q`` bins.

    ``curve_GK2`` counts false and true labels per coarse score bin (for intervals only); ``bin_GQ3``
    holds rows, positives and summed probability per reliability bin. ``exact`` are the final values.
    """

    exact: dict[str, float]
    auc_error: float
    rows: int
    positives: int
    users: int
    users_of_both_classes: int
    sum_GA: Floats
    curve_GK2: Floats
    bin_GQ3: Floats


def binary_stats(source: Iterator[tuple[Words, Floats, Bools]], rows: int) -> BinaryStats:
    """Statistics of (user word, probability, label) batches; ``rows`` is an upper bound of how many.

    Rows without a label must be left out by the caller. Zero rows give NaN for every metric.
    """
    dense = DenseCounts()
    with Spool(rows, [np.float64, np.bool_]) as spool:
        for user_N, score_N, label_N in source:
            spool.append(user_N, score_N, label_N)
            if not spool.in_memory:
                dense.add(score_N, label_N)
        if spool.in_memory:
            counts = exact_counts(np.zeros(0), np.zeros(0, np.bool_))
            for _, score_N, label_N in spool:
                counts = exact_counts(score_N, label_N)
        else:
            counts = dense.counts()
        return _by_user(spool, counts)


def binary_values(sum_A: Floats, curve_K2: Floats, bin_Q3: Floats) -> dict[str, Floats]:
    """Every metric of ``NAMES`` from summed statistics; leading axes are bootstrap replicates.

    ``gauc`` is the AUC within each user, averaged with the user's rows as weight over the users who
    have both classes (Zhou et al., Deep interest network, KDD 2018). ``log_loss`` is the mean negative
    log likelihood in nats, probabilities clipped at the double epsilon. ``calibration`` is the sum of
    probabilities over the number of true labels, 1 = right on average. Others: ``evaluation.curves``.
    """
    total = {name: sum_A[..., column] for column, name in enumerate(ADDED)}
    negative_K, positive_K = curve_K2[..., 0], curve_K2[..., 1]
    return {
        "auc": curves.auc(positive_K, negative_K),
        "gauc": curves.divide(total["gauc"], total["gauc_rows"]),
        "pr_auc": curves.average_precision(positive_K, negative_K),
        "log_loss": curves.divide(total["loss"], total["rows"]),
        "ne": curves.normalised_entropy(total["loss"], total["positives"], total["rows"]),
        "ece": curves.calibration_error(bin_Q3[..., 0], bin_Q3[..., 1], bin_Q3[..., 2]),
        "calibration": curves.divide(total["probability"], total["positives"]),
    }


def user_aucs(user_N: Words, score_N: Floats, label_N: Bools) -> tuple[Words, Floats, Floats, Floats]:
    """Per user: id word, rows, positives, and the AUC within the user (NaN where one class is absent)."""
    order = np.lexsort((score_N, user_N))
    user_N, score_N = user_N[order], score_N[order]
    positive_N = label_N[order].astype(np.float64)
    new_user_N = np.r_[True, user_N[1:] != user_N[:-1]]
    tie_starts = np.flatnonzero(new_user_N | np.r_[True, score_N[1:] != score_N[:-1]])
    positive_E = np.add.reduceat(positive_N, tie_starts)
    negative_E = np.diff(np.r_[tie_starts, len(user_N)]) - positive_E
    first_E = new_user_N[tie_starts]
    user_E = np.cumsum(first_E) - 1
    below_E = np.cumsum(negative_E) - negative_E
    below_E = below_E - below_E[first_E][user_E]
    users = int(user_E[-1]) + 1
    won_U = sum_by(user_E, positive_E * (below_E + 0.5 * negative_E), users)
    positive_U, negative_U = sum_by(user_E, positive_E, users), sum_by(user_E, negative_E, users)
    return (
        user_N[new_user_N],
        positive_U + negative_U,
        positive_U,
        curves.divide(won_U, positive_U * negative_U),
    )


def groups_of(user_N: Words) -> Ints:
    """The bootstrap group of each user: a fixed hash, so that two models group the same users alike."""
    return (mix(user_N ^ np.uint64(0x517CC1B727220A95)) >> np.uint64(53)).astype(np.int64)


def _by_user(spool: Spool, counts: ScoreCounts) -> BinaryStats:
    sum_GA = np.zeros((UNITS, len(ADDED)))
    curve_edges, bin_edges = counts.edges(CURVE_BINS), counts.edges(RELIABILITY_BINS)
    curve = np.zeros(UNITS * len(curve_edges) * 2)
    bins = np.zeros((3, UNITS * len(bin_edges)))
    users = both = 0
    epsilon = np.finfo(np.float64).eps
    for user_N, score_N, label_N in spool:
        group_N = groups_of(user_N)
        clipped_N = np.clip(score_N, epsilon, 1 - epsilon)
        loss_N = -np.log(np.where(label_N, clipped_N, 1 - clipped_N))
        word_U, rows_U, _, auc_U = user_aucs(user_N, score_N, label_N)
        group_U = groups_of(word_U)
        known_U = ~np.isnan(auc_U)
        users, both = users + len(word_U), both + int(known_U.sum())
        sum_GA += np.stack(
            [
                *(sum_by(group_N, w, UNITS) for w in (np.ones(len(score_N)), label_N, score_N, loss_N)),
                sum_by(group_U, np.where(known_U, auc_U, 0.0) * rows_U, UNITS),
                sum_by(group_U, known_U * rows_U, UNITS),
            ],
            axis=1,
        )
        curve_N = group_N * len(curve_edges) + _bin(curve_edges, score_N)
        curve += np.bincount(curve_N * 2 + label_N, minlength=len(curve))
        bin_N = group_N * len(bin_edges) + _bin(bin_edges, score_N)
        for row, weight_N in enumerate((np.ones(len(score_N)), label_N, score_N)):
            bins[row] += sum_by(bin_N, weight_N, bins.shape[1])
    curve_GK2 = curve.reshape(UNITS, -1, 2)
    bin_GQ3 = bins.reshape(3, UNITS, -1).transpose(1, 2, 0)
    exact = binary_values(sum_GA.sum(axis=0), curve_GK2.sum(axis=0), bin_GQ3.sum(axis=0))
    exact["auc"] = curves.auc(counts.positive_K, counts.negative_K)
    exact["pr_auc"] = curves.average_precision(counts.positive_K, counts.negative_K)
    error = curves.auc_error(counts.positive_K, counts.negative_K) if counts.binned else 0.0
    return BinaryStats(
        exact={name: float(value) for name, value in exact.items()}, auc_error=error,
        rows=int(sum_GA[:, 0].sum()), positives=int(sum_GA[:, 1].sum()), users=users,
        users_of_both_classes=both, sum_GA=sum_GA, curve_GK2=curve_GK2, bin_GQ3=bin_GQ3,
    )  # fmt: skip


def _bin(edges: Floats, score_N: Floats) -> Ints:
    return np.maximum(np.searchsorted(edges, score_N, side="right") - 1, 0).astype(np.int64)
