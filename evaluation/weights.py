"""Can importance weights be trusted? Effective size, tails, support, and whether propensities are right.

A weight is target probability over logged probability of what was shown. Its mean over the log is 1
where the logged propensities are true and cover the target.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from evaluation.arrays import Floats, Ints, sum_by
from evaluation.significance import benjamini_hochberg, normal_test

#: Above this shape of the tail, means of weights converge too slowly to be used (Vehtari et al. 2024).
PARETO_LIMIT = 0.7
#: A tail of weights that occur this often on average is not a sample of a density.
REPEATS = 4
MIN_EXPECTED = 10


@dataclass(frozen=True, slots=True)
class WeightReport:
    """Diagnostics of the weights of one log.

    ``effective_rows`` = (Σw)² / Σw²; ``effective_rewards`` the same over w·reward, how many rewards carry
    the estimate; ``mean`` and its standard error (1 where propensities are right); ``largest_share`` the
    part of Σw in one row; ``pareto_k`` the shape of the upper tail (finite variance below .5, finite
    mean below 1); ``unsupported`` the target's probability on choices that the log never made (NaN where
    the target's distribution is not known).
    """

    rows: int
    effective_rows: float
    effective_rewards: float
    mean: float
    mean_error: float
    largest_share: float
    pareto_k: float
    unsupported: float


def weight_report(weight_N: Floats, reward_N: Floats, unsupported: float = float("nan")) -> WeightReport:
    """Diagnose the weights; zero rows give NaN."""
    rows = len(weight_N)
    total = float(weight_N.sum())
    nothing = float("nan")
    return WeightReport(
        rows=rows,
        effective_rows=effective_size(weight_N),
        effective_rewards=effective_size(weight_N * reward_N),
        mean=total / rows if rows else nothing,
        mean_error=float(weight_N.std(ddof=1) / np.sqrt(rows)) if rows > 1 else nothing,
        largest_share=float(weight_N.max() / total) if total > 0 else nothing,
        pareto_k=pareto_k(weight_N),
        unsupported=unsupported,
    )


def effective_size(weight_N: Floats) -> float:
    """Kish's effective sample size (Σw)² / Σw²: how many equal weights would be as precise; 0 for none."""
    square = float((weight_N**2).sum())
    return float(weight_N.sum()) ** 2 / square if square else 0.0


def pareto_k(weight_N: Floats) -> float:
    """Shape k of a generalised Pareto fitted to the largest weights; −∞ where they are all equal.

    The tail holds min(n/5, 3√n) weights. NaN below 25 weights. A tail whose weights repeat ``REPEATS`` times
    on average (policies of few distinct probabilities) is a finite set that has been seen, and has no
    shape either: −∞. A density fitted to heaps would call what lies above them a tail without end.
    Sources: Vehtari et al., Pareto smoothed importance sampling, JMLR 2024; fit by Zhang and Stephens,
    Technometrics 2009.
    """
    count = int(min(len(weight_N) / 5, 3 * np.sqrt(len(weight_N))))
    if count < 5:
        return float("nan")
    ordered = np.sort(weight_N)
    excess = ordered[-count:] - ordered[-count - 1]
    excess = excess[excess > 0]
    if len(excess) < 5 or len(np.unique(np.round(excess / excess[-1], 9))) * REPEATS <= len(excess):
        return float("-inf")
    return _generalised_pareto_shape(excess)


def refusals(
    report: WeightReport, *, min_rows: float, min_rewards: float, max_unsupported: float
) -> list[str]:
    """Why no number should be given; empty where the log supports the target."""
    reasons = []
    if report.effective_rows < min_rows:
        reasons.append(
            f"only {report.effective_rows:.1f} effective rows of {report.rows:,} (needs {min_rows:g})"
        )
    if report.effective_rewards < min_rewards:
        reasons.append(f"only {report.effective_rewards:.1f} effective rewards (needs {min_rewards:g})")
    if report.unsupported > max_unsupported:
        reasons.append(
            f"{report.unsupported:.1%} of the target's choices never occur in the log "
            f"(at most {max_unsupported:.0%})"
        )
    if report.pareto_k >= 1:
        reasons.append(f"the weights' tail has no finite mean (Pareto k = {report.pareto_k:.2f})")
    return reasons


def doubts(report: WeightReport) -> list[str]:
    """What to distrust although a number is given."""
    lines = []
    if PARETO_LIMIT < report.pareto_k < 1:
        lines.append(
            f"heavy tail of weights (Pareto k = {report.pareto_k:.2f} > {PARETO_LIMIT}): "
            "intervals may be short"
        )
    if report.largest_share > 0.05:
        lines.append(f"one row carries {report.largest_share:.0%} of all weight")
    z = abs(report.mean - 1) / report.mean_error if report.mean_error else 0.0
    if z > 3.3:
        lines.append(
            f"weights average {report.mean:.3f}, not 1 ({z:.1f} standard errors): a propensity is wrong "
            "or the target is not covered"
        )
    return lines


@dataclass(frozen=True, slots=True)
class PropensityCheck:
    """Do the logged propensities agree with the frequencies?

    ``cells`` (context, video) pairs were tested, ``wrong`` of them rejected at 5 % after
    Benjamini-Hochberg; ``worst`` is the largest ratio of the frequency to the logged propensity (or its
    inverse) among those.
    """

    cells: int
    wrong: int
    worst: float


def check_propensities(context_N: Ints, video_N: Ints, propensity_N: Floats) -> PropensityCheck:
    """Test each (context, video): the mean over the context's rows of 1[shown]/propensity must be 1.

    For propensities that do not vary within a cell this compares frequency and propensity; it stays
    valid where they vary with the time or the user. Cells expected fewer than ``MIN_EXPECTED``
    times are not tested.
    """
    if not len(context_N):
        return PropensityCheck(0, 0, float("nan"))
    contexts, videos = int(context_N.max()) + 1, int(video_N.max()) + 1
    cell_N, cell_of_row = np.unique(context_N * videos + video_N, return_inverse=True)
    cells = len(cell_N)
    rows_C = np.bincount(context_N, minlength=contexts)[cell_N // videos].astype(np.float64)
    shown_C = sum_by(cell_of_row, np.ones(len(context_N)), cells)
    inverse_C = sum_by(cell_of_row, 1.0 / propensity_N, cells)
    square_C = sum_by(cell_of_row, 1.0 / propensity_N**2, cells)
    mean_C = inverse_C / rows_C
    expected_C = shown_C / np.maximum(mean_C, 1e-300)
    variance_C = np.maximum(square_C / rows_C - mean_C, square_C / rows_C * 1e-12) / rows_C
    tested_C = expected_C >= MIN_EXPECTED
    p_C = normal_test(mean_C - 1.0, np.sqrt(variance_C))
    rejected_C = benjamini_hochberg(np.where(tested_C, p_C, np.nan)) < 0.05
    ratios = np.maximum(mean_C[rejected_C], 1.0 / mean_C[rejected_C])
    worst = float(ratios.max()) if len(ratios) else 1.0
    return PropensityCheck(int(tested_C.sum()), int(rejected_C.sum()), worst)


def _generalised_pareto_shape(excess: Floats) -> float:
    """Zhang and Stephens' empirical-Bayes estimate of k, with the weak prior of PSIS towards .5."""
    excess = np.sort(excess)
    count = len(excess)
    grid = 30 + int(np.sqrt(count))
    quartile = excess[int(count / 4 + 0.5) - 1]
    b = 1.0 / excess[-1] + (1.0 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3.0 * quartile)
    k = np.mean(np.log1p(-b[:, None] * excess[None]), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = count * (np.log(-b / k) - k - 1.0)
    likelihood = np.where(np.isfinite(likelihood), likelihood, -np.inf)
    weight = special.softmax(likelihood)
    shape = float(np.mean(np.log1p(-float(weight @ b) * excess)))
    return (shape * count + 5.0) / (count + 10.0)
