"""What newcomers are promised: every new video a number of first showings, every new merchant a floor.

Counts live in the store, grow with the page that shows a video, and are shared by all replicas. While
somebody is owed a showing, a page's first exploration slot is drawn among those owed alone, so its
propensity stays exact. A showing is a slot that was handed out.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.exact import NO_ROWS, Rows
from serving.live import LiveBundle
from serving.recency import UNKNOWN_TIME
from serving.sources import SourceQuotas
from serving.state import Store
from serving.state.protocol import DAY_MS, Tally, id_key

#: How long counts are used before they are read again.
REFRESH_MS = 1_000
#: Newcomers that are looked after at the same time; of more, the newest.
MOST_NEWCOMERS = 20_000


@dataclass(frozen=True, slots=True)
class Owed:
    """Rows that are owed a showing, least shown first, equals by row, and the counts that each adds to."""

    read_ms: int
    rows: Rows
    keys: dict[int, list[str]]


NOBODY = Owed(0, NO_ROWS, {})


class FirstShowings:
    """Keeps the promises. Safe to call from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._owed: dict[tuple[str, SourceQuotas], Owed] = {}

    def owed(self, live: LiveBundle, quotas: SourceQuotas, now_ms: int) -> Owed:
        """Who is owed a showing now, as of at most ``REFRESH_MS`` ago."""
        if not quotas.promises:
            return NOBODY
        which = live.name, quotas
        with self._lock:
            known = self._owed.get(which)
        if known is None or abs(now_ms - known.read_ms) >= REFRESH_MS:
            known = self._read(live, quotas, now_ms)
            with self._lock:
                self._owed = {
                    other: owed
                    for other, owed in self._owed.items()
                    if abs(now_ms - owed.read_ms) < 60 * REFRESH_MS
                }
                self._owed[which] = known
        return known

    @staticmethod
    def tallies(owed: Owed, rows: Sequence[int], quotas: SourceQuotas) -> list[Tally]:
        """What a page of these ``rows`` counts for."""
        kept_ms = int(2 * max(quotas.fresh_days, quotas.merchant_days) * DAY_MS)
        counts: dict[str, int] = {}
        for row in rows:
            for key in owed.keys.get(row, ()):
                counts[key] = counts.get(key, 0) + 1
        return [Tally(key, count, kept_ms) for key, count in counts.items()]

    def _read(self, live: LiveBundle, quotas: SourceQuotas, now_ms: int) -> Owed:
        promised = _promised(live, quotas, now_ms)
        names = sorted({key for keys in promised.values() for key, _ in keys})
        counts = dict(zip(names, self._store.tallies(names, now_ms), strict=True))
        keys: dict[int, list[str]] = {}
        shown: list[int] = []
        for row, wanted in promised.items():
            missing = [key for key, promise in wanted if counts[key] < promise]
            if missing:
                keys[row] = missing
                shown.append(min(counts[key] for key in missing))
        rows = np.array(list(keys), np.int64)
        return Owed(now_ms, rows[np.lexsort((rows, np.array(shown, np.int64)))], keys)


def _promised(live: LiveBundle, quotas: SourceQuotas, now_ms: int) -> dict[int, list[tuple[str, int]]]:
    """Row → the counts that it and its merchants are promised, (key, promise)."""
    facts, recency = live.facts, live.facts.recency()
    promised: dict[int, list[tuple[str, int]]] = {}
    if quotas.video_showings:
        rows = recency.fresh(now_ms, quotas.fresh_days)[:MOST_NEWCOMERS]
        for row, video_id in zip(rows.tolist(), live.catalogue.ids(rows).to_pylist(), strict=True):
            promised[row] = [(f"first:video:{id_key(video_id)}", quotas.video_showings)]
    if quotas.merchant_showings:
        first_ms = recency.merchant_first_ms
        since_ms = now_ms - int(quotas.merchant_days * DAY_MS)
        new = (first_ms != UNKNOWN_TIME) & (first_ms >= since_ms) & (first_ms <= now_ms)
        merchants = facts.products.merchant
        for row in recency.fresh(now_ms, quotas.merchant_days)[:MOST_NEWCOMERS].tolist():
            codes = np.unique(merchants.code[facts.product_rows.of(row)])
            for name in merchants.names_of(codes[(codes > 0) & new[codes]]):
                entry = f"first:merchant:{id_key(name)}", quotas.merchant_showings
                promised.setdefault(row, []).append(entry)
    return promised
