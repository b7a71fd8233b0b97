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
            score_BN = block_BD @ self.vectors_ND.T
            score_BN[:, 0] = -np.inf
            if eligible is not None:
                np.copyto(score_BN, -np.inf, where=~eligible)
            if exclude is not None:
                for score_N, rows in zip(score_BN, exclude[start : start + len(block_BD)], strict=True):
                    score_N[rows[(rows >= 0) & (rows < count)]] = -np.inf
            kth = count - min(k, count - 1)
            floor_B = np.partition(score_BN, kth, axis=1)[:, kth] - self._slack * np.linalg.norm(
                block_BD, axis=1
            )
            for user_D, score_N, floor in zip(block_BD, score_BN, floor_B, strict=True):
                rows = np.flatnonzero(score_N >= max(floor, np.finfo(np.float32).min))
                hits.append(best_first(rows, pair_scores(self.vectors_ND[rows], user_D), k))
        return hits


def _parts(vectors_ND: Vectors, rows: int = 1 << 18) -> list[Vectors]:
    return [vectors_ND[start : start + rows] for start in range(0, len(vectors_ND), rows)]
