"""Approximate search over the catalogue: the only place that knows FAISS.

The metric is the inner product of the towers' final vectors, always. Faiss ids never leave this file:
what comes out are catalogue rows, and the -1 of an unfilled place is dropped here.

Axes: N catalogue rows (row 0 unknown, never indexed), D dimensions, B users.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from data.errors import ContractError
from models.bundle import Bundle
from serving.exact import ExactSearch, Mask, Rows, Vectors, pair_scores

INDEX_FILE = "index.faiss"
#: Squared lengths that differ by this share count as equal.
SAME_LENGTH = 1e-3
#: What a scan of the codes costs, in passes of brute force, and each video that is scored exactly after it.
SCAN_COST, RESCORE_COST = 0.15, 12.0
#: Videos whose coordinates the codes are fitted to.
SCAN_SAMPLE = 65_536
#: How many videos inverted lists of codes give for each one asked for, to be scored exactly.
IVF_SCAN_SPARE = 4


class IndexKind(Enum):
    """How candidates are found."""

    exact = "exact"
    scan = "scan"
    hnsw = "hnsw"
    ivf = "ivf"
    ivf_scan = "ivf_scan"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexParameters:
    """What an index was built with and how wide it searches.

    ``width`` is efSearch for ``hnsw``, nprobe for ``ivf`` and ``ivf_scan``, and for ``scan`` how many videos
    are scored exactly for each one asked for; it is tuned for lists of ``k`` videos.
    ``links`` are neighbours per graph node, ``build_width`` is efConstruction, ``lists`` the inverted
    lists; each is 0 where the kind has no such thing.
    """

    kind: IndexKind
    k: int
    width: int = 0
    links: int = 0
    build_width: int = 0
    lists: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_json`."""
        return asdict(self) | {"kind": self.kind.value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "IndexParameters":
        """Rebuild; an unknown kind or key raises ``ValueError`` or ``TypeError``."""
        return cls(**(value | {"kind": IndexKind(value["kind"])}))


def choose_kind(videos: int, *, exact_below: int, scan_below: int) -> IndexKind:
    """The rule: exact search while one pass over the catalogue is cheap, a scan of short codes while that is.

    Below ``exact_below`` videos brute force takes a few milliseconds a request and loses nothing; below
    ``scan_below`` a scan of 4-bit codes takes a tenth of that, whatever the length of the list; above,
    inverted lists of such codes, of which a few are scanned. What it rests on: docs/scale.md.
    """
    if videos < exact_below:
        return IndexKind.exact
    return IndexKind.scan if videos < scan_below else IndexKind.ivf_scan


class ApproximateIndex:
    """A FAISS index over rows 1..N of ``vectors_ND``."""

    def __init__(self, index: Any, parameters: IndexParameters, *, threads: int = 0) -> None:
        """``threads`` search together for several users, 0: as many as there are cores."""
        self._index = index
        self.parameters = parameters
        self._threads = threads

    @classmethod
    def build(cls, vectors_ND: Vectors, parameters: IndexParameters, *, seed: int = 0) -> "ApproximateIndex":
        """Index every row but 0. Takes minutes for millions of videos; ``width`` is tuned afterwards."""
        scan = parameters.kind is IndexKind.scan
        videos_ND = np.ascontiguousarray(vectors_ND[1:]) if scan else _equal_norms(vectors_ND[1:])
        dim = videos_ND.shape[1]
        if scan:  # 16 values of each dimension, compared in registers (André et al., VLDB 2015)
            index = faiss.IndexPQFastScan(dim, dim, 4, faiss.METRIC_INNER_PRODUCT)
            index.pq.cp.seed = seed
            index.pq.cp.min_points_per_centroid = 1
            index.train(_sample(videos_ND, SCAN_SAMPLE, seed))
        elif parameters.kind is IndexKind.hnsw:
            index = faiss.IndexHNSWFlat(dim, parameters.links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = parameters.build_width
        elif parameters.kind is IndexKind.ivf:
            index = faiss.IndexIVFScalarQuantizer(
                faiss.IndexFlatIP(dim), dim, parameters.lists, faiss.ScalarQuantizer.QT_fp16,
                faiss.METRIC_INNER_PRODUCT,
            )  # fmt: skip
            index.cp.seed = seed
            index.cp.spherical = True
            index.cp.min_points_per_centroid = 1
            index.train(_sample(videos_ND, 64 * parameters.lists, seed))
        elif parameters.kind is IndexKind.ivf_scan:  # 4-bit codes of what is left beside the list's centre
            index = faiss.IndexIVFPQFastScan(
                faiss.IndexFlatIP(dim), dim, parameters.lists, dim, 4, faiss.METRIC_INNER_PRODUCT
            )
            index.by_residual = True
            index.cp.seed = index.pq.cp.seed = seed
            index.cp.spherical = True
            index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
            index.train(_sample(videos_ND, 64 * parameters.lists, seed))
        else:
            raise ValueError(f"an index of kind {parameters.kind.value} is not built; use serving.exact")
        index.add(videos_ND)
        return cls(index, parameters)

    @classmethod
    def load(
        cls, path: Path, parameters: IndexParameters, shape: tuple[int, int], *, threads: int = 0
    ) -> "ApproximateIndex":
        """Read a saved index of a ``[N, D]`` catalogue; refuse one of another kind, size or metric."""
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)  # mapped, so that processes share it
        except RuntimeError as error:
            raise ContractError(
                f"{path}: not a FAISS index ({str(error).splitlines()[0]}); publish again"
            ) from None
        wanted = {
            IndexKind.scan: faiss.IndexPQFastScan,
            IndexKind.hnsw: faiss.IndexHNSWFlat,
            IndexKind.ivf: faiss.IndexIVFScalarQuantizer,
            IndexKind.ivf_scan: faiss.IndexIVFPQFastScan,
        }
        rows, dim = shape
        if type(index) is not wanted[parameters.kind] or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ContractError(
                f"{path}: holds {type(index).__name__}, the manifest says {parameters.kind.value}"
            )
        if index.ntotal + 1 != rows or index.d not in (dim, dim + 1):
            raise ContractError(
                f"{path}: indexes {index.ntotal:,} videos in {index.d} dimensions, there are {rows - 1:,} in "
                f"{dim}; publish again"
            )
        return cls(index, parameters, threads=threads)

    def save(self, path: Path) -> None:
        """Write the FAISS file; the parameters belong into the manifest."""
        faiss.write_index(self._index, str(path))

    def search(self, user_BD: Vectors, k: int, *, eligible: Mask | None = None) -> list[Rows]:
        """Rows among which are about the best ``k`` of every user, in no promised order.

        They are ``k``, several times as many for scans, or fewer where it found fewer. ``eligible``
        bool[N] limits the answer to its rows. The search widens with ``k`` beyond the one it was tuned for,
        and as fewer rows are eligible.
        """
        count = int(self._index.ntotal)
        k = min(k, count)
        if k < 1 or not len(user_BD):
            return [np.empty(0, np.int64)] * len(user_BD)
        share = 1.0 if eligible is None else float(np.count_nonzero(eligible[1:])) / (len(eligible) - 1)
        if share == 0.0:
            return [np.empty(0, np.int64)] * len(user_BD)
        if self._threads:  # OpenMP counts for each calling thread by itself
            faiss.omp_set_num_threads(self._threads)
        width = self._width(k, share)
        if self.parameters.kind is IndexKind.scan:
            _, id_BK = self._index.search(np.ascontiguousarray(user_BD), min(count, k * width))
            found = [ids[ids >= 0] + 1 for ids in id_BK]
            return found if eligible is None else [rows[eligible[rows]] for rows in found]
        selector = (
            None if eligible is None else faiss.IDSelectorBitmap(np.packbits(eligible[1:], bitorder="little"))
        )
        if self.parameters.kind is IndexKind.hnsw:
            search = faiss.SearchParametersHNSW(efSearch=width, sel=selector)
        else:
            search = faiss.SearchParametersIVF(nprobe=width, sel=selector)
        query_BD = np.zeros((len(user_BD), self._index.d), np.float32)  # 0 in the dimension of _equal_norms
        query_BD[:, : user_BD.shape[1]] = user_BD
        if self.parameters.kind is IndexKind.ivf_scan:
            k = min(count, k * IVF_SCAN_SPARE)
        _, id_BK = self._index.search(query_BD, k, params=search)
        return [ids[ids >= 0] + 1 for ids in id_BK]

    def effort(self, k: int, share: float) -> float:
        """About what a search for ``k`` costs in passes of brute force; from 1 on it is not worth it.

        ``share`` of the rows are eligible, in (0, 1].
        """
        width = self._width(k, share)
        if self.parameters.kind is IndexKind.scan:
            return SCAN_COST + RESCORE_COST * k * width / max(1, int(self._index.ntotal))
        if self.parameters.kind is IndexKind.ivf:
            return width / self.parameters.lists
        if self.parameters.kind is IndexKind.ivf_scan:
            rescored = RESCORE_COST * k * IVF_SCAN_SPARE / max(1, int(self._index.ntotal))
            return SCAN_COST * width / self.parameters.lists + rescored
        # each unit of efSearch visits a node and reads the vectors of its neighbours out of order
        return width * 2 * self.parameters.links / max(1, int(self._index.ntotal))

    def _width(self, k: int, share: float) -> int:
        parameters = self.parameters
        if parameters.kind is IndexKind.scan:
            return int(np.ceil(parameters.width / share))
        width = int(np.ceil(parameters.width * max(1.0, k / parameters.k) / share))
        return max(width, k) if parameters.kind is IndexKind.hnsw else min(width, parameters.lists)

    def tuned(
        self, vectors_ND: Vectors, tuning_BD: Vectors, checking_BD: Vectors, recall_target: float
    ) -> tuple["ApproximateIndex", float]:
        """The narrowest search that reaches ``recall_target`` on both groups of users, and the recall of
        ``checking_BD``, who had no say in the width unless the first group's was too narrow for them.

        Doubles the width until both reach the target or a search costs as much as brute force.
        """
        kind, k = self.parameters.kind, self.parameters.k
        exact = ExactSearch(vectors_ND)
        groups = [
            (user_BD, [hits.score for hits in exact.search(user_BD, k)])
            for user_BD in (tuning_BD, checking_BD)
        ]
        width = k if kind is IndexKind.hnsw else 1
        while True:
            candidate = ApproximateIndex(self._index, replace(self.parameters, width=width))
            recalls = [
                recall_of(candidate.search(user_BD, k), truth, vectors_ND, user_BD)
                for user_BD, truth in groups
            ]
            if min(recalls) >= recall_target or candidate.effort(k, 1.0) >= 1.0:
                return candidate, recalls[1]
            width *= 2


def open_index(bundle: Bundle, *, threads: int = 0) -> ApproximateIndex | None:
    """The index of a bundle, searched by ``threads``; None where search is exact."""
    try:
        parameters = IndexParameters.from_json(
            {**bundle.manifest.index["parameters"], **bundle.manifest.measured["index"]["tuned"]}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"{bundle.path}: no index parameters in the manifest ({error}); publish again"
        ) from None
    if parameters.kind is IndexKind.exact:
        return None
    return ApproximateIndex.load(
        bundle.path / INDEX_FILE, parameters, bundle.video_vectors.shape, threads=threads
    )


def recall_of(
    found: Sequence[Rows], truth: Sequence[Vectors], vectors_ND: Vectors, user_BD: Vectors
) -> float:
    """Share of the true top-k that was found, in [0, 1]; 1.0 where there is no truth at all.

    ``truth`` holds each user's exact scores, best first. A found video counts when it scores at least
    as high as the last true one, so that equal videos may stand for one another; a row found twice
    counts once.
    """
    wanted = hit = 0
    for rows, scores, user_D in zip(found, truth, user_BD, strict=True):
        wanted += len(scores)
        if len(scores):
            distinct = np.unique(rows)
            hit += min(len(scores), int((pair_scores(vectors_ND[distinct], user_D) >= scores[-1]).sum()))
    return hit / wanted if wanted else 1.0


def _equal_norms(vectors_ND: Vectors) -> Vectors:
    """The vectors, with one more dimension that gives all of them the longest one's length.

    A user vector has 0 there, so inner products stay as they are. Without it a graph of inner products
    leaves short vectors without neighbours, and no width finds them (Bachrach et al., RecSys 2014).
    Vectors of one length, such as those of a cosine model, stay as they are.
    """
    square_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64)
    longest = square_N.max(initial=0.0)
    if square_N.min(initial=longest) >= longest * (1 - SAME_LENGTH):
        return np.ascontiguousarray(vectors_ND, np.float32)
    missing_N1 = np.sqrt(longest - square_N)[:, None].astype(np.float32)
    return np.concatenate([vectors_ND, missing_N1], axis=1, dtype=np.float32)


def _sample(vectors_ND: Vectors, size: int, seed: int) -> Vectors:
    if len(vectors_ND) <= size:
        return vectors_ND
    rows = np.random.default_rng(seed).choice(len(vectors_ND), size, replace=False)
    return vectors_ND[np.sort(rows)]
