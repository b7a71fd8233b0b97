"""What validation corrects in the weights that users give to the trend.

In training, ids come to know by heart how often each video was shown in all. Beside that, what was shown so
far tells how little is still to come, and its weight falls from epoch to epoch; but on the days that follow,
nobody knows the total. (On KuaiRand this was most of why towers got worse after their fourth epoch.) So a
shift of the weights, the same for everybody, is fitted to the requests of validation: the maximum of their
softmax likelihood under a prior that keeps the shift small, by Newton's method.

Axes: U users, N catalogue rows, K trend features, P positives.
"""

import numpy as np
import numpy.typing as npt

from training.distributed import ALONE, Ranks
from training.retrieval_validation import HeldVectors

F64 = npt.NDArray[np.float64]
#: Requests of a rank that are read: a handful of numbers is fitted.
SAMPLE = 1000
#: Standard deviation of the shift's prior, in log-odds for each unit of a trend feature.
PRIOR = 1.0
#: Newton's method ends after so many steps, or below such a change.
STEPS, SMALL = 12, 1e-3


def trend_shift(towers: HeldVectors, trend: slice, temperature: float, ranks: Ranks = ALONE) -> F64:
    """The shift ``[K]`` of all users' trend weights (columns ``trend`` of final vectors) that fits best.
    Collective.
    """
    held = towers.held.take(np.arange(min(len(towers.held.requests), SAMPLE)))
    trend_NK = towers.video_ND[:, trend].astype(np.float64)
    score_UN = (towers.user_BD[: len(held.requests)] @ towers.video_ND.T) / np.float32(temperature)
    held.mask(score_UN)
    size = trend_NK.shape[1]
    shift_K = np.zeros(size)
    for _ in range(STEPS):
        slope_K, curve_KK = _derivatives(score_UN, trend_NK, held.truth, shift_K)
        total = np.array(ranks.sum([*slope_K, *curve_KK.ravel()]))
        slope_K = total[:size] - shift_K / PRIOR**2
        step_K = np.linalg.solve(total[size:].reshape(size, size) + np.eye(size) / PRIOR**2, slope_K)
        shift_K += step_K
        if np.abs(step_K).max() < SMALL:
            break
    return shift_K * temperature


def _derivatives(
    score_UN: npt.NDArray[np.float32], trend_NK: F64, truth: list[np.ndarray], shift_K: F64
) -> tuple[F64, F64]:
    """Gradient ``[K]`` of the users' mean log likelihoods, added up, and the negative of its Hessian."""
    chance_UN = score_UN + (trend_NK @ shift_K).astype(np.float32)
    chance_UN -= chance_UN.max(axis=1, keepdims=True, initial=-1e30)
    np.exp(chance_UN, out=chance_UN)
    chance_UN /= chance_UN.sum(axis=1, keepdims=True)
    expected_UK = chance_UN.astype(np.float64) @ trend_NK
    slope_K = -expected_UK.sum(axis=0)
    for rows_P in truth:
        slope_K += trend_NK[rows_P].mean(axis=0)
    second_KK = (chance_UN.sum(axis=0, dtype=np.float64)[:, None] * trend_NK).T @ trend_NK
    return slope_K, second_KK - expected_UK.T @ expected_UK
