"""Where candidates come from besides the towers, and how many each source may bring to a page.

A source only nominates: what it brings is scored like all others and stands on its own value. What new
videos and merchants are promised is kept by exploration (:mod:`serving.first_showings`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serving.exact import NO_ROWS, Mask, Rows
from serving.recency import Recency

#: Names of sources in answers, logs and metrics.
FRESH, POPULAR, FOLLOWED = "fresh", "popular", "followed"


@dataclass(frozen=True, slots=True)
class SourceQuotas:
    """Candidates per page of each source, 0 for none.

    A new video, up to ``fresh_days`` old, is promised ``video_showings``; a merchant whose first video is up
    to ``merchant_days`` old, ``merchant_showings`` over all its videos.
    """

    fresh: int
    fresh_days: float
    popular: int
    followed: int
    video_showings: int
    merchant_showings: int
    merchant_days: float

    def __post_init__(self) -> None:
        if min(self.fresh, self.popular, self.followed, self.video_showings, self.merchant_showings) < 0:
            raise ValueError("quotas and showings must not be negative")
        if min(self.fresh_days, self.merchant_days) <= 0:
            raise ValueError("fresh_days and merchant_days must be above 0")
        if self.promises and not self.fresh:
            raise ValueError("promised showings are given to fresh candidates: set fresh above 0")

    @property
    def promises(self) -> bool:
        """Whether anything is promised to newcomers."""
        return bool(self.video_showings or self.merchant_showings)


NO_SOURCES = SourceQuotas(0, 1.0, 0, 0, 0, 0, 1.0)


def further_candidates(
    recency: Recency,
    quotas: SourceQuotas,
    *,
    now_ms: int,
    eligible: Mask,
    excluded: Rows,
    owed: Rows,
    followed: Rows,
    popular: Callable[[int], Rows],
) -> dict[str, Rows]:
    """Rows by source, within the quotas, eligible and not ``excluded``; a source that has none is left out.

    ``owed`` are the newcomers that were promised showings, first come first; the newest follow them.
    ``followed`` are creators by code; ``popular(n)`` gives the n most popular rows.
    """
    open_to = eligible.copy()
    open_to[excluded[excluded < len(open_to)]] = False
    found: dict[str, Rows] = {}
    if quotas.fresh:
        fresh = recency.fresh(now_ms, quotas.fresh_days)
        found[FRESH] = _first(np.concatenate([owed, fresh]), open_to, quotas.fresh)
    if quotas.followed and len(followed):
        found[FOLLOWED] = _first(recency.of_creators(followed, now_ms), open_to, quotas.followed)
    if quotas.popular:
        found[POPULAR] = popular(quotas.popular)
    return {name: rows for name, rows in found.items() if len(rows)}


def _first(rows: Rows, open_to: Mask, count: int) -> Rows:
    """The first ``count`` distinct rows that may be shown, looking no further than needed."""
    head = 4 * count
    while True:
        part = rows[:head]
        part = part[open_to[part]]
        first = np.sort(np.unique(part, return_index=True)[1])[:count]
        if len(first) == count or head >= len(rows):
            return part[first] if len(first) else NO_ROWS
        head *= 4
