"""Unlike videos first: the greedy maximum of a determinantal point process over the best candidates.

Next comes whichever video adds most to ``(1 − d) · Σ score + d · log det S`` of all chosen so far, where S
holds the cosines of their vectors (Chen, Zhang, Zhou: Fast Greedy MAP Inference for DPP, NeurIPS 2018).

Axes: K candidates, M of them that are looked at, D dimensions.
"""

import numpy as np
import numpy.typing as npt

from serving.exact import Rows, Vectors

#: So many of the best candidates are put into another order; those after them stay where they are.
DEPTH = 100
#: What adds less volume than this is as good as a copy of what was chosen: such videos follow by score.
_LEAST = 1e-6


def diversified(score_K: Vectors, vectors_KD: Vectors, diversity: float) -> Rows:
    """Places of candidates, best first by ``score_K``, in the order in which they should stand.

    ``diversity`` in [0, 1) is the weight d of unlikeness beside the score, which counts in standard
    deviations of the candidates looked at; 0 changes nothing. A vector of zeros is like no other.
    """
    order: Rows = np.arange(len(score_K))
    if diversity <= 0 or len(score_K) < 3:
        return order
    score_M = score_K[:DEPTH].astype(np.float64)
    spread = score_M.std()
    worth_M = (score_M - score_M.mean()) / spread if spread > 0 else np.zeros(len(score_M))
    unit_MD = vectors_KD[:DEPTH].astype(np.float64)
    length_M = np.linalg.norm(unit_MD, axis=1, keepdims=True)
    unit_MD = np.divide(unit_MD, length_M, out=np.zeros_like(unit_MD), where=length_M > 0)
    cosine_MM = unit_MD @ unit_MD.T
    np.fill_diagonal(cosine_MM, 1.0)
    chosen = _greedy((1 - diversity) / diversity * worth_M, cosine_MM)
    left = np.setdiff1d(order, chosen)
    return np.concatenate([np.array(chosen, np.int64), left])


def _greedy(worth_M: npt.NDArray[np.float64], cosine_MM: npt.NDArray[np.float64]) -> list[int]:
    """Places in order of choice, until what is left adds no volume; equals by place.

    ``volume_M`` is what each would multiply the determinant by, kept up to date by one row of the Cholesky
    factor per choice.
    """
    volume_M = np.ones(len(worth_M))
    factor_TM = np.zeros((len(worth_M), len(worth_M)))
    open_M = np.ones(len(worth_M), bool)
    chosen: list[int] = []
    while (open_M := open_M & (volume_M > _LEAST)).any():
        gain_M = np.where(open_M, worth_M + np.log(np.maximum(volume_M, _LEAST)), -np.inf)
        best = int(gain_M.argmax())
        done = factor_TM[: len(chosen)]
        row_M = (cosine_MM[best] - done[:, best] @ done) / np.sqrt(volume_M[best])
        factor_TM[len(chosen)] = row_M
        volume_M = volume_M - row_M**2
        chosen.append(best)
        open_M[best] = False
    return chosen
