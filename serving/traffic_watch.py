"""Learns how the pages of a day are spread over its hours, from counts that all replicas share."""

import threading
from collections.abc import Sequence

from serving.pacing import HOUR_MS, HOURS, Traffic, learned
from serving.state import Store
from serving.state.protocol import DAY_MS, Tally

#: Days from which traffic is learned.
DAYS = 7
#: How long a curve is used before it is learned again.
FRESH_MS = 10 * 60_000
_KEPT_MS = (DAYS + 1) * DAY_MS


class TrafficWatch:
    """Curves by market. Safe to call from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._curves: dict[tuple[str, ...], tuple[int, Traffic]] = {}

    def curve(self, markets: Sequence[str] | None, now_ms: int) -> Traffic:
        """The traffic of these markets together, of all for None; flat before a whole day was seen."""
        names = tuple(sorted(set(markets))) if markets is not None else ("",)
        with self._lock:
            known = self._curves.get(names)
        if known is None or abs(now_ms - known[0]) >= FRESH_MS:
            known = now_ms, self._learn(names, now_ms)
            with self._lock:
                self._curves[names] = known
        return known[1]

    @staticmethod
    def tallies(market: str | None, now_ms: int) -> list[Tally]:
        """What one page counts for."""
        hour = now_ms // HOUR_MS
        return [Tally(_key(name, hour), 1, _KEPT_MS) for name in {"", market or ""}]

    def _learn(self, markets: tuple[str, ...], now_ms: int) -> Traffic:
        """From the last whole hours, back to the first that was counted."""
        current = now_ms // HOUR_MS
        hours = range(current - DAYS * HOURS, current)
        keys = [_key(market, hour) for hour in hours for market in markets]
        counts = self._store.tallies(keys, now_ms)
        width = len(markets)
        pages = [sum(counts[place : place + width]) for place in range(0, len(counts), width)]
        first = next((place for place, count in enumerate(pages) if count), len(pages))
        return learned(pages[first:], hours.start + first)


def _key(market: str, hour: int) -> str:
    return f"traffic:{hour}:{market}"
