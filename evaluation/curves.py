"""Statistics of a binary label from counts by score: exact where every distinct score has its own count.

Counts are arrays whose last axis ``K`` runs over scores in ascending order; leading axes (bootstrap
replicates) are carried along. ``positive_K`` and ``negative_K`` are how many true and false labels had
that score.
"""

from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Bools, Floats, Ints

#: Finest histogram of probabilities where rows are too many to sort: 2²² bins over 31 octaves.
DENSE_BITS = 22
_OCTAVES = 31
_FLOOR = int(np.float64(2.0**-_OCTAVES).view(np.int64))
_SHIFT = 52 + 5 - DENSE_BITS


def auc(positive_K: Floats, negative_K: Floats) -> Floats:
    """Area under the ROC curve: the chance that a true row scores above a false one, ties count ½.

    In [0, 1], .5 = random, NaN where one class is absent.
    Source: Hanley and McNeil, Radiology 1982; the Mann-Whitney U statistic.
    """
    below_K = np.cumsum(negative_K, axis=-1) - negative_K
    won = (positive_K * (below_K + 0.5 * negative_K)).sum(axis=-1)
    return divide(won, positive_K.sum(axis=-1) * negative_K.sum(axis=-1))


def auc_error(positive_K: Floats, negative_K: Floats) -> float:
    """How far the AUC of binned scores can be off: half the share of pairs that fell into one bin."""
    pairs = float(positive_K.sum() * negative_K.sum())
    return float((positive_K * negative_K).sum()) / (2 * pairs) if pairs else 0.0


def average_precision(positive_K: Floats, negative_K: Floats) -> Floats:
    """Area under the precision-recall curve as Σ (recall step) · precision, from the highest score down.

    In [0, 1]; a random score gives the base rate. NaN without a true label.
    Source: Davis and Goadrich, ICML 2006; the step-wise sum of scikit-learn's average_precision_score.
    """
    true_K = np.cumsum(positive_K[..., ::-1], axis=-1)
    all_K = true_K + np.cumsum(negative_K[..., ::-1], axis=-1)
    precision_K = np.divide(true_K, all_K, out=np.zeros_like(true_K), where=all_K > 0)
    return divide((positive_K[..., ::-1] * precision_K).sum(axis=-1), positive_K.sum(axis=-1))


def normalised_entropy(loss: Floats, positives: Floats, rows: Floats) -> Floats:
    """Average log loss over the entropy of the base rate: 1 = no better than the base rate, 0 = perfect.

    ``loss`` is the summed log loss in nats. NaN where only one class occurs.
    Source: He et al., Practical lessons from predicting clicks on ads at Facebook, ADKDD 2014.
    """
    rate = divide(positives, rows)
    inner = (rate > 0) & (rate < 1)
    safe = np.where(inner, rate, 0.5)
    entropy = -(safe * np.log(safe) + (1 - safe) * np.log(1 - safe))
    return np.where(inner, divide(loss, rows) / entropy, np.nan)


def calibration_error(rows_K: Floats, positive_K: Floats, probability_K: Floats) -> Floats:
    """Expected calibration error Σ (n/N) |rate − mean p| over bins of equal mass (adaptive ECE).

    ``probability_K`` is the sum of predicted probabilities in a bin. In [0, 1], 0 = calibrated, NaN
    without rows. Equal mass rather than equal width, because most rates here are a few per cent.
    Sources: Naeini et al., AAAI 2015; Nguyen and O'Connor, EMNLP 2015.
    """
    return divide(np.abs(positive_K - probability_K).sum(axis=-1), rows_K.sum(axis=-1))


@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """Ascending ``score_K`` with the counts at each; ``binned`` where several scores share an entry."""

    score_K: Floats
    positive_K: Floats
    negative_K: Floats
    binned: bool

    def edges(self, bins: int) -> Floats:
        """Lower edges of at most ``bins`` bins of equal mass, each distinct score in one bin."""
        rows_K = self.positive_K + self.negative_K
        before_K = np.cumsum(rows_K) - rows_K
        bin_K = (before_K * bins // max(rows_K.sum(), 1)).astype(np.int64)
        return self.score_K[np.r_[True, bin_K[1:] != bin_K[:-1]]] if len(bin_K) else np.zeros(1)


def exact_counts(score_N: Floats, label_N: Bools) -> ScoreCounts:
    """Counts per distinct score."""
    order = np.argsort(score_N)
    score_N, label_N = score_N[order], label_N[order]
    starts = (
        np.flatnonzero(np.r_[True, score_N[1:] != score_N[:-1]]) if len(score_N) else np.zeros(0, np.int64)
    )
    rows_K = np.diff(np.r_[starts, len(score_N)])
    positive_K = np.add.reduceat(label_N.astype(np.float64), starts) if len(starts) else np.zeros(0)
    return ScoreCounts(score_N[starts], positive_K, rows_K - positive_K, binned=False)


class DenseCounts:
    """A histogram of probabilities fine to a relative 7.6e-6, for logs that cannot be sorted."""

    def __init__(self) -> None:
        self.count_K2 = np.zeros((1 << DENSE_BITS) * 2, np.int64)

    def add(self, score_N: Floats, label_N: Bools) -> None:
        """Count a batch of probabilities in [0, 1]."""
        code_N = dense_bins(score_N) * 2 + label_N
        self.count_K2 += np.bincount(code_N, minlength=len(self.count_K2))

    def counts(self) -> ScoreCounts:
        """The bins that occurred, each at its lower edge."""
        count_K2 = self.count_K2.reshape(-1, 2).astype(np.float64)
        used = np.flatnonzero(count_K2.sum(axis=1))
        edge_K = ((used << _SHIFT) + _FLOOR).view(np.float64)
        edge_K[used == 0] = 0.0
        return ScoreCounts(edge_K, count_K2[used, 1], count_K2[used, 0], binned=True)


def dense_bins(score_N: Floats) -> Ints:
    """The bin of each probability: order is kept, because non-negative doubles sort like their bits."""
    bits_N = np.ascontiguousarray(score_N, np.float64).view(np.int64)
    bin_N: Ints = np.minimum((np.maximum(bits_N, _FLOOR) - _FLOOR) >> _SHIFT, (1 << DENSE_BITS) - 1)
    return bin_N


def divide(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom`` of arrays or numbers, NaN where ``bottom`` is not above 0."""
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return quotient
