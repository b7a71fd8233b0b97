"""The served OpenAPI is what the server does, and nothing that is sent brings it down."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from benchmarks.serving_mutations import complaint, mutated
from serving.app import create_app
from tests.serving.fake_world import HTTP, World, make_world


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        yield world
        world.close()


@pytest.mark.parametrize("path", ["/v1/feed", "/v1/score", "/v1/events", "/v1/explain"])
@pytest.mark.parametrize("mode", GenerationMode)
def test_the_server_keeps_its_openapi(world: World, path: str, mode: GenerationMode) -> None:
    """Status, headers and bodies of all answers are documented ones; what the schema forbids is refused.

    The converse does not hold: a schema cannot say that a cursor is signed, that only ``hide`` has a scope,
    or that 5.0 is no id.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(world.service, HTTP))
    seen: Counter[int] = Counter()

    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    def check(case: Case) -> None:
        seen[case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code] += 1

    check()
    if mode is GenerationMode.NEGATIVE:
        assert 200 not in seen
    else:
        assert seen[200] > 0


def test_mutated_requests_get_answers_of_the_contract(world: World) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    with TestClient(create_app(world.service, HTTP), raise_server_exceptions=False) as client:
        for sent in mutated(500, seed=1):
            headers = {name: value.encode("latin-1") for name, value in sent.headers.items()}
            try:
                request = client.build_request(sent.method, sent.path, content=sent.body, headers=headers)
            except ValueError:  # a path or header that this client cannot send
                continue
            answer = client.send(request)
            wrong = complaint(sent, answer.status_code, dict(answer.headers), answer.content)
            assert wrong is None, (wrong, sent)
            seen[sent.what, answer.status_code] += 1
    assert {status for _, status in seen} >= {200, 400, 404, 405, 422}
    assert seen["json", 200] > 5, "too few survive to reach the service"
    assert seen["json", 422] > 30
