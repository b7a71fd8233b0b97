"""A small world whose answer is known: everybody's best video is the one with their own number.

Video v (1 … N) scores ``-((v - u) mod N)`` for user u, so user u's feed is u, u + 1, u + 2, … around
the circle. Everyone not known is user 0. Even videos sell a product.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.history import UserRequest
from data.vocabulary import Vocabulary
from models.ranker_inference import Predictions
from models.value import ValueFormula
from serving.app import HttpSettings
from serving.catalogue import CatalogueFacts
from serving.exact import Rows, Vectors, best_first
from serving.exploration import NO_EXPLORATION, ExplorationPreferences
from serving.live import LiveBundle
from serving.metrics import Metrics
from serving.paging import NO_CAMPAIGNS, CampaignPreferences, FeedSettings
from serving.pipeline import RankedList, RankRequest
from serving.plan import Plan
from serving.plan_follower import FixedPlan
from serving.rollout import Rollout
from serving.service import FeedService
from serving.shadow import Offers
from serving.slate import NO_PREFERENCES, SlatePreferences
from serving.sources import NO_SOURCES, SourceQuotas
from serving.state import Limits, Store, open_store
from serving.state.protocol import DAY_MS

NOW = 1_700_000_000_000
#: Pages in order of score alone, as most tests want them.
PLAIN = NO_PREFERENCES
LIMITS = Limits(
    history_steps=512,
    seen_ttl_ms=90 * DAY_MS,
    served_ttl_ms=DAY_MS,
    session_ttl_ms=DAY_MS,
    user_ttl_ms=365 * DAY_MS,
    event_ttl_ms=30 * DAY_MS,
)
HTTP = HttpSettings(
    max_body_bytes=1 << 20,
    threads=8,
    max_in_flight=128,
    budget_ms=60_000,
    page=True,
    api_keys=(),
    requests_per_second=0.0,
    burst=20,
)


def videos_table(
    ids: Sequence[int | str], markets: bool = False, publish_ms: Sequence[int | None] | None = None
) -> pa.Table:
    """Row 0 null; creator v mod 7; even videos carry product v; with ``markets``, every third is US only."""
    count = len(ids)
    columns = {
        "video_id": pa.array([None, *ids]),
        "creator_id": pa.array([None, *(v % 7 for v in range(1, count + 1))], pa.int64()),
        "language": pa.array([None, *("en" if v % 5 else "de" for v in range(1, count + 1))]),
        "title": pa.array([None, *(f"video {v}" for v in range(1, count + 1))]),
        "product_ids": pa.array(
            [None, *([v] if v % 2 == 0 else [] for v in range(1, count + 1))], pa.list_(pa.int64())
        ),
    }
    if publish_ms is not None:
        columns["publish_time"] = pa.array([None, *publish_ms], pa.timestamp("ms", "UTC"))
    if markets:
        columns["markets"] = pa.array(
            [None, *(["US"] if v % 3 == 0 else None for v in range(1, count + 1))], pa.list_(pa.string())
        )
    return pa.table(columns)


def products_table(count: int) -> pa.Table:
    """Product v costs v hundredths; merchants and brands go round; every tenth is out of stock."""
    ids = list(range(2, count + 1, 2))
    return pa.table(
        {
            "product_id": pa.array(ids, pa.int64()),
            "merchant_id": pa.array([v % 6 for v in ids], pa.int64()),
            "brand": pa.array([f"brand {v % 10}" for v in ids]),
            "price_minor": pa.array(ids, pa.int64()),
            "currency": pa.array(["USD"] * len(ids)),
            "in_stock": pa.array([v % 10 != 0 for v in ids]),
        }
    )


@dataclass
class CircleRanker:
    """Ranks by the circle. ``fail`` raises, ``gate`` holds every answer back until it is set.

    With ``heads`` video v is predicted to be watched for v seconds and bought with probability v / 1000.
    """

    facts: CatalogueFacts
    fail: bool = False
    heads: bool = False
    formula: ValueFormula | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    extras: list[dict[str, list[int]]] = field(default_factory=list)
    histories: list[list[int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.set()

    def scores(self, user_row: int) -> Vectors:
        n = self.facts.rows - 1
        return -((np.arange(self.facts.rows) - user_row) % n).astype(np.float32)

    def rank(self, requests: Sequence[RankRequest]) -> list[RankedList]:
        self.gate.wait()
        if self.fail:
            raise RuntimeError("the model is broken")
        with self.lock:
            found = [{name: rows.tolist() for name, rows in request.extra.items()} for request in requests]
            self.extras += found
            self.histories += [request.user.history.video_row.tolist() for request in requests]
        return [self._joined(request, self.scores(request.user.user_row)) for request in requests]

    def popular(self, request: RankRequest, reason: str) -> RankedList:
        by_number = -np.arange(self.facts.rows).astype(np.float32)
        found = self._best(request, by_number, "popularity")
        return RankedList(found.video_row, found.score, found.source, (reason,))

    def score(self, user: UserRequest, rows: Rows, market: str | None = None) -> Vectors:
        if self.fail:
            raise RuntimeError("the model is broken")
        return self.scores(user.user_row)[rows]

    def vectors_of(self, rows: Rows) -> Vectors:
        return np.eye(10, dtype=np.float32)[rows % 10]

    def predict(self, user: UserRequest, rows: Rows, market: str | None = None) -> Predictions:
        """The chance of a click falls with the distance on the circle."""
        value = self.score(user, rows)
        return Predictions({"click": 1 / (1 - value)}, None, None, value)

    def _joined(self, request: RankRequest, scores: Vectors) -> RankedList:
        """The best of the circle, and the request's further candidates among them."""
        found = self._best(request, scores, "two_tower")
        source = dict(zip(found.video_row.tolist(), found.source, strict=True))
        eligible, excluded = self.facts.eligible(request.market), set(request.exclude_rows.tolist())
        for name, extra in request.extra.items():
            for row in extra.tolist():
                if eligible[row] and row not in excluded:
                    source.setdefault(row, name)
        rows = np.array(list(source), np.int64)
        hits = best_first(rows, scores[rows], len(rows))
        names = tuple(source[row] for row in hits.video_row.tolist())
        if not self.heads:
            return RankedList(hits.video_row, hits.score, names)
        number = hits.video_row.astype(np.float32)
        heads = {"click": 1 / (1 - hits.score), "purchase": number / 1000}
        return RankedList(hits.video_row, hits.score, names, probabilities=heads, watch_ms=1000 * number)

    def _best(self, request: RankRequest, scores: Vectors, source: str) -> RankedList:
        kept = self.facts.eligible(request.market).copy()
        kept[request.exclude_rows] = False
        rows = np.flatnonzero(kept)
        hits = best_first(rows, scores[rows], request.k)
        return RankedList(hits.video_row, hits.score, (source,) * len(hits.video_row))


def fake_bundle(
    count: int = 100,
    *,
    name: str = "bundle-a",
    users: int = 50,
    text_ids: bool = False,
    markets: bool = False,
    ranker: bool = False,
    publish_ms: Sequence[int | None] | None = None,
) -> LiveBundle:
    """A bundle of ``count`` videos; ids are 1 … count, or ``v001`` … as text."""
    ids = [f"v{v:03}" for v in range(1, count + 1)] if text_ids else list(range(1, count + 1))
    videos = videos_table(ids, markets, publish_ms)
    products = products_table(count)
    facts = CatalogueFacts.of(videos, products)
    return LiveBundle(
        name=name,
        pipeline=CircleRanker(facts),
        has_ranker=ranker,
        facts=facts,
        catalogue=Vocabulary.build(pa.array(ids)),
        users=Vocabulary.build(pa.array(range(1, users + 1))),
        surfaces=Vocabulary.build(pa.array(["feed"])),
        market_of=lambda user_row: None,
        videos=videos,
        products=products,
    )


@dataclass
class FakeDeployment:
    """Serves whatever ``live`` is set to."""

    live: LiveBundle


@dataclass
class World:
    """A service on a real SQLite store in ``folder``; the clock stands still unless moved."""

    folder: Path
    deployment: FakeDeployment
    settings: FeedSettings
    limits: Limits
    now_ms: int = NOW
    plans: FixedPlan | None = None
    shadow: Offers | None = None

    def __post_init__(self) -> None:
        self.open()

    def use(self, plan: Plan) -> None:
        """Put another plan into force, by restarting."""
        self.plans = FixedPlan(Rollout(plan, self.settings))
        self.restart()

    def open(self) -> None:
        self.store: Store = open_store(f"sqlite:///{self.folder}/state.db", self.limits)
        self.metrics = Metrics()
        self.service = FeedService(
            self.deployment,  # type: ignore[arg-type]
            self.store,
            self.settings,
            self.metrics,
            clock_ms=lambda: self.now_ms,
            plans=self.plans,
            shadow=self.shadow,
        )

    def close(self) -> None:
        self.service.close()
        self.store.close()

    def restart(self) -> None:
        """What a new process would see."""
        self.close()
        self.open()

    @property
    def ranker(self) -> CircleRanker:
        ranker = self.deployment.live.pipeline
        assert isinstance(ranker, CircleRanker)
        return ranker


def make_world(
    folder: Path,
    bundle: LiveBundle | None = None,
    *,
    slate: SlatePreferences = PLAIN,
    exploration: ExplorationPreferences = NO_EXPLORATION,
    limits: Limits = LIMITS,
    plan: Plan | None = None,
    campaigns: CampaignPreferences = NO_CAMPAIGNS,
    sources: SourceQuotas = NO_SOURCES,
    **settings: int,
) -> World:
    numbers = {"page_size": 10, "candidates": 50, "max_batch": 16, "max_queue": 256} | settings
    feed = FeedSettings(slate=slate, exploration=exploration, campaigns=campaigns, sources=sources, **numbers)
    plans = None if plan is None else FixedPlan(Rollout(plan, feed))
    return World(folder, FakeDeployment(bundle or fake_bundle()), feed, limits, plans=plans)
