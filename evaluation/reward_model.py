"""A plain reward model for the model-based estimators: shrunken means per context and video.

Cross-fitted: the model that judges a row was fitted without that row's user, so that doubly robust
estimates stay unbiased (Chernozhukov et al., Double machine learning, 2018).

Shrinking serves a single cell's reward, but the direct method adds cells up: their noise averages out, their
pull towards the context's mean does not, and no interval built from the noise can cover it. So the fit is
*twiced*: what the shrunken means leave over is shrunken once more and added. The bias of a cell falls from
κ/(n + κ) of its distance to the mean to the square of that (Newey, Hsieh and Robins, Twicing kernels and a
small bias property of semiparametric estimators, Econometrica 2004).
"""

from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Bools, Floats, Ints, sum_by

FOLDS = 4


@dataclass(frozen=True, slots=True)
class TargetTable:
    """The target's probability of every (context, video): ``context_Z``, ``video_Z``, ``probability_Z``."""

    context_Z: Ints
    video_Z: Ints
    probability_Z: Floats
    contexts: int
    videos: int

    def lookup(self, context_N: Ints, video_N: Ints) -> Floats:
        """Probability of each (context, video), 0 where the table does not name it."""
        key_Z = self.context_Z * self.videos + self.video_Z
        order = np.argsort(key_Z)
        key_N = context_N * self.videos + video_N
        place = np.minimum(np.searchsorted(key_Z[order], key_N), max(len(key_Z) - 1, 0))
        if not len(key_Z):
            return np.zeros(len(key_N))
        at = order[place]
        return np.where(key_Z[at] == key_N, self.probability_Z[at], 0.0)

    def unsupported(self, context_N: Ints, video_N: Ints) -> float:
        """Mean over the log's rows of the target's probability on (context, video) never logged."""
        seen = np.unique(context_N * self.videos + video_N)
        missing_Z = ~np.isin(self.context_Z * self.videos + self.video_Z, seen)
        lost_C = sum_by(self.context_Z[missing_Z], self.probability_Z[missing_Z], self.contexts)
        return float(lost_C[context_N].mean()) if len(context_N) else float("nan")


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Modelled reward ``q_N`` of each row and its mean ``q_target_N`` over the target's choices there.

    ``folds`` are the fits behind it, each with the rows it was fitted on and those it judges; none for a
    model that came with the log.
    """

    q_N: Floats
    q_target_N: Floats
    folds: "list[tuple[TwicedMeans, Bools, Bools]]"
    target: TargetTable | None
    context_N: Ints
    cell_N: Ints

    def leverage(self, weight_N: Floats) -> Floats:
        """How far Σ (q_target − weight · q) moves with each row's reward, through the fit alone [N].

        What an interval must know to cover the noise of the model; 0 for weights equal to the
        importance weights (in expectation) and for a model that was not fitted here.
        """
        moved_N = np.zeros(len(self.q_N))
        for model, fit, use in self.folds:
            assert self.target is not None
            cells = sum_by(self.cell_N[use], weight_N[use], len(model.count_X))
            rows_C = np.bincount(self.context_N[use], minlength=self.target.contexts).astype(np.float64)
            key_Z = self.target.context_Z * self.target.videos + self.target.video_Z
            wanted = sum_by(key_Z, self.target.probability_Z * rows_C[self.target.context_Z], len(cells))
            moved_N[fit] += model.leverage(wanted - cells)[self.cell_N[fit]]
        return moved_N


def given_rewards(q_N: Floats, q_target_N: Floats) -> RewardModel:
    """A model that came with the log; NaN in ``q_target_N`` stands for none."""
    none = np.zeros(0, np.int64)
    return RewardModel(q_N, q_target_N, [], None, none, none)


def fitted_rewards(
    target: TargetTable, context_N: Ints, video_N: Ints, reward_N: Floats, user_N: Ints, seed: int
) -> RewardModel:
    """Fit and predict, fold by fold.

    A cell's mean is pulled to its context's mean with the weight of ``κ`` rows, κ from the spread of
    the cells (method of moments), so that rare videos do not get extreme rewards; then twiced.
    """
    users = int(user_N.max()) + 1 if len(user_N) else 0
    fold_U = np.random.default_rng([seed, 4]).integers(0, FOLDS, users)
    fold_N = fold_U[user_N]
    cell_N = context_N * target.videos + video_N
    key_Z = target.context_Z * target.videos + target.video_Z
    q_N, q_target_N = np.zeros(len(reward_N)), np.zeros(len(reward_N))
    folds = []
    for fold in range(FOLDS):
        fit, use = fold_N != fold, fold_N == fold
        model = TwicedMeans(cell_N[fit], reward_N[fit], target)
        q_N[use] = model.mean_X[cell_N[use]]
        value_C = sum_by(target.context_Z, target.probability_Z * model.mean_X[key_Z], target.contexts)
        q_target_N[use] = value_C[context_N[use]]
        folds.append((model, fit, use))
    return RewardModel(q_N, q_target_N, folds, target, context_N, cell_N)


class TwicedMeans:
    """Twiced shrunken means of cells ``X`` = (context, video) from the rows of some folds.

    A linear smoother S of the cells' sums, applied to the sums and once more to what it left over.
    ``kappa`` is how many rows the context's mean weighs; estimated where not given.
    """

    def __init__(
        self, cell_N: Ints, reward_N: Floats, target: TargetTable, kappa: float | None = None
    ) -> None:
        self.videos = target.videos
        self.count_X = np.bincount(cell_N, minlength=target.contexts * target.videos).astype(np.float64)
        self.count_C = self.count_X.reshape(-1, self.videos).sum(axis=1)
        sum_X = sum_by(cell_N, reward_N, len(self.count_X))
        within = float(reward_N.var()) if len(reward_N) else 0.0
        self.kappa = self._pull(sum_X, within) if kappa is None else kappa
        once_X = self._smooth(sum_X)
        overall = float(reward_N.mean()) if len(reward_N) else 0.0
        twice_X = once_X + self._smooth(sum_X - self.count_X * once_X)
        self.mean_X = np.where(np.repeat(self.count_C, self.videos) > 0, twice_X, overall)

    def leverage(self, wanted_X: Floats) -> Floats:
        """D (Σ wanted · mean) / d reward, for one reward in each cell [X]: 2 Sᵀw − Sᵀ(count · Sᵀw)."""
        once_X = self._transposed(wanted_X)
        return 2.0 * once_X - self._transposed(self.count_X * once_X)

    def _pull(self, sum_X: Floats, within: float) -> float:
        """Κ, how many rows the context's mean weighs, from the spread of the cells beyond their noise."""
        spread = ((sum_X - self.count_X * self._context_mean(sum_X)) ** 2 - self.count_X * within).sum()
        between = float(spread) / max(float((self.count_X**2).sum()), 1.0)
        return within / between if between > 0 else 1e6

    def _context_mean(self, sum_X: Floats) -> Floats:
        """Mean of the context of each cell [X], 0 where it has no row."""
        sum_C = sum_X.reshape(-1, self.videos).sum(axis=1)
        return np.repeat(sum_C / np.maximum(self.count_C, 1.0), self.videos)

    def _smooth(self, sum_X: Floats) -> Floats:
        """S: cells' means pulled to their context's mean with the weight of κ rows."""
        return (sum_X + self.kappa * self._context_mean(sum_X)) / (self.count_X + self.kappa)

    def _transposed(self, wanted_X: Floats) -> Floats:
        """Sᵀ: how far Σ wanted · S(sums) moves with one more unit in the sum of each cell."""
        own_X = wanted_X / (self.count_X + self.kappa)
        return own_X + self._context_mean(own_X * self.kappa)
