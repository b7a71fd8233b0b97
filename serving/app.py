"""The HTTP application: routes to service methods, on threads, within bounds.

The event loop only reads, decodes and writes; whatever may block runs on one of two pools, so that a
flood of feed requests cannot hold up events and health checks.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Protocol, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import Edge, error_response, read_body
from serving.guards import ApiKeys, RateLimit, Workers
from serving.metrics import Metrics
from serving.openapi import openapi
from serving.schema import (
    MAX_PAGE_SIZE,
    ApiError,
    EventsRequest,
    ExplainRequest,
    FeedRequest,
    ScoreRequest,
    decode,
)

Q = TypeVar("Q")
Handler = Callable[[Request], Awaitable[Response]]
#: Files of ``serving/web``.
_MEDIA = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_DOCS = ("docs.html", "docs.js", "docs.css", "icon.svg")
_PAGE = ("index.html", "feed.js", "feed.css", "api.js", "art.js", "card.js", "panels.js")
_ROOTS = {"index.html": "/", "docs.html": "/docs"}


class RankingService(Protocol):
    """What the application asks of :class:`serving.service.FeedService`; answers are JSON."""

    metrics: Metrics

    def feed(self, request: FeedRequest, deadline: float) -> bytes:
        """The next page."""
        ...

    def score(self, request: ScoreRequest, deadline: float) -> bytes:
        """Values of given videos."""
        ...

    def events(self, request: EventsRequest, deadline: float) -> bytes:
        """Take events in."""
        ...

    def explain(self, request: ExplainRequest, deadline: float) -> bytes:
        """A page with its reasons."""
        ...

    def ready(self) -> None:
        """Return, or raise what stands in the way."""
        ...

    def campaigns(self) -> bytes:
        """How far every campaign has got."""
        ...

    def showcase_users(self) -> bytes:
        """Users to choose from on the feed page."""
        ...

    def showcase_videos(self, video_ids: Sequence[str]) -> bytes:
        """What the feed page draws of videos: titles, creators, products."""
        ...


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Bounds of the HTTP side. ``budget_ms`` is the time a request may take before its answer degrades.

    ``page`` serves the feed page and what it needs at ``/``.
    """

    max_body_bytes: int
    threads: int
    max_in_flight: int
    budget_ms: int
    page: bool
    api_keys: tuple[str, ...]
    requests_per_second: float
    burst: int


def create_app(service: RankingService, settings: HttpSettings) -> FastAPI:
    """The application. It owns its threads, and closes them when the server shuts down."""
    metrics = service.metrics
    ranking = Workers("ranking", settings.threads, settings.max_in_flight, metrics)
    intake = Workers("intake", max(2, settings.threads // 2), settings.max_in_flight, metrics)
    keys, rate = ApiKeys(settings.api_keys), RateLimit(settings.requests_per_second, settings.burst)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.draining = True
        ranking.close()
        intake.close()

    # a redirect would go to whatever host the request names
    app = FastAPI(
        openapi_url="/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.state.draining = False
    document = openapi(_version())
    app.openapi = lambda: document  # type: ignore[method-assign]

    def admit(request: Request) -> None:
        caller = keys.check(request.headers.get("authorization"))
        try:
            rate.check(caller or (request.client.host if request.client else "unknown"))
        except ApiError:
            metrics.shed.labels("rate_limit").inc()
            raise

    def post(path: str, kind: type[Q], answer: Callable[[Q, float], bytes], workers: Workers) -> None:
        async def handle(request: Request) -> Response:
            deadline = time.monotonic() + settings.budget_ms / 1000
            admit(request)
            question = decode(await read_body(request, settings.max_body_bytes), kind)
            return _json(await workers.run(lambda: answer(question, deadline)))

        app.add_route(path, handle, methods=["POST"])

    # plain routes: msgspec decodes and encodes several times faster than FastAPI's own body handling
    post("/v1/feed", FeedRequest, service.feed, ranking)
    post("/v1/score", ScoreRequest, service.score, ranking)
    post("/v1/explain", ExplainRequest, service.explain, ranking)
    post("/v1/events", EventsRequest, service.events, intake)

    async def healthz(request: Request) -> Response:
        return _json(b'{"status":"alive"}')

    async def readyz(request: Request) -> Response:
        if app.state.draining:
            raise ApiError(503, "draining", "the server is shutting down", retry_after_s=5)
        await intake.run(service.ready)
        return _json(b'{"status":"ready"}')

    async def exposition(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def campaigns(request: Request) -> Response:
        admit(request)
        return _json(await intake.run(service.campaigns))

    async def showcase_users(request: Request) -> Response:
        admit(request)
        return _json(await intake.run(service.showcase_users))

    async def showcase_videos(request: Request) -> Response:
        admit(request)
        video_ids = request.query_params.getlist("id")[:MAX_PAGE_SIZE]
        return _json(await intake.run(lambda: service.showcase_videos(video_ids)))

    routes: dict[str, Handler] = {
        "/v1/campaigns": campaigns, "/healthz": healthz, "/readyz": readyz, "/metrics": exposition,
    }  # fmt: skip
    for name in (*_DOCS, *(_PAGE if settings.page else ())):
        routes[_ROOTS.get(name, f"/static/{name}")] = _file(name)
    if settings.page:
        routes |= {"/demo/users": showcase_users, "/demo/videos": showcase_videos}
    for path, handler in routes.items():
        app.add_route(path, handler, methods=["GET"])
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(Edge, metrics=metrics, routes=[*document["paths"], *routes])
    return app


def _version() -> str:
    try:
        return metadata.version("shopreel")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "0"


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _file(name: str) -> Handler:
    media_type = _MEDIA[name.rpartition(".")[2]]
    content = resources.files("serving").joinpath("web", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    async def handle(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return handle


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = error_response(ApiError(405, "method_not_allowed", "not with this method; see /docs"))
        response.headers.update(error.headers or {})
        return response
    return error_response(ApiError(error.status_code, "not_found", "no such path; see /docs"))
