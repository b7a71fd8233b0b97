"""Candidates of a user: the catalogue's index, videos added since, videos removed since, in one answer.

Whatever finds the candidates, they are scored again with the stored vectors, so that an index changes
which videos are found but never a score or an order. Rows that a user must not get are fetched over and
dropped; where too few are left the answer comes from exact search.

Axes: N catalogue rows (row 0 unknown, never returned), D dimensions, B users, A added videos.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from serving.exact import (
    NO_HITS,
    NO_ROWS,
    ExactSearch,
    Hits,
    Mask,
    Rows,
    Vectors,
    best_first,
    best_of,
    pair_scores,
)
from serving.exact_device import DeviceExactSearch
from serving.index import ApproximateIndex

#: Below this share of eligible videos they are scored one by one instead of searched.
SCAN_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One consistent state. ``live[r]``: the vector of row r in the main part counts."""

    exact: ExactSearch | DeviceExactSearch
    index: ApproximateIndex | None
    live_N: Mask
    added_row: Rows
    added_AD: Vectors

    @property
    def all_live(self) -> bool:
        return bool(self.live_N[1:].all())

    @property
    def size(self) -> int:
        return max(len(self.live_N), int(self.added_row.max(initial=0)) + 1)


class Retriever:
    """Top-k search over a catalogue that changes while it is searched. Thread-safe.

    Searches read one snapshot without a lock; :meth:`add`, :meth:`remove` and :meth:`rebuild` make the
    next one, visible to every search that starts after they return.
    """

    def __init__(
        self, vectors_ND: Vectors, index: ApproximateIndex | None = None, *, device: str = "cpu"
    ) -> None:
        """``index`` None means exact search, on ``device``. ``vectors_ND`` may be memory-mapped."""
        self._device = torch.device(device)
        live_N = np.ones(len(vectors_ND), bool)
        live_N[:1] = False
        nothing = np.empty((0, vectors_ND.shape[1]), np.float32)
        self._snapshot = _Snapshot(self._exact(vectors_ND), index, live_N, np.empty(0, np.int64), nothing)
        self._writing = threading.Lock()

    def _exact(self, vectors_ND: Vectors) -> ExactSearch | DeviceExactSearch:
        if self._device.type == "cuda":
            return DeviceExactSearch(vectors_ND, self._device)
        return ExactSearch(vectors_ND)

    @property
    def size(self) -> int:
        """Rows in use, row 0 included: the next free row."""
        return self._snapshot.size

    def search(
        self, user_BD: Vectors, k: int, *, exclude: Sequence[Rows] | None = None, eligible: Mask | None = None
    ) -> list[Hits]:
        """The best ``k`` rows of every user without its ``exclude`` rows, best first, ties by row.

        ``eligible`` is a bool mask over rows, common to all users; rows beyond its end are not
        eligible. A user gets fewer than ``k`` only when there are fewer. Vectors must be finite.
        """
        return _search(self._snapshot, user_BD, k, exclude, eligible)

    def search_exact(
        self, user_BD: Vectors, k: int, *, exclude: Sequence[Rows] | None = None, eligible: Mask | None = None
    ) -> list[Hits]:
        """The same question answered by brute force: what the index is measured against."""
        return _search(replace(self._snapshot, index=None), user_BD, k, exclude, eligible)

    def vectors_of(self, rows: Rows) -> Vectors:
        """The current vectors float32[K, D] of ``rows``, removed ones too; an unknown row gives row 0's."""
        snapshot = self._snapshot
        known = np.where((rows >= 0) & (rows < len(snapshot.live_N)), rows, 0)
        vectors_KD = np.asarray(snapshot.exact.vectors_ND[known])
        if len(snapshot.added_row):
            place = np.searchsorted(snapshot.added_row, rows).clip(max=len(snapshot.added_row) - 1)
            added = snapshot.added_row[place] == rows
            vectors_KD[added] = snapshot.added_AD[place[added]]
        return vectors_KD

    def add(self, rows: Rows, vectors_KD: Vectors) -> None:
        """Make ``rows`` searchable at once, exactly; a row that exists already takes its new vector.

        Rows must be positive and distinct, vectors finite and of the catalogue's dimension.
        """
        rows = np.asarray(rows, np.int64)
        dim = self._snapshot.added_AD.shape[1]
        if len(rows) and (rows.min() < 1 or len(np.unique(rows)) < len(rows)):
            raise ValueError("rows to add must be positive and distinct")
        if vectors_KD.shape != (len(rows), dim) or not np.isfinite(vectors_KD).all():
            raise ValueError(f"vectors to add must be finite and of shape {(len(rows), dim)}")
        with self._writing:
            old = self._snapshot
            keep = ~np.isin(old.added_row, rows)
            added_row = np.concatenate([old.added_row[keep], rows])
            added_AD = np.concatenate([old.added_AD[keep], vectors_KD.astype(np.float32)])
            order = np.argsort(added_row)
            self._snapshot = replace(
                old, live_N=_without(old.live_N, rows), added_row=added_row[order], added_AD=added_AD[order]
            )

    def remove(self, rows: Rows) -> None:
        """Take ``rows`` out of every later answer at once; unknown rows are ignored."""
        with self._writing:
            old = self._snapshot
            keep = ~np.isin(old.added_row, rows)
            self._snapshot = replace(
                old,
                live_N=_without(old.live_N, rows),
                added_row=old.added_row[keep],
                added_AD=old.added_AD[keep],
            )

    def rebuild(self) -> None:
        """Fold added videos into the main index; searches go on meanwhile, and so do adds and removes.

        Call it from a background thread when many videos were added: their share of a search grows
        linearly. Needs memory for a second copy of vectors and index until it is done.
        """
        start = self._snapshot
        vectors_ND = np.zeros((start.size, start.added_AD.shape[1]), np.float32)
        vectors_ND[: len(start.live_N)] = start.exact.vectors_ND
        vectors_ND[start.added_row] = start.added_AD
        live_N = np.zeros(start.size, bool)
        live_N[: len(start.live_N)] = start.live_N
        live_N[start.added_row] = True
        exact = self._exact(vectors_ND)
        index = start.index and ApproximateIndex.build(vectors_ND, start.index.parameters)
        with self._writing:
            now = self._snapshot
            folded = np.isin(now.added_row, start.added_row)
            folded[folded] = (now.added_AD[folded] == vectors_ND[now.added_row[folded]]).all(axis=1)
            gone = start.added_row[~np.isin(start.added_row, now.added_row[folded])]
            dead = np.flatnonzero(start.live_N & ~now.live_N)
            self._snapshot = _Snapshot(
                exact, index, _without(live_N, np.concatenate([gone, dead])),
                now.added_row[~folded], now.added_AD[~folded],
            )  # fmt: skip


def _search(
    snapshot: _Snapshot, user_BD: Vectors, k: int, exclude: Sequence[Rows] | None, eligible: Mask | None
) -> list[Hits]:
    if exclude is None:
        exclude = [NO_ROWS] * len(user_BD)
    mask = None if eligible is None and snapshot.all_live else snapshot.live_N
    if eligible is not None:
        mask = snapshot.live_N & _fit(eligible, len(snapshot.live_N))
    hits = _search_main(snapshot, user_BD, k, exclude, mask)
    if not len(snapshot.added_row):
        return hits
    return [
        _merge(main, _search_added(snapshot, user_D, k, rows, eligible), k)
        for main, user_D, rows in zip(hits, user_BD, exclude, strict=True)
    ]


def _search_main(
    snapshot: _Snapshot, user_BD: Vectors, k: int, exclude: Sequence[Rows], mask: Mask | None
) -> list[Hits]:
    count = len(snapshot.live_N) - 1 if mask is None else int(np.count_nonzero(mask))
    if count == 0 or k < 1:
        return [NO_HITS] * len(user_BD)
    if snapshot.index is None:
        return snapshot.exact.search(user_BD, k, exclude=exclude, eligible=mask)
    if mask is not None and count < SCAN_SHARE * len(mask):
        return _scan(snapshot, user_BD, k, exclude, np.flatnonzero(mask))
    fetch_B = np.array([min(count, k + len(rows)) for rows in exclude], np.int64)
    hits: list[Hits | None] = [None] * len(user_BD)
    # users who need about as many candidates go through the index together
    magnitude_B = np.ceil(np.log2(fetch_B))
    slack_B = snapshot.exact.slack(user_BD)
    for magnitude in np.unique(magnitude_B):
        group = np.flatnonzero(magnitude_B == magnitude).tolist()
        fetch = int(fetch_B[group].max())
        if snapshot.index.effort(fetch, count / len(snapshot.live_N)) >= 1.0:
            continue
        found = snapshot.index.search(user_BD[group], fetch, eligible=mask)
        for user, rows in zip(group, found, strict=True):
            best = best_of(
                snapshot.exact.vectors_ND, rows, user_BD[user], k, exclude=exclude[user], slack=slack_B[user]
            )
            if len(best.video_row) == k:
                hits[user] = best
    short = [user for user, answer in enumerate(hits) if answer is None]
    if short:
        rest = snapshot.exact.search(
            user_BD[short], k, exclude=[exclude[user] for user in short], eligible=mask
        )
        for user, answer in zip(short, rest, strict=True):
            hits[user] = answer
    return [answer for answer in hits if answer is not None]


def _scan(snapshot: _Snapshot, user_BD: Vectors, k: int, exclude: Sequence[Rows], rows: Rows) -> list[Hits]:
    vectors_KD = np.asarray(snapshot.exact.vectors_ND[rows])
    hits = []
    for user_D, unwanted in zip(user_BD, exclude, strict=True):
        kept = ~np.isin(rows, unwanted)
        hits.append(best_first(rows[kept], pair_scores(vectors_KD[kept], user_D), k))
    return hits


def _search_added(snapshot: _Snapshot, user_D: Vectors, k: int, exclude: Rows, eligible: Mask | None) -> Hits:
    kept = ~np.isin(snapshot.added_row, exclude)
    if eligible is not None:
        inside = snapshot.added_row < len(eligible)
        kept &= inside
        kept[inside] &= eligible[snapshot.added_row[inside]]
    return best_first(snapshot.added_row[kept], pair_scores(snapshot.added_AD[kept], user_D), k)


def _merge(main: Hits, added: Hits, k: int) -> Hits:
    rows = np.concatenate([main.video_row, added.video_row])
    return best_first(rows, np.concatenate([main.score, added.score]), k)


def _fit(mask: Mask, size: int) -> Mask:
    fitted = np.zeros(size, bool)
    fitted[: min(size, len(mask))] = mask[:size]
    return fitted


def _without(live_N: Mask, rows: Rows) -> Mask:
    live_N = live_N.copy()
    live_N[rows[(rows >= 0) & (rows < len(live_N))]] = False
    return live_N
