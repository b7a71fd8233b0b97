"""Events: taken in once, durably, and known to the very next request."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from data.history import history_from_records
from data.schema import LABEL_BIT, LABELS
from serving.app import create_app
from tests.serving.fake_world import HTTP, NOW, World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    yield world
    world.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(world.service, HTTP)) as client:
        yield client


def send(client: TestClient, *events: dict[str, Any]) -> Any:
    return client.post("/v1/events", json={"events": list(events)})


def impression(event_id: str, video: Any = 6, **more: Any) -> dict[str, Any]:
    return {"type": "impression", "event_id": event_id, "user_id": 5, "video_id": video, **more}


def action(event_id: str, video: Any = 6, label: str = "like", **more: Any) -> dict[str, Any]:
    return {"type": "action", "event_id": event_id, "user_id": 5, "video_id": video, "action": label, **more}


def test_events_count_once_and_are_known_to_the_next_request(world: World, client: TestClient) -> None:
    events = [impression("a", watch_ms=1200, surface="feed"), action("b", 7)]
    assert send(client, *events).json() == {"accepted": 2, "duplicates": 0}
    assert send(client, *events, impression("c", 8)).json() == {"accepted": 1, "duplicates": 2}
    page = client.post("/v1/feed", json={"user_id": 5}).json()
    assert world.ranker.histories[-1] == [6, 8, 7]  # one moment: impressions before actions
    assert not {6, 7, 8} & {video["video_id"] for video in page["videos"]}
    text = world.metrics.text().decode()
    assert 'shopreel_events_total{kind="impression"} 2.0' in text
    assert "shopreel_duplicate_events_total 2.0" in text


def test_events_outlive_the_process(world: World) -> None:
    with TestClient(create_app(world.service, HTTP)) as client:
        send(client, impression("a"))
    world.restart()
    with TestClient(create_app(world.service, HTTP)) as client:
        assert send(client, impression("a")).json() == {"accepted": 0, "duplicates": 1}
        client.post("/v1/feed", json={"user_id": 5})
    assert world.ranker.histories[-1] == [6]


def test_the_history_is_the_one_that_training_would_build(world: World, client: TestClient) -> None:
    times = ["2023-11-14T10:00:00Z", "2023-11-14T12:30:00.25+02:00", NOW - 5]
    events = [
        impression(
            "a", 6, event_time=times[0], watch_ms=10, surface="feed", click=True, like=False, hide=None
        ),
        impression("b", 999, event_time=times[1], long_view=True, surface="elsewhere"),
        action("c", 6, "purchase", action_time=times[2], order_value_minor=500, currency="USD"),
    ]
    assert send(client, *events).status_code == 200
    client.post("/v1/feed", json={"user_id": 5})
    live = world.deployment.live
    state = world.store.user(5, NOW)
    served = live.user_request(5, state.steps, None, NOW).history
    morning = datetime(2023, 11, 14, 10, tzinfo=UTC)
    later = morning + timedelta(minutes=30, milliseconds=250)
    a = {
        "video_id": 6,
        "event_time": morning,
        "watch_ms": 10,
        "surface": "feed",
        "click": True,
        "like": False,
    }
    b = {"video_id": 999, "event_time": later, "long_view": True, "surface": "elsewhere"}
    records = [a, b, {"video_id": 6, "action": "purchase", "time_ms": NOW - 5}]
    trained = history_from_records(records, live.catalogue, live.surfaces)
    for name in ("video_row", "time_ms", "actions", "known", "watch_ms", "surface_row"):
        assert getattr(served, name).tolist() == getattr(trained, name).tolist(), name


def test_labels_tell_true_from_false_from_unknown(world: World, client: TestClient) -> None:
    labels = {label: value for label, value in zip(LABELS, [True, False, None] * 4, strict=True)}
    send(client, impression("a", **labels))
    (step,) = world.store.user(5, NOW).steps
    assert step.actions == sum(LABEL_BIT[label] for label, value in labels.items() if value)
    assert step.known == sum(LABEL_BIT[label] for label, value in labels.items() if value is not None)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({}, "events[0].type"),
        ({"type": "view"}, "events[0].type"),
        (impression("a") | {"event_id": ""}, "events[0].event_id"),
        (impression("a", watch_ms=-1), "events[0].watch_ms"),
        (impression("a", click=1), "events[0].click"),
        (impression("a", event_time="2024-01-01T00:00:00"), "events[0].event_time"),
        (impression("a", event_time=5), "events[0].event_time"),
        (impression("a", event_time="0001-01-01T00:00:00Z"), "events[0].event_time"),
        (impression("a", extra=1), "events[0].extra"),
        (action("a", label="likes"), "events[0].action"),
        (action("a", scope="creator"), "events[0].scope"),
        (action("a", currency="dollars"), "events[0].currency"),
        (action("a", order_value_minor=-5), "events[0].order_value_minor"),
    ],
)
def test_a_wrong_event_is_refused_with_all_its_batch(
    world: World, client: TestClient, event: dict[str, Any], field: str
) -> None:
    answer = send(client, event, impression("good"))
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"].replace("[...]", "[0]") == field
    assert world.store.user(5, NOW).steps == []


@pytest.mark.parametrize("body", [{}, {"events": []}, {"events": {}}, {"events": [impression("a")] * 1001}])
def test_a_wrong_batch_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/events", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "events")
