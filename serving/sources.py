"""Candidates that the towers need not find: new videos, popular ones, those of creators one follows.

Each source has a quota. What it names is scored with the retrieved candidates and must stand on its own
score; only exploration (``serving.exploration``) may put a new video where its score would not.
"""

from dataclasses import dataclass

import numpy as np

from serving.catalogue import UNKNOWN_TIME, CatalogueFacts
from serving.exact import NO_ROWS, Rows
from serving.state.protocol import DAY_MS

FRESH, POPULAR, FOLLOWED = "fresh", "popular", "followed"


@dataclass(frozen=True, slots=True)
class SourceQuotas:
    """The most candidates per source and page, 0 for none. ``fresh_days``: for how long a video is new."""

    fresh: int
    popular: int
    followed: int
    fresh_days: float


NO_SOURCES = SourceQuotas(0, 0, 0, 1.0)


class Recency:
    """The videos of a catalogue by time of publication; those without a time are left out."""

    def __init__(self, facts: CatalogueFacts) -> None:
        known = np.flatnonzero(facts.publish_ms != UNKNOWN_TIME)
        newest_first = known[np.argsort(-facts.publish_ms[known], kind="stable")]
        self._publish_ms = facts.publish_ms
        self._rows = newest_first
        self._age = -facts.publish_ms[newest_first]
        creator = facts.creator.code[newest_first]
        by_creator = np.argsort(creator, kind="stable")
        self._by_creator = newest_first[by_creator]
        self._offset = np.searchsorted(creator[by_creator], np.arange(len(facts.creator.names) + 1))

    def fresh(self, now_ms: int, days: float) -> Rows:
        """Rows published within the last ``days``, newest first; nothing from the future."""
        newest = np.searchsorted(self._age, -now_ms, side="left")
        oldest = np.searchsorted(self._age, -(now_ms - int(days * DAY_MS)), side="right")
        rows: Rows = self._rows[newest:oldest]
        return rows

    def of_creators(self, creators: Rows, now_ms: int) -> Rows:
        """Rows of these creators (by code), newest first; nothing from the future."""
        parts = [self._by_creator[self._offset[code] : self._offset[code + 1]] for code in creators.tolist()]
        rows = np.concatenate([NO_ROWS, *parts])
        rows = rows[self._publish_ms[rows] <= now_ms]
        newest_first: Rows = rows[np.argsort(-self._publish_ms[rows], kind="stable")]
        return newest_first


def further_candidates(
    recency: Recency,
    quotas: SourceQuotas,
    *,
    now_ms: int,
    excluded: Rows,
    followed: Rows,
    popular: Rows = NO_ROWS,
) -> dict[str, Rows]:
    """Rows by source, each up to its quota, without ``excluded``; ``followed`` are creators by code."""
    found: dict[str, Rows] = {}
    if quotas.followed and len(followed):
        found[FOLLOWED] = _first(recency.of_creators(followed, now_ms), quotas.followed, excluded)
    if quotas.fresh:
        found[FRESH] = _first(recency.fresh(now_ms, quotas.fresh_days), quotas.fresh, excluded)
    if quotas.popular:
        found[POPULAR] = _first(popular, quotas.popular, excluded)
    return {name: rows for name, rows in found.items() if len(rows)}


def _first(rows: Rows, count: int, excluded: Rows) -> Rows:
    """The first ``count`` rows that are not excluded; looks no further than it must."""
    head = rows[: count + len(excluded)]
    return head[~np.isin(head, excluded)][:count]
