"""Counts that pages add to, in the SQLite store."""

import sqlite3
from collections.abc import Sequence

from serving.state.protocol import Tally, TallyExceeded

_PART = 500  # keys in one question


def counts(db: sqlite3.Connection, keys: Sequence[str], now_ms: int) -> list[int]:
    """How far each tally has grown."""
    found: dict[str, int] = {}
    for begin in range(0, len(keys), _PART):
        part = keys[begin : begin + _PART]
        marks = ",".join("?" * len(part))
        query = f"SELECT key, count FROM tallies WHERE expires_ms > ? AND key IN ({marks})"
        found.update(db.execute(query, (now_ms, *part)).fetchall())
    return [found.get(key, 0) for key in keys]


def add(db: sqlite3.Connection, tallies: Sequence[Tally], now_ms: int) -> None:
    """Count; raises :class:`TallyExceeded`, and the caller's transaction must then be taken back."""
    before = counts(db, [tally.key for tally in tallies], now_ms)
    for tally, count in zip(tallies, before, strict=True):
        if tally.limit is not None and count + tally.add > tally.limit:
            raise TallyExceeded(tally.key)
        row = (tally.key, count + tally.add, now_ms + tally.ttl_ms)
        db.execute("INSERT OR REPLACE INTO tallies VALUES (?, ?, ?)", row)
