"""A trace tells where a request spent its time; without OpenTelemetry nothing is told and nothing breaks."""

import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.testclient import TestClient

from data.errors import ConfigError
from serving.app import create_app
from serving.tracing import NoTracing, OpenTelemetry, otlp_tracing
from tests.serving.fake_world import HTTP, World, make_world

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(tmp_path: Path, exporter: InMemorySpanExporter) -> TestClient:
    world: World = make_world(tmp_path)
    world.metrics.tracing = OpenTelemetry(SimpleSpanProcessor(exporter))
    return TestClient(create_app(world.service, HTTP), raise_server_exceptions=False)


def test_a_request_is_one_trace_with_a_span_per_stage(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    assert client.post("/v1/feed", json={"user_id": 5}, headers=headers).status_code == 200
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans.pop("POST /v1/feed")
    assert set(spans) == {"session", "state", "sources", "rank", "page", "commit"}
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert dict(request.attributes) == {
        "http.request.method": "POST", "http.route": "/v1/feed", "shopreel.request_id": "mine",
        "http.response.status_code": 200,
    }  # fmt: skip
    for span in spans.values():  # the stages ran on other threads
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time


def test_traces_of_two_requests_stay_apart(client: TestClient, exporter: InMemorySpanExporter) -> None:
    for user in (1, 2):
        client.post("/v1/feed", json={"user_id": user})
    roots = {span.context.trace_id for span in exporter.get_finished_spans() if span.parent is None}
    assert len(roots) == 2
    assert {span.context.trace_id for span in exporter.get_finished_spans()} == roots


def test_only_faults_of_ours_are_errors(client: TestClient, exporter: InMemorySpanExporter) -> None:
    client.post("/v1/feed", json={"user_id": None})
    client.get("/nowhere/secret-token")
    refused, unknown = exporter.get_finished_spans()
    assert (refused.attributes or {})["http.response.status_code"] == 422
    assert refused.status.status_code is unknown.status.status_code is StatusCode.UNSET
    assert unknown.name == "GET other"  # no path that a caller made up becomes a name


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements/traces\.txt"):
        otlp_tracing()


def test_nothing_is_told_by_default(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    assert isinstance(world.metrics.tracing, NoTracing)
    with TestClient(create_app(world.service, HTTP)) as client:
        assert client.post("/v1/feed", json={"user_id": 5}).status_code == 200
    world.metrics.tracing.close()
