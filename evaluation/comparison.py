"""Two systems on the same users: how much better, how sure, and one line to paste into a review."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from evaluation.arrays import Floats, Ints
from evaluation.bootstrap import Estimate, bca, replicate, user_sums
from evaluation.resampling import interval
from evaluation.significance import (
    ALPHA,
    benjamini_hochberg,
    holm,
    minimum_detectable_effect,
    normal_test,
    sign_flip_test,
)

#: Metrics of which less is better; ``calibration`` and ``bias`` have no better side.
LOWER_IS_BETTER = frozenset({"log_loss", "ne", "ece", "mae", "rmse"})
NO_SIDE = frozenset({"calibration", "bias", "gmv_bias"})


class Correction(Enum):
    """How p-values answer for the number of tests: family-wise, by false discovery rate, or not."""

    holm = "holm"
    bh = "bh"
    none = "none"

    def adjust(self, p_M: Floats) -> Floats:
        """The adjusted p-values."""
        match self:
            case Correction.holm:
                return holm(p_M)
            case Correction.bh:
                return benjamini_hochberg(p_M)
            case Correction.none:
                return p_M


@dataclass(frozen=True, slots=True)
class Difference:
    """``value`` − ``baseline`` of one metric: ``delta`` with its interval, p-values, smallest visible effect.

    ``p`` is of the test alone, ``p_adjusted`` after correction; ``detectable`` is the absolute difference
    that this many users would show with 80 % power.
    """

    metric: str
    baseline: float
    value: float
    delta: Estimate
    p: float
    p_adjusted: float
    detectable: float

    @property
    def relative(self) -> float:
        """Delta as a share of the baseline, NaN for a baseline of 0."""
        return self.delta.value / abs(self.baseline) if self.baseline else float("nan")

    @property
    def gain(self) -> float:
        """The delta with the sign turned so that positive is better; NaN where no side is better."""
        kind = self.metric.partition("@")[0].partition("/")[0]
        if kind in NO_SIDE:
            return float("nan")
        return -self.delta.value if kind in LOWER_IS_BETTER else self.delta.value

    @property
    def real(self) -> bool:
        """Whether the corrected test rejects "no difference" at 5 %."""
        return self.p_adjusted < ALPHA

    @property
    def direction(self) -> int:
        """1 better, −1 worse, 0 where no difference was shown."""
        return int(np.sign(self.gain)) if self.real and not np.isnan(self.gain) else 0


def compare_requests(
    names: list[str],
    value_RM: Floats,
    base_RM: Floats,
    user_R: Ints,
    *,
    correction: Correction,
    replicates: int,
    seed: int,
) -> list[Difference]:
    """Paired differences of per-request metrics [R, M]: interval by bootstrap, p-value by sign flips."""
    sums = user_sums(value_RM - base_RM, user_R, seed)
    draws_BM = replicate(sums, replicates, seed)
    low_M, high_M = bca(sums, draws_BM, 0.95)
    p_M = np.where(sums.users_M > 0, sign_flip_test(sums.sum_UM, seed), np.nan)
    adjusted_M = correction.adjust(p_M)
    base_M = user_sums(np.where(np.isnan(value_RM), np.nan, base_RM), user_R, seed).value()
    delta_M = sums.value()
    error_M = _error(draws_BM)
    return [
        Difference(
            metric=name,
            baseline=float(base_M[m]),
            value=float(base_M[m] + delta_M[m]),
            delta=Estimate(float(delta_M[m]), float(low_M[m]), float(high_M[m]), int(sums.users_M[m])),
            p=float(p_M[m]),
            p_adjusted=float(adjusted_M[m]),
            detectable=minimum_detectable_effect(float(error_M[m])),
        )
        for m, name in enumerate(names)
    ]


def compare_replicates(
    values: dict[str, Estimate],
    base: dict[str, Estimate],
    value_draws: dict[str, Floats],
    base_draws: dict[str, Floats],
    *,
    correction: Correction,
) -> list[Difference]:
    """Differences of statistics that are not means, from paired bootstrap replicates of both.

    The p-value is normal with the replicates' standard error.
    """  # fmt: skip
    names = [name for name in values if name in base and name in value_draws and name in base_draws]
    delta_M = np.array([values[name].value - base[name].value for name in names])
    draws = [value_draws[name] - base_draws[name] for name in names]
    error_M = np.array([_error(draw_B[:, None])[0] for draw_B in draws])
    p_M = normal_test(delta_M, error_M) if names else delta_M
    adjusted_M = correction.adjust(p_M)
    return [
        Difference(
            metric=name,
            baseline=base[name].value,
            value=values[name].value,
            delta=interval(float(delta_M[m]), draws[m], values[name].n),
            p=float(p_M[m]),
            p_adjusted=float(adjusted_M[m]),
            detectable=minimum_detectable_effect(float(error_M[m])),
        )
        for m, name in enumerate(names)
    ]


def verdict(new: str, old: str, primary: str, differences: list[Difference]) -> str:
    """One line: better, worse or not shown, by how much, how sure, what else moved, what could be seen."""
    by_name = {difference.metric: difference for difference in differences}
    if primary not in by_name or np.isnan(by_name[primary].delta.value):
        return f"{new} and {old} cannot be compared on {primary}"
    main = by_name[primary]
    if not any(difference.delta.value for difference in differences):
        return f"{new} is the same as {old} on every metric"
    word = {1: "is better than", -1: "is worse than", 0: "is not shown to differ from"}[main.direction]
    low, high = main.delta.low, main.delta.high
    change = f"{main.relative:+.1%}, " if not np.isnan(main.relative) else ""
    text = (
        f"{new} {word} {old}: {primary} {main.baseline:.4f} → {main.value:.4f} ({change}95 % CI of the "
        f"difference {low:+.4f} … {high:+.4f}, p {p_text(main.p_adjusted)} corrected over "
        f"{len(differences)} metrics, {main.delta.n:,} users)"
    )
    others = [difference for difference in differences if difference.metric != primary]
    for side, joint, excluded in ((-1, "but worse on", -1), (1, "but better on", 1)):
        moved = [f"{d.metric} ({d.delta.value:+.4f})" for d in others if d.direction == side]
        if moved and main.direction != excluded:
            text += f"; {joint} {', '.join(moved)}"
    return text + f"; smallest effect this test would see: {main.detectable:.4f}"


def p_text(p: float) -> str:
    """``< 0.001`` or ``= 0.023``."""
    return "n/a" if np.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _error(draws_BM: Floats) -> Floats:
    """Standard deviation of the replicates per metric; NaN where a statistic was never defined."""
    known = ~np.isnan(draws_BM)
    count_M = known.sum(axis=0)
    mean_M = np.where(known, draws_BM, 0).sum(axis=0) / np.maximum(count_M, 1)
    square_M = np.where(known, (draws_BM - mean_M) ** 2, 0).sum(axis=0)
    return np.where(count_M > 1, np.sqrt(square_M / np.maximum(count_M - 1, 1)), np.nan)
