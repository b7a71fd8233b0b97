"""Ranks and builds one page within a time budget, together with whoever asks at the same moment."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

import numpy as np

from data.history import UserRequest
from models.value import ValueFormula
from serving.batching import Batcher, DeadlineExceeded
from serving.campaign_desk import Bid, CampaignDesk
from serving.campaigns import Campaign
from serving.cursor import Cursor
from serving.diversity import diversified
from serving.exact import Rows
from serving.exploration import NO_EXPLORATION, ExplorationPreferences
from serving.feed import CAMPAIGN, Candidates, Page, build_page
from serving.first_showings import FirstShowings, Owed
from serving.live import LiveBundle
from serving.metrics import Metrics
from serving.pacing import Traffic
from serving.pipeline import RankedList, RankRequest
from serving.plan import ValuePatch, patched_value
from serving.rules import Audience
from serving.schema import MAX_PAGE_SIZE
from serving.slate import NO_PREFERENCES, SlatePreferences
from serving.sources import NO_SOURCES, SourceQuotas, further_candidates
from serving.state import Store
from serving.state.protocol import Id, Tally
from serving.traffic_watch import TrafficWatch

logger = logging.getLogger("shopreel.paging")
#: A page that hard rules left short is built again from this many times as many candidates.
GROWTH = 4


@dataclass(frozen=True, slots=True)
class CampaignPreferences:
    """``positions`` (from 0) of the slots of a page that campaigns may have; none switches them off."""

    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(not 0 <= place < MAX_PAGE_SIZE for place in self.positions):
            raise ValueError(f"positions={list(self.positions)} must lie within 0 … {MAX_PAGE_SIZE - 1}")
        if len(set(self.positions)) < len(self.positions):
            raise ValueError(f"positions={list(self.positions)} names a position twice")


NO_CAMPAIGNS = CampaignPreferences(())


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How pages are made. ``candidates`` are ranked per request, more where hard rules leave too few.

    ``value`` changes weights of the bundle's value formula, where it has a ranker.
    """

    page_size: int
    candidates: int
    max_batch: int
    max_queue: int
    slate: SlatePreferences = NO_PREFERENCES
    exploration: ExplorationPreferences = NO_EXPLORATION
    value: ValuePatch | None = None
    campaigns: CampaignPreferences = NO_CAMPAIGNS
    sources: SourceQuotas = NO_SOURCES

    def __post_init__(self) -> None:
        if not 1 <= self.page_size <= MAX_PAGE_SIZE:
            raise ValueError(f"page_size {self.page_size} must lie within 1 … {MAX_PAGE_SIZE}")
        if min(self.candidates, self.max_batch, self.max_queue) < 1:
            raise ValueError("candidates, max_batch and max_queue must be at least 1")
        if both := set(self.campaigns.positions) & set(self.exploration.positions):
            raise ValueError(f"slot {min(both)} cannot both explore and be a campaign's")
        if self.sources.promises and not self.exploration.positions:
            raise ValueError("promised showings are drawn by exploration: set exploration.positions")


@dataclass(frozen=True, slots=True)
class Visit:
    """Who asks for which page: the user as the model reads one, the rules that apply, and the moment.

    ``size`` None is the usual page; ``deadline`` is on the clock of :func:`time.monotonic`; ``policy``
    names what decides; ``followed`` are creators by code; ``traffic`` None is learned.
    """

    user_id: Id
    now_ms: int
    user: UserRequest
    audience: Audience
    place: Cursor
    size: int | None
    deadline: float
    policy: str
    followed: Rows
    traffic: Traffic | None = None


@dataclass(frozen=True, slots=True)
class MadePage:
    """A page, what it had to do without, and what it counts for once it is handed out."""

    page: Page
    degraded: list[str]
    tallies: list[Tally]


class PageMaker:
    """Makes pages from whatever bundle it is given. Safe to call from several threads."""

    def __init__(self, settings: FeedSettings, store: Store, metrics: Metrics, secret: bytes) -> None:
        """``secret`` makes exploration's dice unforeseeable; of ``settings`` the queue's bounds are used."""
        self._metrics = metrics
        self._secret = secret
        self._desk = CampaignDesk(store)
        self._first_showings = FirstShowings(store)
        self._batcher: Batcher[RankRequest, RankedList] = Batcher(
            _rank_together,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            observe=metrics.batch_size.observe,
        )

    def make(
        self, live: LiveBundle, visit: Visit, settings: FeedSettings, campaigns: Mapping[str, Campaign]
    ) -> MadePage:
        """The page; shorter than its size only when all that may be shown has been.

        ``campaigns`` may claim slots. Raises :class:`serving.batching.QueueFull`.
        """
        size = visit.size or settings.page_size
        audience = visit.audience
        bids: list[Bid] = []
        with self._metrics.stage("sources"):
            owed = self._first_showings.owed(live, settings.sources, visit.now_ms)
            extra = self._further_candidates(live, visit, settings.sources, owed)
        if campaigns and settings.campaigns.positions:
            with self._metrics.stage("campaigns"):
                bids = self._desk.bids(
                    live, campaigns, visit.user_id, audience.market, visit.now_ms, visit.traffic
                )
                if bids:
                    extra[CAMPAIGN] = self._desk.candidates(bids)
        value = _value(live, settings.value, visit.policy)
        k = max(settings.candidates, size)
        while True:
            with self._metrics.stage("rank"):
                request = RankRequest(
                    visit.user,
                    k=k,
                    exclude_rows=audience.excluded,
                    market=audience.market,
                    value=value,
                    deadline=visit.deadline,
                    candidates=k,
                    extra=extra,
                )
                ranked = self._rank(live, request, visit.deadline)
            with self._metrics.stage("page"):
                candidates = _candidates(ranked)
                if diversity := settings.slate.diversity:
                    vectors_KD = live.pipeline.vectors_of(candidates.row)
                    candidates = candidates.take(diversified(candidates.score, vectors_KD, diversity))
                page = build_page(
                    candidates,
                    size,
                    live.facts,
                    audience,
                    settings.slate,
                    settings.exploration,
                    self._dice(visit.place),
                    self._desk.claims(bids, candidates),
                    settings.campaigns.positions,
                    owed.rows,
                )
            if len(page.slots) == size or len(ranked.video_row) < k:
                break
            k *= GROWTH
        tallies = self._desk.tallies(bids, page.slots, visit.user_id, visit.now_ms)
        tallies += self._first_showings.tallies(owed, [slot.row for slot in page.slots], settings.sources)
        if campaigns:
            tallies += TrafficWatch.tallies(audience.market, visit.now_ms)
        degraded = [*ranked.degraded, *(f"relaxed_{kind}" for kind in page.relaxed)]
        return MadePage(page, degraded, tallies)

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

    def _further_candidates(
        self, live: LiveBundle, visit: Visit, quotas: SourceQuotas, owed: Owed
    ) -> dict[str, Rows]:
        if quotas == NO_SOURCES:
            return {}
        audience = visit.audience

        def popular(count: int) -> Rows:
            request = RankRequest(visit.user, count, audience.excluded, audience.market)
            return live.pipeline.popular(request, "").video_row

        return further_candidates(
            live.facts.recency(),
            quotas,
            now_ms=visit.now_ms,
            eligible=live.facts.eligible(audience.market),
            excluded=audience.excluded,
            owed=owed.rows,
            followed=visit.followed,
            popular=popular,
        )

    def _dice(self, place: Cursor) -> np.random.Generator:
        """The same for the same page, so that it can be built again; and nobody's to foresee."""
        label = b"exploration" + place.session_id + place.page.to_bytes(4, "big")
        seed = hashlib.blake2b(label, key=self._secret[:64], digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))


def _rank_together(live: object, requests: Sequence[RankRequest]) -> Sequence[RankedList]:
    assert isinstance(live, LiveBundle)
    return live.pipeline.rank(requests)


def _value(live: LiveBundle, patch: ValuePatch | None, policy: str) -> ValueFormula | None:
    formula = live.pipeline.formula
    if patch is None or formula is None:
        return None
    return patched_value(formula, patch, f"{formula.version}|{policy}")


def _candidates(ranked: RankedList) -> Candidates:
    found_by = ranked.score if ranked.retrieval_score is None else ranked.retrieval_score
    return Candidates(
        ranked.video_row, ranked.score, ranked.source, found_by, ranked.probabilities, ranked.watch_ms
    )
