"""The outermost layer: request ids, the access log, metrics, safe headers, and no traceback, ever."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.batching import QueueFull
from serving.live import NotReady
from serving.metrics import Metrics
from serving.schema import ApiError
from serving.state.protocol import StoreUnavailable

access = logging.getLogger("shopreel.access")
logger = logging.getLogger("shopreel.http")
#: The id of the request that is being worked on, here and on the threads that work for it.
current_request: ContextVar[str | None] = ContextVar("request_id", default=None)
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Seconds that a body may take to arrive.
BODY_S = 20.0
_SAFE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        """``routes`` are the paths counted under their own name; all others count as one."""
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ACCEPTABLE_ID.fullmatch(given) else secrets.token_hex(8)
        current_request.set(request_id)
        start, status = time.perf_counter(), 0
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                head = MutableHeaders(scope=message)
                head["x-request-id"] = request_id
                for name, value in _SAFE.items():
                    head[name] = value
            await send(message)

        with self._metrics.tracing.request(scope["method"], route, headers, request_id) as told:
            try:
                await self._app(scope, receive, send_safely)
            except Exception as error:
                if status:  # the answer is on its way: all that is left is to break it off
                    raise
                refusal = as_api_error(error, self._metrics)
                if refusal is None:
                    logger.exception("request failed")
                    refusal = ApiError(500, "internal", f"our fault; it was logged as request {request_id}")
                await error_response(refusal)(scope, receive, send_safely)
            finally:
                told(status)
                self._record(scope["method"], route, request_id, status, time.perf_counter() - start)

    def _record(self, method: str, route: str, request_id: str, status: int, seconds: float) -> None:
        self._metrics.requests.labels(route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        extra = {"request_id": request_id, "route": route, "status": status, "ms": round(seconds * 1000, 2)}
        access.info("%s %s %d", method, route, status, extra=extra)


def error_response(error: ApiError) -> Response:
    """An error as the contract has it."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error.body, error.status, headers, media_type="application/json")


def as_api_error(error: Exception, metrics: Metrics) -> ApiError | None:
    """What the caller is told when work could not be done now; None for a fault of ours."""
    match error:
        case ApiError():
            return error
        case StoreUnavailable():
            logger.error("store unavailable: %s", error)
            metrics.shed.labels("store").inc()
            return ApiError(503, "store_unavailable", "the store does not answer; try again", retry_after_s=2)
        case QueueFull():
            metrics.shed.labels("queue").inc()
            return ApiError(503, "overloaded", "too many requests at once; try again", retry_after_s=1)
        case NotReady():
            return ApiError(503, "not_ready", "the server is starting; try again", retry_after_s=2)
    return None


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Refuses with 413 as soon as it is known to be too long, with 408 when too slow."""
    try:
        async with asyncio.timeout(BODY_S):
            return await _read(request, limit)
    except TimeoutError:
        message = f"the body did not arrive within {BODY_S:.0f} s; send it again"
        raise ApiError(408, "body_too_slow", message) from None


async def _read(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, "body_too_large", f"the body may have {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


class JsonLines(logging.Formatter):
    """One JSON object per log line; keys given as ``extra`` stand beside the message.

    A line that was written for a request bears its id.
    """

    _OWN = frozenset({*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "taskName"})

    def __init__(self, common: Mapping[str, object] | None = None) -> None:
        """``common`` stands on every line."""
        super().__init__()
        self._common = dict(common or {})

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._common,
        }
        if (request_id := current_request.get()) is not None:
            line["request_id"] = request_id
        line |= {key: value for key, value in record.__dict__.items() if key not in self._OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
