"""One number everywhere: served = replayed = exact and offline, whichever way the history got in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data.dataset import Dataset, read_info
from data.history import UserRequest
from data.schema import LABELS
from models.bundle import Bundle
from serving.held_out import user_requests
from serving.live import LiveBundle, load_bundle
from serving.metrics import Metrics
from serving.paging import FeedSettings
from serving.pipeline import Pipeline, RankedList, RankRequest
from serving.schema import EventsRequest, FeedRequest, FeedResponse, ScoreRequest, ScoreResponse
from serving.service import FeedService
from serving.state import Store, open_store
from serving.warm import rules_of_bundle, warm_store
from tests.serving.conftest import Published
from tests.serving.fake_world import LIMITS, FakeDeployment

TOLERANCE = 1e-5


@dataclass
class HeldOut:
    """The held-out requests of the test day, and what replay answers to them without rules."""

    bundle: Bundle
    live: LiveBundle
    dataset: Dataset
    user_ids: list[int]
    requests: list[RankRequest]
    replayed: list[RankedList]


@pytest.fixture(scope="module")
def held_out(published: Published) -> HeldOut:
    bundle = Bundle.open(published.bundles)
    dataset = Dataset(published.market, read_info(published.market))
    batches = list(user_requests(bundle, dataset, "test", gain=None, k=50, rules=False, memory_limit_gb=1.0))
    requests = [request for batch in batches for request in batch.requests]
    names = [name for batch in batches for name in batch.request_ids.to_pylist()]
    user_ids = [int(name.removeprefix("test:")) for name in names]
    assert len(requests) > 20
    replayed = Pipeline(bundle).rank(requests)
    return HeldOut(bundle, load_bundle(published.bundles), dataset, user_ids, requests, replayed)


class Server:
    """The service on a store of its own, with a clock that is told the time."""

    def __init__(self, live: LiveBundle, store: Store) -> None:
        self.now_ms = 0
        self.store = store
        settings = FeedSettings(page_size=20, candidates=100, max_batch=8, max_queue=64)
        deployment: Any = FakeDeployment(live)
        self.service = FeedService(deployment, store, settings, Metrics(), clock_ms=lambda: self.now_ms)

    def score(self, user_id: int, videos: list[Any], surface: str | None) -> list[float]:
        request = ScoreRequest(user_id=user_id, video_ids=videos, surface=surface)
        answer = msgspec.json.decode(self.service.score(request), type=ScoreResponse)
        return [video.value for video in answer.videos]


@pytest.fixture
def server(held_out: HeldOut, tmp_path: Path) -> Iterator[Server]:
    limits = replace(LIMITS, seen_ttl_ms=LIMITS.seen_ttl_ms * 10)
    server = Server(held_out.live, open_store(f"sqlite:///{tmp_path}/state.db", limits))
    yield server
    server.service.close()
    server.store.close()


def offline_scores(bundle: Bundle, user: UserRequest, rows: Any) -> Any:
    """By hand: the user's vector against the stored vectors of the videos."""
    (vector,) = bundle.encoder.encode([user]).astype(np.float64)
    return bundle.video_vectors[rows].astype(np.float64) @ vector


def test_replayed_is_exact_and_offline(held_out: HeldOut) -> None:
    for request, answer in zip(held_out.requests, held_out.replayed, strict=True):
        everything = offline_scores(held_out.bundle, request.user, np.arange(len(held_out.bundle.catalogue)))
        everything[[0, *request.exclude_rows]] = -np.inf
        best = np.argsort(-everything, kind="stable")[: len(answer.video_row)]
        np.testing.assert_allclose(answer.score, everything[best], atol=TOLERANCE)
        np.testing.assert_allclose(answer.score, everything[answer.video_row], atol=TOLERANCE)


def test_served_is_replayed_when_the_store_was_warmed_from_the_log(
    held_out: HeldOut, server: Server, published: Published
) -> None:
    rules = rules_of_bundle(published.bundles)
    begin_ms = rules.split.test_ms
    assert begin_ms is not None
    warm_store(
        server.store, held_out.dataset, rules,
        until_ms=begin_ms, now_ms=begin_ms, history_steps=512, memory_limit_gb=1.0,
    )  # fmt: skip
    check(held_out, server, range(len(held_out.requests)))


def test_served_is_replayed_when_the_log_came_in_as_events(held_out: HeldOut, server: Server) -> None:
    begin_ms = rules_of_bundle(held_out.bundle.path).split.test_ms
    assert begin_ms is not None
    busiest = sorted(range(len(held_out.requests)), key=lambda n: -len(held_out.requests[n].user.history))[:6]
    for number in busiest:
        for event in logged_events(held_out.dataset, held_out.user_ids[number], begin_ms):
            server.now_ms = int(event.pop("at"))
            body = msgspec.json.encode({"events": [event]})
            server.service.events(msgspec.json.decode(body, type=EventsRequest))
    check(held_out, server, busiest)


def check(held_out: HeldOut, server: Server, numbers: Any) -> None:
    """Scores of everything replay ranked, and the first page by score, as the server gives them."""
    live, bundle = held_out.live, held_out.bundle
    for number in numbers:
        request, replayed = held_out.requests[number], held_out.replayed[number]
        user_id, user = held_out.user_ids[number], request.user
        server.now_ms = user.time_ms
        surface = live.surfaces.ids([user.surface_row])[0].as_py()
        state = server.store.user(user_id, user.time_ms)
        served = live.user_request(user_id, state.steps, surface, user.time_ms)
        last = bundle.encoder.model.shape.max_steps
        for name in ("video_row", "time_ms", "actions", "known", "watch_ms", "surface_row"):
            expected = getattr(user.history.last(last), name)
            np.testing.assert_array_equal(getattr(served.history.last(last), name), expected, err_msg=name)
        assert set(live.rows_of(state.seen)) == set(request.exclude_rows)

        ids = bundle.catalogue.ids(replayed.video_row).to_pylist()
        scores = server.score(user_id, ids, surface)
        np.testing.assert_allclose(scores, replayed.score, atol=TOLERANCE)
        np.testing.assert_allclose(scores, offline_scores(bundle, user, replayed.video_row), atol=TOLERANCE)
        (with_rules,) = Pipeline(bundle).rank([replace(request, k=20, rules=True)])
        feed = FeedRequest(user_id=user_id, market=request.market, surface=surface)
        page = msgspec.json.decode(server.service.feed(feed), type=FeedResponse)
        assert [video.video_id for video in page.videos] == bundle.catalogue.ids(
            with_rules.video_row
        ).to_pylist()
        np.testing.assert_allclose([video.score for video in page.videos], with_rules.score, atol=TOLERANCE)
        assert page.degraded == []


def logged_events(dataset: Dataset, user_id: int, before_ms: int) -> list[dict[str, Any]]:
    """A user's log as the events that a client would have sent, in the order of their times."""
    events: list[dict[str, Any]] = []
    for number, row in enumerate(rows_of(dataset, "events", user_id)):
        labels = {label: row[label] for label in LABELS if row.get(label) is not None}
        event = {
            "type": "impression",
            "event_id": f"i{user_id}-{number}",
            "event_time": row["event_time"],
            **labels,
        }
        for name in ("user_id", "video_id", "watch_ms", "surface", "request_id", "position", "market"):
            event[name] = row.get(name)
        events.append(event | {"at": unix_ms(row["event_time"])})
    for number, row in enumerate(rows_of(dataset, "actions", user_id)):
        event = {"type": "action", "event_id": f"a{user_id}-{number}", "action_time": row["action_time"]}
        for name in ("user_id", "video_id", "action", "product_id", "order_value_minor", "currency"):
            event[name] = row.get(name)
        events.append(event | {"at": unix_ms(row["action_time"])})
    return sorted((event for event in events if event["at"] < before_ms), key=lambda event: event["at"])


def rows_of(dataset: Dataset, table: str, user_id: int) -> list[dict[str, Any]]:
    rows: pa.Table = dataset.read(table)
    found: list[dict[str, Any]] = rows.filter(pc.equal(rows["user_id"], user_id)).to_pylist()
    return found


def unix_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
