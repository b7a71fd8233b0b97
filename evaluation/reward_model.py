"""A plain reward model for the model-based estimators: shrunken means per context and video.

Cross-fitted: the model that judges a row was fitted without that row's user, so that doubly robust
estimates stay unbiased (Chernozhukov et al., Double machine learning, 2018).
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
    folds: "list[tuple[_Shrunken, Bools, Bools]]"
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
    the cells (method of moments), so that rare videos do not get extreme rewards.
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
        model = _Shrunken(cell_N[fit], reward_N[fit], target)
        q_N[use] = model.mean_X[cell_N[use]]
        value_C = sum_by(target.context_Z, target.probability_Z * model.mean_X[key_Z], target.contexts)
        q_target_N[use] = value_C[context_N[use]]
        folds.append((model, fit, use))
    return RewardModel(q_N, q_target_N, folds, target, context_N, cell_N)


class _Shrunken:
    """Shrunken means of cells ``X`` = (context, video) from the rows of some folds."""

    def __init__(self, cell_N: Ints, reward_N: Floats, target: TargetTable) -> None:
        self.videos = target.videos
        self.count_X = np.bincount(cell_N, minlength=target.contexts * target.videos).astype(np.float64)
        sum_X = sum_by(cell_N, reward_N, len(self.count_X))
        self.count_C = self.count_X.reshape(-1, self.videos).sum(axis=1)
        sum_C = sum_X.reshape(-1, self.videos).sum(axis=1)
        overall = float(reward_N.mean()) if len(reward_N) else 0.0
        self.mean_C = np.where(self.count_C > 0, sum_C / np.maximum(self.count_C, 1), overall)
        expected_X = np.repeat(self.mean_C, self.videos)
        within = float(reward_N.var()) if len(reward_N) else 0.0
        spread = ((sum_X - self.count_X * expected_X) ** 2 - self.count_X * within).sum()
        between = float(spread) / max(float((self.count_X**2).sum()), 1.0)
        self.kappa = within / between if between > 0 else 1e6
        self.mean_X = (sum_X + self.kappa * expected_X) / (self.count_X + self.kappa)

    def leverage(self, wanted_X: Floats) -> Floats:
        """D (Σ wanted · mean) / d reward, for one reward in each cell [X]."""
        own_X = wanted_X / (self.count_X + self.kappa)
        pulled_C = (own_X * self.kappa).reshape(-1, self.videos).sum(axis=1)
        found: Floats = own_X + np.repeat(pulled_C / np.maximum(self.count_C, 1.0), self.videos)
        return found
