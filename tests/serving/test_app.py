"""The HTTP contract: every answer, good or bad, is what CONTRACTS says it is."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving.app import create_app
from serving.cursor import Cursor, CursorSigner
from serving.edge import JsonLines
from serving.live import NotReady
from tests.serving.fake_world import HTTP, NOW, FakeDeployment, World, fake_bundle, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    yield world
    world.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with serve(world) as client:
        yield client


def serve(world: World, **settings: Any) -> TestClient:
    return TestClient(create_app(world.service, replace(HTTP, **settings)), raise_server_exceptions=False)


def feed(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/feed", json=body)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def videos(page: dict[str, Any]) -> list[int]:
    return [video["video_id"] for video in page["videos"]]


def error(answer: Any, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert body["error"]["code"] == code
    assert body["error"].get("field") == field
    assert body["error"]["message"]
    assert "Traceback" not in answer.text
    detail: dict[str, Any] = body["error"]
    return detail


def test_a_page_is_what_the_contract_says(client: TestClient) -> None:
    page = feed(client, user_id=5)
    assert set(page) == {"request_id", "bundle", "cursor", "degraded", "videos"}
    assert (page["bundle"], page["degraded"]) == ("bundle-a", [])
    # the circle from 5 on, without 10, whose only product is out of stock
    assert videos(page) == [5, 6, 7, 8, 9, 11, 12, 13, 14, 15]
    assert [video["position"] for video in page["videos"]] == list(range(10))
    second = page["videos"][1]
    assert second == {
        "video_id": 6,
        "position": 1,
        "score": -1.0,
        "probabilities": {},
        "products": [{"product_id": 6, "price_minor": 6, "currency": "USD"}],
        "source": "two_tower",
        "propensity": 1.0,
    }
    assert page["videos"][0]["products"] == []


def test_the_cursor_continues_the_feed_and_repeats_exactly(client: TestClient) -> None:
    first = feed(client, user_id=5)
    again = [client.post("/v1/feed", json={"user_id": 5, "cursor": first["cursor"]}) for _ in range(3)]
    assert again[0].content == again[1].content == again[2].content
    assert videos(again[0].json()) == [16, 17, 18, 19, 21, 22, 23, 24, 25, 26]


def test_a_catalogue_that_was_shown_whole_gives_empty_pages(client: TestClient) -> None:
    shown: list[int] = []
    page = feed(client, user_id=5, page_size=40)
    while page["videos"]:
        shown += videos(page)
        page = feed(client, user_id=5, page_size=40, cursor=page["cursor"])
    assert sorted(shown) == [v for v in range(1, 101) if v % 10]
    assert feed(client, user_id=5, cursor=page["cursor"])["videos"] == []


def test_unknown_users_and_videos_are_no_error(client: TestClient) -> None:
    for user in (10**15, -3, "nobody", "x" * 128):
        assert len(feed(client, user_id=user)["videos"]) == 10
    answer = client.post("/v1/score", json={"user_id": 5, "video_ids": [6, 10**15, "no", 5]}).json()
    assert [(v["video_id"], v["known"]) for v in answer["videos"]] == [
        (6, True), (10**15, False), ("no", False), (5, True),
    ]  # fmt: skip
    assert [v["value"] for v in answer["videos"]][::3] == [-1.0, 0.0]
    event = {"type": "impression", "event_id": "e", "user_id": "nobody", "video_id": "nothing"}
    assert client.post("/v1/events", json={"events": [event]}).json() == {"accepted": 1, "duplicates": 0}


def test_an_int64_id_may_come_as_digits(client: TestClient) -> None:
    assert videos(feed(client, user_id="5"))[0] == 5
    assert videos(feed(client, user_id=5))[0] == 16  # one and the same user, whom ten were served already
    assert videos(feed(client, user_id="05"))[0] == 1  # no int64 is spelt like that: nobody we know


BAD_BODIES: list[tuple[Any, int, str, str | None]] = [
    (b"", 400, "invalid_json", None),
    (b"{", 400, "invalid_json", None),
    (b"\xff\xfe", 400, "invalid_json", None),
    (b'{"user_id": 5} more', 400, "invalid_json", None),
    (b"[" * 100_000, 422, "invalid_field", None),
    (b'{"user_id": NaN}', 400, "invalid_json", None),
    ([], 422, "invalid_field", None),
    ("feed", 422, "invalid_field", None),
    (None, 422, "invalid_field", None),
    ({}, 422, "invalid_field", "user_id"),
    ({"user_id": None}, 422, "invalid_field", "user_id"),
    ({"user_id": True}, 422, "invalid_field", "user_id"),
    ({"user_id": 1.5}, 422, "invalid_field", "user_id"),
    ({"user_id": ""}, 422, "invalid_field", "user_id"),
    ({"user_id": 2**63}, 422, "invalid_field", "user_id"),
    ({"user_id": "x" * 129}, 422, "invalid_field", "user_id"),
    ({"user_id": 5, "page_size": 101}, 422, "invalid_field", "page_size"),
    ({"user_id": 5, "page_size": 0}, 422, "invalid_field", "page_size"),
    ({"user_id": 5, "page_size": "10"}, 422, "invalid_field", "page_size"),
    ({"user_id": 5, "page_size": 10**30}, 422, "invalid_field", "page_size"),
    ({"user_id": 5, "pageSize": 10}, 422, "invalid_field", "pageSize"),
    ({"user_id": 5, "market": 1}, 422, "invalid_field", "market"),
    ({"user_id": 5, "context": {"a": [1]}}, 422, "invalid_field", "context[...]"),
    ({"user_id": 5, "cursor": 7}, 422, "invalid_field", "cursor"),
    ({"user_id": 5, "cursor": "forged"}, 400, "invalid_cursor", "cursor"),
    ({"user_id": 5, "cursor": ""}, 400, "invalid_cursor", "cursor"),
    ({"user_id": 5, "cursor": "é" * 20}, 400, "invalid_cursor", "cursor"),
]


@pytest.mark.parametrize(("body", "status", "code", "field"), BAD_BODIES)
@pytest.mark.parametrize("path", ["/v1/feed", "/v1/explain"])
def test_a_wrong_request_is_refused_by_name(
    client: TestClient, path: str, body: Any, status: int, code: str, field: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error(client.post(path, content=content), status, code, field)


def test_cursors_that_were_tampered_with_are_refused(client: TestClient) -> None:
    cursor = feed(client, user_id=5)["cursor"]
    for place in range(0, len(cursor), 3):
        letter = "A" if cursor[place] != "A" else "B"
        forged = cursor[:place] + letter + cursor[place + 1 :]
        error(client.post("/v1/feed", json={"user_id": 5, "cursor": forged}), 400, "invalid_cursor", "cursor")
    stolen = client.post("/v1/feed", json={"user_id": 6, "cursor": cursor})
    error(stolen, 400, "invalid_cursor", "cursor")
    foreign = CursorSigner(b"another server's secret").sign(Cursor(b"0" * 16, 1))
    error(client.post("/v1/feed", json={"user_id": 5, "cursor": foreign}), 400, "invalid_cursor", "cursor")


def test_a_cursor_whose_session_was_lost_is_gone(world: World, client: TestClient) -> None:
    lost = CursorSigner(world.store.secret()).sign(Cursor(b"0" * 16, 1))
    error(client.post("/v1/feed", json={"user_id": 5, "cursor": lost}), 410, "session_expired", "cursor")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": 5}, "video_ids"),
        ({"user_id": 5, "video_ids": []}, "video_ids"),
        ({"user_id": 5, "video_ids": [1] * 1001}, "video_ids"),
        ({"user_id": 5, "video_ids": [1, None]}, "video_ids[1]"),
    ],
)
def test_a_wrong_score_request_is_refused(client: TestClient, body: Any, field: str) -> None:
    found = client.post("/v1/score", json=body)
    detail = found.json()["error"]
    assert (found.status_code, detail["code"]) == (422, "invalid_field")
    assert detail["field"].replace("[...]", "[1]") == field


def test_paths_and_methods_that_do_not_exist(client: TestClient) -> None:
    error(client.get("/v2/feed"), 404, "not_found")
    error(client.post("/v1/feed/", json={"user_id": 5}, follow_redirects=False), 404, "not_found")
    refused = client.get("/v1/feed")
    error(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    error(client.post("/healthz"), 405, "method_not_allowed")


def test_a_body_may_not_be_too_long(world: World) -> None:
    with serve(world, max_body_bytes=1000) as client:
        error(client.post("/v1/feed", content=b" " * 1001), 413, "body_too_large")

        def chunks() -> Iterator[bytes]:
            for _ in range(11):
                yield b" " * 100

        error(client.post("/v1/feed", content=chunks()), 413, "body_too_large")
        assert client.post("/v1/feed", content=b'{"user_id": 5}' + b" " * 900).status_code == 200


def test_a_fault_of_ours_shows_no_traceback(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: object, deadline: float) -> bytes:
        raise RuntimeError("the model is broken")

    world.service.score = broken  # type: ignore[method-assign, assignment]
    with serve(world) as client, caplog.at_level(logging.ERROR):
        answer = client.post(
            "/v1/score", json={"user_id": 5, "video_ids": [1]}, headers={"x-request-id": "abc"}
        )
    detail = error(answer, 500, "internal")
    assert "abc" in detail["message"]
    assert "the model is broken" not in answer.text
    assert "the model is broken" in caplog.text


def test_scores_come_with_probabilities_where_there_is_a_ranker(tmp_path: Path) -> None:
    world = make_world(tmp_path, fake_bundle(ranker=True))
    question = {"user_id": 5, "video_ids": [6, 5]}
    with serve(world) as client:
        answer = client.post("/v1/score", json=question).json()["videos"]
        assert [video["value"] for video in answer] == [-1.0, 0.0]
        assert [video["probabilities"] for video in answer] == [{"click": 0.5}, {"click": 1.0}]
        world.ranker.fail = True
        refused = client.post("/v1/score", json=question)
        error(refused, 503, "scoring_failed")
        assert "retry-after" in refused.headers
    world.close()


def test_a_broken_model_degrades_the_feed_to_popularity(world: World, client: TestClient) -> None:
    world.ranker.fail = True
    page = feed(client, user_id=5)
    assert page["degraded"] == ["ranking_failed"]
    assert videos(page) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert {video["source"] for video in page["videos"]} == {"popularity"}


def test_a_slow_model_degrades_the_feed_within_its_budget(world: World) -> None:
    world.ranker.gate.clear()
    with serve(world, budget_ms=50) as client:
        page = feed(client, user_id=5)
    world.ranker.gate.set()
    assert page["degraded"] == ["time_budget"]
    assert 'shopreel_degraded_total{reason="time_budget"} 1.0' in world.metrics.text().decode()


def test_too_much_at_once_is_turned_away(world: World) -> None:
    world.ranker.gate.clear()
    with serve(world, max_in_flight=2, threads=2, budget_ms=60_000) as client:
        answers: list[Any] = []

        def ask() -> None:
            answers.append(client.post("/v1/feed", json={"user_id": 5}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        while "shopreel_in_flight 2.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        refused = client.post("/v1/feed", json={"user_id": 5})
        world.ranker.gate.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    error(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1


def test_callers_above_their_rate_are_told_when_to_come_back(world: World) -> None:
    with serve(world, requests_per_second=0.5, burst=2) as client:
        answers = [client.post("/v1/feed", json={"user_id": 5}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        error(answers[2], 429, "too_many_requests")
        assert int(answers[2].headers["retry-after"]) == 2
        assert client.get("/healthz").status_code == 200


def test_api_keys_are_asked_for_where_configured(world: World) -> None:
    with serve(world, api_keys=("secret-1", "secret-2")) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer é"}):
            raw = {name: value.encode() for name, value in headers.items()}
            error(client.post("/v1/feed", json={"user_id": 5}, headers=raw), 401, "unauthorized")
        good = client.post("/v1/feed", json={"user_id": 5}, headers={"authorization": "Bearer secret-2"})
        assert good.status_code == 200
        assert client.get("/readyz").status_code == 200


def test_health_readiness_and_metrics(world: World, client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    feed(client, user_id=5)
    text = client.get("/metrics").text
    assert 'shopreel_requests_total{route="/v1/feed",status="200"} 1.0' in text
    for stage in ("session", "state", "rank", "page", "commit"):
        assert f'shopreel_stage_seconds_count{{stage="{stage}"}}' in text
    world.store.close()
    unready = client.get("/readyz")
    error(unready, 503, "store_unavailable")
    assert client.get("/healthz").status_code == 200
    error(client.post("/v1/feed", json={"user_id": 5}), 503, "store_unavailable")


def test_nothing_is_ready_without_a_bundle(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(deployment: FakeDeployment) -> None:
        raise NotReady

    monkeypatch.setattr(FakeDeployment, "live", property(nothing), raising=False)
    for answer in (client.get("/readyz"), client.post("/v1/feed", json={"user_id": 5})):
        error(answer, 503, "not_ready")
        assert "retry-after" in answer.headers


def test_every_answer_is_safe_and_traceable(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/nowhere"), client.post("/v1/feed", json={"user_id": 1})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert len(answer.headers["x-request-id"]) == 16
    kept = client.get("/healthz", headers={"x-request-id": "trace-1"})
    assert kept.headers["x-request-id"] == "trace-1"
    forged = client.get("/healthz", headers={"x-request-id": 'a"\\nb'})
    assert forged.headers["x-request-id"] != 'a"\\nb'


def test_log_lines_are_json_with_the_request_id(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "shopreel.access"):
        client.post("/v1/feed", json={"user_id": 5}, headers={"x-request-id": "trace-2"})
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [(line["request_id"], line["route"], line["status"]) for line in lines] == [
        ("trace-2", "/v1/feed", 200)
    ]
    assert lines[0]["ms"] > 0


def test_what_goes_wrong_on_a_thread_is_logged_under_its_request(
    world: World, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    world.ranker.fail = True
    lines: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.setFormatter(JsonLines({"worker": 3}))
    handler.emit = lambda record: lines.append(json.loads(handler.format(record)))  # type: ignore[method-assign]
    logging.getLogger("shopreel.paging").addHandler(handler)
    client.post("/v1/feed", json={"user_id": 5}, headers={"x-request-id": "trace-3"})
    logging.getLogger("shopreel.paging").removeHandler(handler)
    assert [(line["request_id"], line["worker"]) for line in lines] == [("trace-3", 3)]
    assert "the model is broken" in lines[0]["exception"]


def test_a_body_that_trickles_in_is_given_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_more(request: object, limit: int) -> bytes:
        await asyncio.sleep(30)
        return b""

    monkeypatch.setattr("serving.edge.BODY_S", 0.05)
    monkeypatch.setattr("serving.edge._read", nothing_more)
    error(client.post("/v1/feed", json={"user_id": 5}), 408, "body_too_slow")


def test_the_openapi_document_describes_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/feed", "/v1/score", "/v1/events", "/v1/explain", "/v1/campaigns",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]
    assert document["components"]["schemas"]["FeedRequest"]["additionalProperties"] is False


def test_explain_gives_the_same_page_with_reasons(client: TestClient) -> None:
    first = feed(client, user_id=5)
    explained = client.post("/v1/explain", json={"user_id": 5, "request_id": first["request_id"]}).json()
    assert {key: explained[key] for key in ("request_id", "cursor", "bundle", "degraded")} == {
        key: first[key] for key in ("request_id", "cursor", "bundle", "degraded")
    }
    for video, plain in zip(explained["videos"], first["videos"], strict=True):
        why = video.pop("why")
        assert video == plain
        assert why["retrieval_score"] == plain["score"]
        assert (why["rank"], why["moved"], why["rules"]) == (plain["position"], 0, [])
    by_cursor = client.post("/v1/explain", json={"user_id": 5, "cursor": first["cursor"]}).json()
    assert videos(by_cursor) == videos(feed(client, user_id=5, cursor=first["cursor"]))
    for user, request_id in (
        (6, first["request_id"]),
        (5, "0" * 32 + "-0"),
        (5, "junk"),
        (5, first["request_id"] + "9"),
    ):
        answer = client.post("/v1/explain", json={"user_id": user, "request_id": request_id})
        error(answer, 404, "unknown_request", "request_id")


def test_the_page_may_be_switched_off(world: World) -> None:
    with serve(world, page=False) as client:
        for path in ("/", "/demo/users", "/demo/videos?id=1", "/static/feed.js"):
            error(client.get(path), 404, "not_found")
        assert client.get("/docs").status_code == 200


def test_the_feed_page_gets_users_and_titles(world: World, client: TestClient) -> None:
    found = client.get("/demo/users").json()
    assert len(found["users"]) == 24
    assert found["videos"] == 100
    answer = client.get("/demo/videos", params={"id": ["6", "junk", "7"]}).json()["videos"]
    assert [video.get("title") for video in answer] == ["video 6", None, "video 7"]
    assert answer[0]["products"] == [{"product_id": 6, "brand": "brand 6", "merchant_id": 0}]


def test_text_ids_work_the_same(tmp_path: Path) -> None:
    world = make_world(tmp_path, fake_bundle(20, text_ids=True), page_size=3)
    with serve(world) as client:
        assert videos(feed(client, user_id=5)) == ["v005", "v006", "v007"]
        scored = client.post("/v1/score", json={"user_id": 5, "video_ids": ["v006", 6]}).json()["videos"]
        assert [video["known"] for video in scored] == [True, False]
    world.close()


KEYS = ["user_id", "page_size", "cursor", "events", "video_ids", "context", "type", "x"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@given(st.binary(max_size=200) | JSON)
def test_no_body_whatever_brings_down_a_route(body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    for path in ("/v1/feed", "/v1/score", "/v1/events", "/v1/explain"):
        answer = _SHARED.client().post(path, content=content)
        assert answer.status_code in (200, 400, 422), (path, content, answer.text)
        if answer.status_code != 200:
            assert set(answer.json()) == {"error"}


class _Shared:
    """One server for all examples of the property test."""

    _client: TestClient | None = None

    def client(self) -> TestClient:
        if self._client is None:
            import tempfile

            self._client = serve(make_world(Path(tempfile.mkdtemp())))
            self._client.__enter__()
        return self._client


_SHARED = _Shared()


def test_time_is_taken_from_the_servers_clock(world: World, client: TestClient) -> None:
    future = {"type": "impression", "event_id": "f", "user_id": 5, "video_id": 6, "event_time": NOW + 10**9}
    assert client.post("/v1/events", json={"events": [future]}).status_code == 200
    assert world.store.user(5, NOW).steps[0].time_ms == NOW
