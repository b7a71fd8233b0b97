"""Statistics of a randomised experiment: uplift, variance reduction, and whether the split can be trusted."""

from dataclasses import dataclass

import numpy as np
from scipy import special

from evaluation.arrays import Floats, Ints
from evaluation.sequential import always_valid_p, mixture_scale, sequence_half_width
from evaluation.significance import minimum_detectable_effect, normal_test

#: A sample ratio this improbable means that the split is broken, not unlucky (Fabijan et al., KDD 2019).
MISMATCH_LEVEL = 0.0005


@dataclass(frozen=True, slots=True)
class Uplift:
    """One metric of one arm against control.

    ``difference`` = treatment − control with a fixed-horizon 95 % interval (``low``, ``high``) and ``p``;
    ``sequence_low``/``sequence_high`` and ``p_always`` stay valid under peeking. ``reduction`` is the
    share of variance that CUPED removed (0 without a pre-period), ``detectable`` the absolute effect
    visible with 80 % power at this size.
    """

    metric: str
    control: float
    treatment: float
    difference: float
    low: float
    high: float
    p: float
    sequence_low: float
    sequence_high: float
    p_always: float
    reduction: float
    detectable: float
    users: int

    @property
    def relative(self) -> float:
        """Difference as a share of control, NaN for a control of 0."""
        return self.difference / abs(self.control) if self.control else float("nan")


def uplift(
    metric: str, top_U: Floats, bottom_U: Floats, before_U: Floats | None, treated_U: Ints, planned_users: int
) -> Uplift:
    """Compare Σ top / Σ bottom of the treated users (``treated_U`` = 1) with that of control (0).

    ``bottom_U`` is 1 for a mean per user; else the metric is a ratio and its error comes from the delta
    method (Deng, Knoblich and Lu, KDD 2018). ``before_U`` is the covariate of CUPED (Deng et al., WSDM
    2013): the same metric before the experiment, 0 for users without one.
    """
    rates, values = [], np.zeros(len(top_U))
    for arm in (0, 1):
        inside = treated_U == arm
        rate, mean_bottom = _rate(top_U[inside], bottom_U[inside])
        rates.append(rate)
        values[inside] = rate + (top_U[inside] - rate * bottom_U[inside]) / mean_bottom
    adjusted, reduction = cuped(values, before_U, treated_U)
    parts = [adjusted[treated_U == arm] for arm in (0, 1)]
    difference = float(parts[1].mean() - parts[0].mean()) if all(map(len, parts)) else float("nan")
    error = (
        float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)))
        if min(map(len, parts)) > 1
        else np.nan
    )
    half = float(special.ndtri(0.975)) * error
    rho = mixture_scale(planned_users)
    wide = sequence_half_width(error, len(values), rho)
    return Uplift(
        metric=metric, control=rates[0], treatment=rates[1], difference=difference,
        low=difference - half, high=difference + half,
        p=float(normal_test(np.array([difference]), np.array([error]))[0]),
        sequence_low=difference - wide, sequence_high=difference + wide,
        p_always=always_valid_p(difference, error, len(values), rho),
        reduction=reduction, detectable=minimum_detectable_effect(error), users=len(values),
    )  # fmt: skip


def cuped(value_U: Floats, before_U: Floats | None, treated_U: Ints) -> tuple[Floats, float]:
    """Values less what the covariate from before predicts, and the share of variance that removed.

    θ is pooled within the arms, so that the treatment effect itself does not leak into it. Without a
    covariate, or with a constant one, the values come back unchanged.
    """
    if before_U is None:
        return value_U, 0.0
    centred, covariate = value_U.astype(np.float64).copy(), before_U.astype(np.float64).copy()
    for arm in (0, 1):
        inside = treated_U == arm
        if inside.any():
            centred[inside] -= centred[inside].mean()
            covariate[inside] -= covariate[inside].mean()
    square = float(covariate @ covariate)
    if square <= 0:
        return value_U, 0.0
    theta = float(centred @ covariate) / square
    total = float(centred @ centred)
    left = centred - theta * covariate
    return value_U - theta * (before_U - before_U.mean()), 1.0 - float(left @ left) / total if total else 0.0


def sample_ratio_p(users_A: Ints, expected_A: Floats) -> float:
    """P-value of the users per arm under the planned shares: Pearson's χ² with arms − 1 degrees.

    Below ``MISMATCH_LEVEL`` the assignment or the logging is broken and no uplift can be believed.
    NaN for fewer than two arms or no users.
    """
    total = users_A.sum()
    if len(users_A) < 2 or total == 0:
        return float("nan")
    expected = expected_A / expected_A.sum() * total
    statistic = float(((users_A - expected) ** 2 / expected).sum())
    return float(special.chdtrc(len(users_A) - 1, statistic))


def _rate(top_U: Floats, bottom_U: Floats) -> tuple[float, float]:
    total = float(bottom_U.sum())
    return (float(top_U.sum()) / total, total / len(bottom_U)) if total else (float("nan"), float("nan"))
