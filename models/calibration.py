"""Calibration per task and market, and the two numbers that say whether it was needed.

Axes: E impressions, T tasks, M markets (row 0 = unknown market).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

F64 = npt.NDArray[np.float64]
#: Positives and negatives below which a fit is not trusted: of a task, of a market's own bias.
MIN_TASK, MIN_MARKET = 20, 50
#: Strength of the belief that a head needs no calibration: one over the variance expected of slope and bias.
IDENTITY_PRIOR = 400.0
#: Purchases of a market that weigh as much as what all markets have in common.
ORDER_PRIOR = 100.0
_NO_KNOTS: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())


@dataclass(frozen=True, slots=True)
class Calibration:
    """``p' = σ(slope[t] · f[t](logit p) + bias[t][m])``; slopes are positive: no order within a market turns.

    ``knots[t]``: x and y of the ascending, piecewise linear f[t]; none: f[t](x) = x (Platt). ``order_factor``
    [M] multiplies expected order values, which have a currency per market.
    """

    slope: tuple[float, ...]
    bias: tuple[tuple[float, ...], ...]
    order_factor: tuple[float, ...]
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    @classmethod
    def identity(cls, tasks: int, markets: int) -> "Calibration":
        """Changes nothing."""
        return cls((1.0,) * tasks, ((0.0,) * markets,) * tasks, (1.0,) * markets, (((), ()),) * tasks)

    @classmethod
    def fit(
        cls, p_ET: F64, true_ET: npt.NDArray[np.bool_], known_ET: npt.NDArray[np.bool_],
        market_E: npt.NDArray[np.int64], markets: int, *, isotonic: bool = False,
    ) -> "Calibration":  # fmt: skip
        """Maximum likelihood on held-out impressions; tasks with too few outcomes stay as they are.

        A market with at least ``MIN_MARKET`` outcomes of either kind gets a bias of its own, drawn towards
        the common one unless markets differ by far more than chance would have it (empirical Bayes); the
        others the common one.
        """
        slopes, biases, knots = [], [], []
        for task in range(p_ET.shape[1]):
            known = known_ET[:, task]
            logit, true = _logit(p_ET[known, task]), true_ET[known, task].astype(np.float64)
            slope, common, knot = 1.0, 0.0, _NO_KNOTS
            if min(true.sum(), (1 - true).sum()) >= MIN_TASK:
                if isotonic:
                    knot = _isotonic(logit, true)
                    logit = _bent(logit, knot)
                else:
                    slope, common = _platt(logit, true)
            bias = _market_biases(slope * logit, true, market_E[known], common, markets)
            slopes.append(float(slope))
            biases.append(tuple(bias.tolist()))
            knots.append(knot)
        return cls(tuple(slopes), tuple(biases), (1.0,) * markets, tuple(knots))

    def with_order_values(self, said_E: F64, value_E: F64, market_E: npt.NDArray[np.int64]) -> "Calibration":
        """Factors by which expected order values of purchases must grow to match what was paid, per market.

        Each is drawn towards all markets' common factor as if ``ORDER_PRIOR`` more purchases had had that.
        """
        markets = len(self.order_factor)
        said, paid = (np.bincount(market_E, x, markets) for x in (said_E, value_E))
        number = np.bincount(market_E, minlength=markets)
        # the mean ratio, each market weighing by its purchases, not by its currency
        mean = paid / np.maximum(said, 1e-9)
        common = float((mean * number).sum() / number.sum()) if len(said_E) else 1.0
        factor = (mean * number + common * ORDER_PRIOR) / (number + ORDER_PRIOR)
        return replace(self, order_factor=tuple(factor.tolist()))

    def apply(self, p_ET: F64, market_E: npt.NDArray[np.int64], parents: tuple[int, ...]) -> F64:
        """Calibrated probabilities; a funnel step never exceeds its parent."""
        bias_ET = np.array(self.bias, np.float64).T[market_E]
        logit_ET = _logit(p_ET)
        for task, knot in enumerate(self.knots):
            logit_ET[:, task] = _bent(logit_ET[:, task], knot)
        out = 1.0 / (1.0 + np.exp(-(np.array(self.slope) * logit_ET + bias_ET)))
        for task, parent in enumerate(parents):
            if parent >= 0:
                out[:, task] = np.minimum(out[:, task], out[:, parent])
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "slope": list(self.slope), "bias": [list(row) for row in self.bias],
            "order_factor": list(self.order_factor), "knots": [[list(x), list(y)] for x, y in self.knots],
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Calibration":
        """Inverse of :meth:`to_json`."""

        def numbers(row: Any) -> tuple[float, ...]:
            return tuple(map(float, row))

        return cls(
            numbers(value["slope"]), tuple(map(numbers, value["bias"])), numbers(value["order_factor"]),
            tuple((numbers(x), numbers(y)) for x, y in value["knots"]),
        )  # fmt: skip


def normalised_entropy(p_E: F64, true_E: npt.NDArray[np.bool_]) -> float:
    """Log loss over that of the base rate (He 2014): below 1 is better than a constant; NaN for one class."""
    rate = float(true_E.mean()) if len(true_E) else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    p_E = np.clip(p_E, 1e-12, 1 - 1e-12)
    loss = -np.where(true_E, np.log(p_E), np.log1p(-p_E)).mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def calibration_error(p_E: F64, true_E: npt.NDArray[np.bool_], bins: int = 20) -> float:
    """Expected calibration error over bins of equal size; NaN without impressions."""
    if not len(p_E):
        return float("nan")
    parts = np.array_split(np.argsort(p_E, kind="stable"), min(bins, len(p_E)))
    return float(sum(abs(p_E[part].sum() - true_E[part].sum()) for part in parts) / len(p_E))


def _logit(p: F64) -> F64:
    p = np.clip(np.asarray(p, np.float64), 1e-9, 1 - 1e-9)
    return np.log(p) - np.log1p(-p)


def _platt(logit_E: F64, true_E: F64) -> tuple[float, float]:
    """Slope and bias by Newton's method; a slope that would not be positive falls back to bias alone."""
    # around where the outcomes lie, far above a rare head's mean logit: turned about that, a slope within
    # belief would move all of them, and a bias beyond belief be had for nothing
    information_E = np.exp(-np.abs(logit_E)) / (1.0 + np.exp(-np.abs(logit_E))) ** 2
    middle = float(np.average(logit_E, weights=information_E))
    x = np.stack([logit_E - middle, np.ones_like(logit_E)], axis=1)
    weight = np.array([1.0, 0.0])
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weight + middle, -35, 35)))
        gradient = x.T @ (p - true_E) + IDENTITY_PRIOR * (weight - (1.0, 0.0))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + IDENTITY_PRIOR * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weight = weight - np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    if not weight[0] > 0.05:
        return 1.0, _bias(logit_E, true_E, 0.0)
    return float(weight[0]), float(weight[1] + middle * (1.0 - weight[0]))


def _isotonic(logit_E: F64, true_E: F64) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots at the means of the blocks of an isotonic regression, so that f ascends between them."""
    order = np.argsort(logit_E, kind="stable")
    found = isotonic_regression(true_E[order])
    number = np.diff(found.blocks)
    x = np.add.reduceat(logit_E[order], found.blocks[:-1]) / number
    # half an outcome of either kind more: a block without any is no certainty
    y = _logit((found.x[found.blocks[:-1]] * number + 0.5) / (number + 1.0))
    y = np.maximum.accumulate(y)
    return tuple(x.tolist()), tuple(y.tolist())


def _bent(logit_E: F64, knots: tuple[tuple[float, ...], tuple[float, ...]]) -> F64:
    """F of the logits; beyond the last knots it goes on with slope 1."""
    x, y = (np.array(part) for part in knots)
    if not len(x):
        return logit_E
    outside = np.minimum(logit_E - x[0], 0.0) + np.maximum(logit_E - x[-1], 0.0)
    return np.asarray(np.interp(logit_E, x, y) + outside)


def _market_biases(
    logit_E: F64, true_E: F64, market_E: npt.NDArray[np.int64], common: float, markets: int
) -> F64:
    found, error = {}, {}
    for market in np.unique(market_E):
        here = market_E == market
        if min(true_E[here].sum(), (1 - true_E[here]).sum()) >= MIN_MARKET:
            found[market] = _bias(logit_E[here], true_E[here], common)
            p = 1.0 / (1.0 + np.exp(-(logit_E[here] + found[market])))
            error[market] = 1.0 / float((p * (1 - p)).sum())
    bias = np.full(markets, common)
    if len(found) > 1:
        apart = np.array([found[market] - common for market in found])
        # beyond two standard errors, and never less than what a head is believed to be off by
        spread = float((apart**2 - 4.0 * np.array(list(error.values()))).mean())
        spread = max(spread, 1.0 / IDENTITY_PRIOR)
        for market, own in found.items():
            bias[market] = common + (own - common) * spread / (spread + error[market])
    return bias


def _bias(logit_E: F64, true_E: F64, start: float) -> float:
    bias = start
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(logit_E + bias, -35, 35)))
        step = float((p - true_E).sum() / max((p * (1 - p)).sum(), 1e-9))
        bias -= min(max(step, -2.0), 2.0)
        if abs(step) < 1e-9:
            break
    return bias
