"""Ranks and builds one page within a time budget, together with whoever asks at the same moment."""

import hashlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

import numpy as np

from data.history import UserRequest
from serving.batching import Batcher, DeadlineExceeded
from serving.cursor import Cursor
from serving.exploration import NO_EXPLORATION, ExplorationPreferences
from serving.feed import Candidates, Page, build_page
from serving.live import LiveBundle
from serving.metrics import Metrics
from serving.pipeline import RankedList, RankRequest
from serving.rules import Audience
from serving.slate import NO_PREFERENCES, SlatePreferences

logger = logging.getLogger("shopreel.paging")
#: A page that hard rules left short is built again from this many times as many candidates.
GROWTH = 4


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How pages are made. ``candidates`` are ranked per request, more where hard rules leave too few."""

    page_size: int
    candidates: int
    max_batch: int
    max_queue: int
    slate: SlatePreferences = NO_PREFERENCES
    exploration: ExplorationPreferences = NO_EXPLORATION


class PageMaker:
    """Makes pages from whatever bundle it is given. Safe to call from several threads."""

    def __init__(self, settings: FeedSettings, metrics: Metrics, secret: bytes) -> None:
        """``secret`` makes exploration's dice unforeseeable."""
        self._settings = settings
        self._metrics = metrics
        self._secret = secret
        self._batcher: Batcher[RankRequest, RankedList] = Batcher(
            _rank_together,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            observe=metrics.batch_size.observe,
        )

    def make(
        self,
        live: LiveBundle,
        user: UserRequest,
        audience: Audience,
        size: int | None,
        place: Cursor,
        deadline: float,
    ) -> tuple[Page, list[str]]:
        """The page at ``place`` of a session, and what it had to do without.

        Shorter than ``size`` (None: the usual one) only when all that may be shown has been.
        ``deadline`` is on :func:`time.monotonic`'s clock. Raises :class:`serving.batching.QueueFull`.
        """
        size = size or self._settings.page_size
        k = max(self._settings.candidates, size)
        excluded = audience.excluded
        while True:
            with self._metrics.stage("rank"):
                request = RankRequest(user, k=k, exclude_rows=excluded, market=audience.market)
                ranked = self._rank(live, request, deadline)
            with self._metrics.stage("page"):
                page = build_page(
                    Candidates(
                        ranked.video_row,
                        ranked.score,
                        ranked.source,
                        ranked.score if ranked.retrieval_score is None else ranked.retrieval_score,
                        ranked.probabilities,
                    ),
                    size,
                    live.facts,
                    audience,
                    self._settings.slate,
                    self._settings.exploration,
                    self._dice(place),
                )
            if len(page.slots) == size or len(ranked.video_row) < k:
                return page, [*ranked.degraded, *(f"relaxed_{kind}" for kind in page.relaxed)]
            k *= GROWTH

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._batcher.close()

    def _rank(self, live: LiveBundle, request: RankRequest, deadline: float) -> RankedList:
        future = self._batcher.submit(request, group=live, deadline=deadline)
        left = deadline - time.monotonic()
        try:
            return future.result(timeout=None if left == float("inf") else max(left, 0.0))
        except (DeadlineExceeded, FutureTimeout):
            future.cancel()
            return live.pipeline.popular(request, "time_budget")
        except Exception:
            logger.exception("ranking failed; falling back to popularity")
            return live.pipeline.popular(request, "ranking_failed")

    def _dice(self, place: Cursor) -> np.random.Generator:
        """The same for the same page, so that it can be built again; and nobody's to foresee."""
        label = b"exploration" + place.session_id + place.page.to_bytes(4, "big")
        seed = hashlib.blake2b(label, key=self._secret[:64], digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))


def _rank_together(live: object, requests: Sequence[RankRequest]) -> Sequence[RankedList]:
    assert isinstance(live, LiveBundle)
    return live.pipeline.rank(requests)
