"""Counting models that every learned one must beat: popularity, item-kNN, EASE, iALS.

Each maps what a user engaged with (catalogue rows with weights, oldest first) to a score per catalogue
row; row 0, the unknown video, never scores. Axes: U users, N + 1 catalogue rows, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.atomic import read_json, write_json
from data.errors import ContractError
from data.history import UserHistory
from data.targets import TargetWeights

BASELINE_VERSION = 1


class BaselineKind(Enum):
    """Which counting model."""

    popularity = "popularity"
    item_knn = "item_knn"
    ease = "ease"
    ials = "ials"


@dataclass(frozen=True, slots=True)
class Engagement:
    """What one user engaged with: catalogue ``rows`` and their ``weights``, oldest first."""

    rows: np.ndarray
    weights: np.ndarray


@dataclass(slots=True)
class Baseline:
    """A fitted counting model.

    ``arrays`` by kind: popularity ``count [N+1]``; item_knn and ease ``data, indices, indptr`` of the
    video-to-video matrix (CSR); ials ``factors [N+1, R]``. ``recency`` multiplies an engagement's
    weight per step of age (1 = order plays no part). ``confidence`` and ``ridge`` serve iALS' fold-in.
    """

    kind: BaselineKind
    arrays: dict[str, np.ndarray]
    targets: TargetWeights = field(default_factory=lambda: TargetWeights({}, 1.0))
    recency: float = 1.0
    ridge: float = 0.0
    confidence: float = 0.0

    def engaged(self, history: UserHistory) -> Engagement:
        """What counts in a history, by the same weights as in training."""
        weight = self.targets.of(history.actions)
        keep = (weight > 0) & (history.video_row > 0)
        return Engagement(history.video_row[keep], weight[keep])

    def scores(self, users: Sequence[Engagement]) -> np.ndarray:
        """Scores float32 ``[U, N + 1]``, column 0 at −inf; a user without history gets zeros there
        (popularity: the same order for everybody).
        """
        match self.kind:
            case BaselineKind.popularity:
                count = self.arrays["count"]
                result = np.broadcast_to(count, (len(users), len(count))).astype(np.float32)
            case BaselineKind.item_knn | BaselineKind.ease:
                size = len(self.arrays["indptr"]) - 1
                weights = sp.csr_matrix(
                    (self.arrays["data"], self.arrays["indices"], self.arrays["indptr"]), shape=(size, size)
                )
                result = np.asarray((_matrix(users, size, self.recency) @ weights).todense(), np.float32)
            case BaselineKind.ials:
                result = self._fold_in(users) @ self.arrays["factors"].T
        result[:, 0] = -np.inf
        return result

    def _fold_in(self, users: Sequence[Engagement]) -> np.ndarray:
        """Least-squares factors of users that training never saw, ``[U, R]``."""
        factors = self.arrays["factors"].astype(np.float64)
        gram = factors.T @ factors + self.ridge * np.eye(factors.shape[1])
        out = np.zeros((len(users), factors.shape[1]), np.float32)
        for place, user in enumerate(users):
            rows, index = np.unique(user.rows, return_inverse=True)
            if len(rows) == 0:
                continue
            extra = self.confidence * np.bincount(index, user.weights)
            own = factors[rows]
            out[place] = np.linalg.solve(gram + (own.T * extra) @ own, own.T @ (1.0 + extra))
        return out

    def save(self, directory: Path) -> None:
        """Write ``baseline.safetensors`` and ``baseline.json``."""
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        save_file(arrays, directory / "baseline.safetensors")
        record = {
            "format_version": BASELINE_VERSION,
            "kind": self.kind.value,
            "targets": {"labels": self.targets.labels, "impression": self.targets.impression},
            "recency": self.recency,
            "ridge": self.ridge,
            "confidence": self.confidence,
        }
        write_json(directory / "baseline.json", record)

    @classmethod
    def load(cls, directory: Path) -> "Baseline":
        """Read what :meth:`save` wrote; anything else is refused in one line."""
        record = read_json(directory / "baseline.json")
        if record.pop("format_version", None) != BASELINE_VERSION:
            raise ContractError(f"{directory}/baseline.json: another format version; train again")
        try:
            arrays = load_file(directory / "baseline.safetensors")
            kind, targets = BaselineKind(record.pop("kind")), TargetWeights(**record.pop("targets"))
            return cls(kind=kind, arrays=arrays, targets=targets, **record)
        except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ContractError(f"{directory}: not a baseline ({reason}); train again") from None


def fit_popularity(users: Sequence[Engagement], size: int) -> Baseline:
    """Weighted number of engagements per video."""
    rows = np.concatenate([user.rows for user in users]) if users else np.zeros(0, np.int64)
    weights = np.concatenate([user.weights for user in users]) if users else np.zeros(0)
    return Baseline(BaselineKind.popularity, {"count": np.bincount(rows, weights, size).astype(np.float32)})


def fit_item_knn(
    users: Sequence[Engagement], size: int, *, neighbours: int, shrink: float, recency: float
) -> Baseline:
    """Cosine similarity of videos over users, shrunk by support, the best ``neighbours`` per video.

    Source: Deshpande and Karypis 2004; shrinkage as in Koren 2008.
    """
    matrix = _matrix(users, size, 1.0)
    overlap = (matrix.T @ matrix).tocsr()
    norm = np.sqrt(overlap.diagonal())
    coo = overlap.tocoo()
    value = coo.data / (norm[coo.row] * norm[coo.col] + shrink)
    keep = (coo.row != coo.col) & (coo.row > 0) & (coo.col > 0)
    similarity = sp.csr_matrix((value[keep], (coo.row[keep], coo.col[keep])), shape=(size, size))
    return Baseline(BaselineKind.item_knn, _csr(_top_per_row(similarity, neighbours)), recency=recency)


def fit_ease(users: Sequence[Engagement], size: int, *, ridge: float) -> Baseline:
    """Closed-form linear autoencoder with a zero diagonal (EASE, Steck 2019); dense ``[N + 1, N + 1]``."""
    matrix = _matrix(users, size, 1.0)
    gram = np.asarray((matrix.T @ matrix).todense(), np.float64)
    gram[np.diag_indices(size)] += ridge
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    weights[np.diag_indices(size)] = 0.0
    weights[0] = 0.0
    weights[:, 0] = 0.0
    return Baseline(BaselineKind.ease, _csr(sp.csr_matrix(weights.astype(np.float32))))


def fit_ials(
    users: Sequence[Engagement],
    size: int,
    *,
    rank: int,
    ridge: float,
    confidence: float,
    iterations: int,
    seed: int,
) -> Baseline:
    """Alternating least squares for implicit feedback (Hu, Koren and Volinsky 2008)."""
    matrix = _matrix(users, size, 1.0)
    matrix.sum_duplicates()
    videos = np.random.default_rng(seed).normal(0, rank**-0.5, (size, rank))
    videos[0] = 0.0
    transposed = matrix.T.tocsr()
    for _ in range(iterations):
        people = _least_squares(matrix, videos, ridge, confidence)
        videos = _least_squares(transposed, people, ridge, confidence)
    arrays = {"factors": videos.astype(np.float32)}
    return Baseline(BaselineKind.ials, arrays, ridge=ridge, confidence=confidence)


def _least_squares(matrix: sp.csr_matrix, fixed: np.ndarray, ridge: float, confidence: float) -> np.ndarray:
    gram = fixed.T @ fixed + ridge * np.eye(fixed.shape[1])
    out = np.zeros((matrix.shape[0], fixed.shape[1]))
    for row in np.flatnonzero(np.diff(matrix.indptr)):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        own, extra = fixed[matrix.indices[span]], confidence * matrix.data[span]
        out[row] = np.linalg.solve(gram + (own.T * extra) @ own, own.T @ (1.0 + extra))
    return out


def _matrix(users: Sequence[Engagement], size: int, recency: float) -> sp.csr_matrix:
    """Users × catalogue; the newest engagement keeps its weight, each older one is damped further."""
    lengths = np.array([len(user.rows) for user in users], np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.concatenate([user.rows for user in users]) if users else np.zeros(0, np.int64)
    weights = np.concatenate([user.weights for user in users]) if users else np.zeros(0)
    age = np.repeat(indptr[1:], lengths) - 1 - np.arange(len(rows))
    values = (weights * recency**age).astype(np.float32)
    matrix = sp.csr_matrix((values, rows, indptr), shape=(len(users), size))
    return matrix


def _top_per_row(matrix: sp.csr_matrix, keep: int) -> sp.csr_matrix:
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    chosen = order[place < keep]
    return sp.csr_matrix((matrix.data[chosen], (row[chosen], matrix.indices[chosen])), shape=matrix.shape)


def _csr(matrix: sp.csr_matrix) -> dict[str, np.ndarray]:
    matrix.sort_indices()
    return {
        "data": matrix.data.astype(np.float32),
        "indices": matrix.indices.astype(np.int64),
        "indptr": matrix.indptr.astype(np.int64),
    }
