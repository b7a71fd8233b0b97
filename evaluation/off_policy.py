"""What would another policy have earned? Estimators of its mean reward from a log with propensities.

Each takes the log's rows ``N``: ``reward``, importance ``weight`` = target probability / propensity of
what was shown, and for the model-based ones ``q`` (modelled reward of what was shown) and ``q_target``
(its mean over the target's choices in that context).

Model-free estimators return (top, bottom) per row, the estimate being Σ top / Σ bottom. Model-based ones
all are the mean of q_target + v·(reward − q) and differ in v, which they return: the direct method
trusts the model (v = 0), the doubly robust one the weights (v = w), the others lie between.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Floats

#: How many thresholds of SWITCH-DR and λ of DRos are tried.
GRID = 40


@dataclass(frozen=True, slots=True)
class LoggedRows:
    """The rows of one log as the estimators need them; ``q_target_N`` is NaN without a model."""

    reward_N: Floats
    weight_N: Floats
    q_N: Floats
    q_target_N: Floats

    @property
    def modelled(self) -> bool:
        """Whether there is a reward model."""
        return bool(len(self.q_N)) and not np.isnan(self.q_target_N).any()

    def corrected(self, weight_N: Floats) -> Floats:
        """q_target + weight · (reward − q) [N]."""
        return self.q_target_N + weight_N * (self.reward_N - self.q_N)


def ips(rows: LoggedRows) -> tuple[Floats, Floats]:
    """Inverse propensity scoring, mean of w·r: unbiased where propensities are right; variance of w.

    Source: Horvitz and Thompson, JASA 1952; Strehl et al., NIPS 2010.
    """
    return rows.weight_N * rows.reward_N, np.ones(len(rows.reward_N))


def snips(rows: LoggedRows) -> tuple[Floats, Floats]:
    """Self-normalised IPS, Σw·r / Σw: stays within the range of rewards, bias vanishing with n.

    Source: Swaminathan and Joachims, The self-normalized estimator, NIPS 2015.
    """
    return rows.weight_N * rows.reward_N, rows.weight_N


def direct_method(rows: LoggedRows) -> Floats:
    """Mean of the modelled reward of the target's choices: no weights, as wrong as the model is.

    Source: Beygelzimer and Langford, The offset tree, KDD 2009.
    """
    return np.zeros(len(rows.weight_N))


def doubly_robust(rows: LoggedRows) -> Floats:
    """The model corrected by weighted residuals: right if either model or propensities are.

    Source: Dudík, Langford and Li, Doubly robust policy evaluation and learning, ICML 2011.
    """
    return rows.weight_N


def switch_doubly_robust(rows: LoggedRows) -> Floats:
    """Doubly robust where the weight is at most τ, the model alone above; τ of least estimated error.

    Source: Wang, Agarwal and Dudík, Optimal and adaptive off-policy evaluation, ICML 2017.
    """
    thresholds = np.quantile(rows.weight_N, np.linspace(0.5, 1.0, GRID))
    return _best(rows, [np.where(rows.weight_N <= t, rows.weight_N, 0.0) for t in thresholds])


def optimistic_shrinkage(rows: LoggedRows) -> Floats:
    """Doubly robust with weights λw / (w² + λ), which trade bias for variance; λ of least estimated error.

    Source: Su et al., Doubly robust off-policy evaluation with shrinkage, ICML 2020.
    """
    largest = max(float(rows.weight_N.max(initial=0.0)), 1.0)
    square_N = rows.weight_N**2
    return _best(
        rows, [lam * rows.weight_N / (square_N + lam) for lam in np.geomspace(1e-2, 1e4 * largest**2, GRID)]
    )


MODEL_FREE: dict[str, Callable[[LoggedRows], tuple[Floats, Floats]]] = {"ips": ips, "snips": snips}
MODEL_BASED: dict[str, Callable[[LoggedRows], Floats]] = {
    "dm": direct_method,
    "dr": doubly_robust,
    "switch_dr": switch_doubly_robust,
    "dr_os": optimistic_shrinkage,
}


def _best(rows: LoggedRows, candidates: list[Floats]) -> Floats:
    """The changed weights whose estimate has the least estimated squared bias plus variance.

    The bias is measured against the unchanged weights and taken one standard error larger.
    """
    residual_N = rows.reward_N - rows.q_N
    count = max(len(residual_N), 1)
    errors = []
    for weight_N in candidates:
        gap_N = (weight_N - rows.weight_N) * residual_N
        bias = abs(float(gap_N.mean())) + float(np.sqrt(gap_N.var() / count))
        errors.append(bias**2 + float(rows.corrected(weight_N).var()) / count)
    return candidates[int(np.argmin(errors))]
