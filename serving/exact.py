"""Brute-force retrieval: the answer against which every index is measured, and equal to it in score.

Axes: ``N`` catalogue rows (row 0 is the unknown video and is never returned), ``D`` dimensions,
``B`` users.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Scores of one block of users against the catalogue take at most this many floats (64 MB).
BLOCK_FLOATS = 1 << 24
#: Videos multiplied at once; their vectors and scores stay in the processor's cache.
CACHED_ROWS = 1 << 13
#: Scores of one strip, of which only the best is looked at first.
STRIP = 128


class Hits(NamedTuple):
    """The best videos of one user, best first; equal scores by row. Both arrays may be empty."""

    video_row: Rows
    score: Vectors


NO_ROWS: Rows = np.empty(0, np.int64)
NO_HITS = Hits(NO_ROWS, np.empty(0, np.float32))


def pair_scores(vectors_KD: Vectors, user_D: Vectors) -> Vectors:
    """Inner product of one user with each of K videos, float32[K].

    Summed in float64, so that it depends on the pair alone: not on the block, the order or the
    companions it was computed with. Every score that leaves retrieval comes from here.
    """
    return (vectors_KD.astype(np.float64) @ user_D.astype(np.float64)).astype(np.float32)


def best_first(rows: Rows, scores: Vectors, k: int) -> Hits:
    """The ``k`` best of scored ``rows`` (distinct): score descending, then row ascending."""
    order = np.lexsort((rows, -scores))[:k]
    return Hits(rows[order], scores[order])


def best_of(vectors_ND: Vectors, rows: Rows, user_D: Vectors, k: int, *, exclude: Rows, slack: float) -> Hits:
    """The ``k`` best of distinct ``rows`` without ``exclude``; fewer where there are fewer.

    Many rows are compared in float32 first, which may err by ``slack`` (:meth:`ExactSearch.slack`).
    """
    most = k + len(exclude)
    if len(rows) > most:
        score_K = vectors_ND[rows] @ user_D
        rows = rows[score_K >= np.partition(score_K, len(rows) - most)[len(rows) - most] - slack]
    rows = rows[~np.isin(rows, exclude)]
    return best_first(rows, pair_scores(vectors_ND[rows], user_D), k)


class ExactSearch:
    """Brute force over ``vectors_ND``, which may be memory-mapped and is not copied."""

    def __init__(self, vectors_ND: Vectors) -> None:
        self.vectors_ND = vectors_ND
        count, dim = vectors_ND.shape
        self._block = max(1, BLOCK_FLOATS // max(1, count))
        norm = max((float(np.linalg.norm(part, axis=1).max()) for part in _parts(vectors_ND)), default=0.0)
        # twice the rounding bound of a float32 inner product, for |user| = 1: what lies within it of
        # the k-th score may belong before it and is scored again exactly
        self._slack = norm * dim * float(np.finfo(np.float32).eps)

    def search(
        self,
        user_BD: Vectors,
        k: int,
        *,
        exclude: Sequence[Rows] | None = None,
        eligible: Mask | None = None,
    ) -> list[Hits]:
        """The true top ``k`` of every user over the whole catalogue.

        ``exclude`` holds the rows each user must not get (rows outside the catalogue are ignored);
        ``eligible`` is a bool[N] mask common to all. A user with fewer than ``k`` candidates gets
        them all. User vectors must be finite.
        """
        count = len(self.vectors_ND)
        if k < 1 or count < 2:
            return [NO_HITS] * len(user_BD)
        hits: list[Hits] = []
        for start in range(0, len(user_BD), self._block):
            block_BD = user_BD[start : start + self._block]
            score_BN = _scores(block_BD, self.vectors_ND)
            score_BN[:, 0] = -np.inf
            if eligible is not None:
                np.copyto(score_BN, -np.inf, where=~eligible)
            if exclude is not None:
                for score_N, rows in zip(score_BN, exclude[start : start + len(block_BD)], strict=True):
                    score_N[rows[(rows >= 0) & (rows < count)]] = -np.inf
            bound_B = _reached_by(score_BN, min(k, count - 1))
            slack_B = self.slack(block_BD)
            for user_D, score_N, bound, slack in zip(block_BD, score_BN, bound_B, slack_B, strict=True):
                rows = np.flatnonzero(score_N >= max(bound - slack, np.finfo(np.float32).min))
                score_K = score_N[rows]
                if len(rows) > k:
                    rows = rows[score_K >= np.partition(score_K, len(rows) - k)[len(rows) - k] - slack]
                hits.append(best_first(rows, pair_scores(self.vectors_ND[rows], user_D), k))
        return hits

    def slack(self, user_BD: Vectors) -> Vectors:
        """float32[B]: by how much two float32 scores of a user may differ in the wrong direction."""
        slack_B: Vectors = self._slack * np.linalg.norm(user_BD, axis=1)
        return slack_B


def _scores(user_BD: Vectors, vectors_ND: Vectors) -> Vectors:
    """float32[B, N]: every user with every video. Videos are the rows of the product, part by part in cache:
    for a few users and many videos that is three to five times as fast as the other way round.
    """
    score_BN = np.empty((len(user_BD), len(vectors_ND)), np.float32)
    user_DB = np.ascontiguousarray(user_BD.T)
    for start in range(0, len(vectors_ND), CACHED_ROWS):
        stop = start + CACHED_ROWS
        score_BN[:, start:stop] = (vectors_ND[start:stop] @ user_DB).T
    return score_BN


def _reached_by(score_BN: Vectors, k: int) -> Vectors:
    """float32[B]: a score that at least ``k`` of each row's reach, and in a long row few more than that.

    The k-th best maximum of strips of the row; the k-th best score itself would take ten times as long.
    """
    users, count = score_BN.shape
    strips = count // STRIP
    if strips < 4 * k:
        best_BM = score_BN
    else:
        best_BM = score_BN[:, : strips * STRIP].reshape(users, strips, STRIP).max(axis=2)
    kth = best_BM.shape[1] - k
    reached: Vectors = np.partition(best_BM, kth, axis=1)[:, kth]
    return reached


def _parts(vectors_ND: Vectors, rows: int = 1 << 18) -> list[Vectors]:
    return [vectors_ND[start : start + rows] for start in range(0, len(vectors_ND), rows)]
