"""The one place that knows the order: user vector → retrieve → hard rules → score → order.

The server, ``replay`` and ``recommend`` all call :meth:`Pipeline.rank`; so do the golden requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from data.history import UserRequest
from models.bundle import Bundle
from serving.exact import NO_ROWS, Hits, Rows, Vectors


class Stage(Enum):
    """The points at which a ranked list can be looked at."""

    exact = "exact"
    index = "index"
    ranker = "ranker"
    feed = "feed"


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One user who wants the best ``k`` videos.

    ``exclude_rows`` (seen, served, hidden) never return. ``market`` None or unknown to the bundle
    applies no market rule. ``allowed_rows`` limits the candidates (None: the whole catalogue).
    """

    user: UserRequest
    k: int
    exclude_rows: Rows = field(default_factory=lambda: NO_ROWS)
    market: str | None = None
    allowed_rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class RankedList:
    """The answer to one request, best first, possibly shorter than ``k`` or empty.

    ``source[i]`` says where ``video_row[i]`` came from (``two_tower`` or ``popularity``).
    ``degraded`` names what failed on the way; empty when all went well. ``stages`` is filled only
    when asked for.
    """

    video_row: Rows
    score: Vectors
    source: tuple[str, ...]
    degraded: tuple[str, ...] = ()
    stages: Mapping[Stage, Hits] = field(default_factory=dict)


class Pipeline:
    """Ranks requests against one bundle; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def rank(self, requests: Sequence[RankRequest], *, stages: bool = False) -> list[RankedList]:
        """Rank every request; the answers are in the order of ``requests``.

        A user encoder or an index that fails degrades the request to popularity in its market and
        says so in ``degraded``; it never raises for one user's data.
        """
        raise NotImplementedError

    def score(self, user: UserRequest, rows: Rows) -> Vectors:
        """Final scores float32[len(rows)] of any catalogue rows, order kept.

        Row 0 scores the unknown video.
        """
        raise NotImplementedError
