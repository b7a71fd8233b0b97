"""Platt scaling per task and market, and the two numbers that say whether it was needed.

Axes: E impressions, T tasks, M markets (row 0 = unknown market).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
#: Positives and negatives below which a fit is not trusted: of a task, of a market's own bias.
MIN_TASK, MIN_MARKET = 20, 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """``p' = σ(slope[t] · logit(p) + bias[t][m])``; slopes are positive: no order within a market changes."""

    slope: tuple[float, ...]
    bias: tuple[tuple[float, ...], ...]

    @classmethod
    def identity(cls, tasks: int, markets: int) -> "Calibration":
        """Changes nothing."""
        return cls((1.0,) * tasks, ((0.0,) * markets,) * tasks)

    @classmethod
    def fit(
        cls, p_ET: F64, true_ET: npt.NDArray[np.bool_], known_ET: npt.NDArray[np.bool_],
        market_E: npt.NDArray[np.int64], markets: int,
    ) -> "Calibration":  # fmt: skip
        """Maximum likelihood on held-out impressions; tasks with too few outcomes stay as they are.

        A market with at least ``MIN_MARKET`` outcomes of either kind gets a bias of its own, the others the
        common one.
        """
        slopes, biases = [], []
        for task in range(p_ET.shape[1]):
            known = known_ET[:, task]
            logit, true = _logit(p_ET[known, task]), true_ET[known, task].astype(np.float64)
            slope, common = 1.0, 0.0
            if min(true.sum(), (1 - true).sum()) >= MIN_TASK:
                slope, common = _platt(logit, true)
            bias = np.full(markets, common)
            for market in np.unique(market_E[known]):
                here = market_E[known] == market
                if min(true[here].sum(), (1 - true[here]).sum()) >= MIN_MARKET:
                    bias[market] = _bias(slope * logit[here], true[here], common)
            slopes.append(float(slope))
            biases.append(tuple(bias.tolist()))
        return cls(tuple(slopes), tuple(biases))

    def apply(self, p_ET: F64, market_E: npt.NDArray[np.int64], parents: tuple[int, ...]) -> F64:
        """Calibrated probabilities; a funnel step never exceeds its parent."""
        bias_ET = np.array(self.bias, np.float64).T[market_E]
        out = 1.0 / (1.0 + np.exp(-(np.array(self.slope) * _logit(p_ET) + bias_ET)))
        for task, parent in enumerate(parents):
            if parent >= 0:
                out[:, task] = np.minimum(out[:, task], out[:, parent])
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"slope": list(self.slope), "bias": [list(row) for row in self.bias]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Calibration":
        """Inverse of :meth:`to_json`."""
        return cls(tuple(map(float, value["slope"])), tuple(tuple(map(float, row)) for row in value["bias"]))


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
    x = np.stack([logit_E, np.ones_like(logit_E)], axis=1)
    weight = np.array([1.0, 0.0])
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weight, -35, 35)))
        # a weak pull towards the identity keeps the Hessian regular
        gradient = x.T @ (p - true_E) + 1e-3 * (weight - (1.0, 0.0))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weight = weight - np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    if not weight[0] > 0.05:
        return 1.0, _bias(logit_E, true_E, 0.0)
    return float(weight[0]), float(weight[1])


def _bias(logit_E: F64, true_E: F64, start: float) -> float:
    bias = start
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(logit_E + bias, -35, 35)))
        step = float((p - true_E).sum() / max((p * (1 - p)).sum(), 1e-9))
        bias -= min(max(step, -2.0), 2.0)
        if abs(step) < 1e-9:
            break
    return bias
