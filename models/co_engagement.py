"""Co-engagement in closed form: a linear model whose score is one more inner product beside the towers'.

EASE (Steck 2019) regresses every video on the other videos of the same history: the one inverse that it needs
holds what was shown to the same people, at full rank, which towers of few dimensions do not learn. Kept to
the C strongest directions of the log (Jin et al. 2021) it fits into a vector of the index. With the users'
videos as a 0/1 matrix ``X ≈ U diag(s) Vᵀ``, gains ``g = s² / (s² + λ)`` and ``d_j = 1 − Σ g V_j²``, the
regression's weight of video i for video j is ``Σ_c V_ic g_c V_jc / d_j``. Here the division is shared evenly
between the two (validation sees no difference), so that a video has one vector ``V_j √(g / d_j)`` and a user
the sum of them. A video that nobody has seen yet gets what its learnt vector lets expect.

Axes: R rows of the video id's table, C directions, B users, S steps, N catalogue rows, D learnt dimensions.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from models.sequence import Steps

#: The ridge λ is the squared singular value of the weakest direction kept, and at least one view.
LEAST_RIDGE = 1.0
#: Users after whom a video's own vector is worth half of what it would be after many.
RARE_USERS = 10.0
#: Ridge of the regression on learnt vectors, relative to their mean square.
LEARNT_RIDGE = 1e-3


class CoEngagement(nn.Module):
    """The fitted linear model: a vector per video id, and how much it counts beside the towers."""

    def __init__(self, rows: int, rank: int, dim: int) -> None:
        """Zeros; :meth:`of` fills it."""
        super().__init__()
        self.table_RC: Tensor
        self.from_learnt_DC: Tensor
        self.weight: Tensor
        self.register_buffer("table_RC", torch.zeros(rows, rank))
        self.register_buffer("from_learnt_DC", torch.zeros(dim, rank))
        self.register_buffer("weight", torch.zeros(()))

    @classmethod
    def of(cls, vector_RC: np.ndarray, from_learnt_DC: np.ndarray) -> "CoEngagement":
        """With these vectors, :func:`from_learnt`, and a weight of 1."""
        rows, rank = vector_RC.shape
        model = cls(rows, rank, len(from_learnt_DC))
        model.table_RC.copy_(torch.from_numpy(vector_RC))
        model.from_learnt_DC.copy_(torch.from_numpy(from_learnt_DC))
        model.weight.fill_(1.0)
        return model

    @property
    def rank(self) -> int:
        """C, the number of directions."""
        return self.table_RC.shape[1]

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Its state by the names that it has as the submodule ``prefix`` of a model."""
        return {f"{prefix}.{name}": tensor for name, tensor in self.state_dict().items()}

    def videos(self, id_row_N: Tensor, learnt_ND: Tensor) -> Tensor:
        """Vectors ``[N, C]`` by row of the id table, of those that nobody has seen by their learnt vector."""
        vector_NC = self.table_RC[id_row_N]
        unseen_N1 = ~vector_NC.any(dim=1, keepdim=True)
        return torch.where(unseen_N1, learnt_ND @ self.from_learnt_DC, vector_NC)

    def users(self, steps: Steps, video_NC: Tensor) -> Tensor:
        """Vectors ``[B, C]``: the weighted sum of the history's videos over the root of their number.

        ``video_NC`` are :meth:`videos` of the rows that ``steps`` hold.
        """
        total_BC = video_NC[steps.video_BS].sum(1)
        count_B = steps.length_B.clamp_min(1).to(total_BC.dtype)
        return total_BC * (self.weight / count_B.sqrt()[:, None])


@dataclass(frozen=True, slots=True)
class Directions:
    """The strongest directions of a log: singular values ``[C]``, falling, and ``direction_RC``; beside
    them how many users saw each video, ``[R]``.
    """

    singular_C: np.ndarray
    direction_RC: np.ndarray
    users_R: np.ndarray

    @classmethod
    def of(cls, seen_UR: sp.csr_matrix, rank: int, seed: int) -> "Directions":
        """Of what each user has seen (0/1): ``rank`` directions, or as many as there are (perhaps none)."""
        rank = min(rank, min(seen_UR.shape) - 1)
        users_R = seen_UR.getnnz(axis=0)
        if rank < 1 or seen_UR.nnz == 0:
            return cls(np.zeros(0), np.zeros((seen_UR.shape[1], 0)), users_R)
        generator = np.random.default_rng(seed)
        _, singular_C, direction_CR = svds(seen_UR.astype(np.float64), k=rank, rng=generator)
        order = np.argsort(-singular_C)
        direction_RC = direction_CR[order].T
        direction_RC[users_R == 0] = 0.0  # not almost
        return cls(singular_C[order], direction_RC, users_R)

    def vectors(self, rank: int) -> np.ndarray:
        """Vectors float32 ``[R, C]`` of the linear model that knows the first ``rank`` directions alone.

        A video that nobody saw has zeros.
        """
        singular_C, direction_RC = self.singular_C[:rank], self.direction_RC[:, :rank]
        ridge = max(float(singular_C.min(initial=np.inf)) ** 2, LEAST_RIDGE)
        gain_C = singular_C**2 / (singular_C**2 + ridge)
        explained_R = direction_RC**2 @ gain_C
        vector_RC = direction_RC * np.sqrt(gain_C) / np.sqrt(1.0 - explained_R)[:, None]
        return np.ascontiguousarray(vector_RC, np.float32)


def from_learnt(learnt_ND: np.ndarray, vector_NC: np.ndarray, users_N: np.ndarray) -> np.ndarray:
    """The regression of co-engagement vectors on learnt ones, float32 ``[D, C]``, for videos nobody has seen.

    ``users_N`` is how many users saw each video: those of none teach nothing. An expectation is shorter than
    what is expected, and an inner product with it rarely among the highest; so the map is stretched until the
    expected vectors of the seen videos are as long as their own, and neither kind crowds out the other.
    """
    weight_N1 = (users_N / (users_N + RARE_USERS))[:, None]
    learnt_ND = learnt_ND.astype(np.float64)
    gram_DD = learnt_ND.T @ (weight_N1 * learnt_ND)
    ridge = LEARNT_RIDGE * np.trace(gram_DD) / max(len(gram_DD), 1)
    if ridge == 0.0:
        return np.zeros((learnt_ND.shape[1], vector_NC.shape[1]), np.float32)
    map_DC = np.linalg.solve(
        gram_DD + ridge * np.eye(len(gram_DD)), learnt_ND.T @ (weight_N1 * vector_NC.astype(np.float64))
    )
    own, expected = (float((weight_N1 * v_NC**2).sum()) for v_NC in (vector_NC, learnt_ND @ map_DC))
    stretch = np.sqrt(own / expected) if expected > 0 else 0.0
    return np.asarray(map_DC * stretch, np.float32)
