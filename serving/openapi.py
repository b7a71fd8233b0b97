"""The OpenAPI document, from the very types that decode requests."""

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from serving.campaign_report import CampaignsResponse
from serving.schema import (
    ErrorResponse,
    EventsRequest,
    EventsResponse,
    ExplainRequest,
    ExplainResponse,
    FeedRequest,
    FeedResponse,
    ScoreRequest,
    ScoreResponse,
)

_ROUTES: dict[str, tuple[str, type, type, list[int]]] = {
    "/v1/feed": ("The next page of a user's feed", FeedRequest, FeedResponse, [410]),
    "/v1/score": ("The value of given videos for a user", ScoreRequest, ScoreResponse, []),
    "/v1/events": ("Take in impressions and actions, durably and once", EventsRequest, EventsResponse, []),
    "/v1/explain": ("A page with its reasons", ExplainRequest, ExplainResponse, [404, 410]),
}
_ERRORS = {
    400: "Not JSON, or not a cursor of this server",
    401: "An API key is needed",
    404: "No such page is remembered",
    408: "The body did not arrive in time",
    410: "The feed's session expired: begin a new feed",
    413: "The body is too large",
    422: "A field is missing, of the wrong type or out of range",
    429: "Too many requests from this caller; see Retry-After",
    503: "Not able to answer now; see Retry-After",
}
_ALWAYS = [400, 401, 408, 413, 422, 429, 503]
_PLAIN = {
    "/healthz": ("The process lives", "application/json"),
    "/readyz": ("A bundle is loaded and warm, and the store answers", "application/json"),
    "/metrics": ("Prometheus metrics", "text/plain"),
}


def openapi(version: str) -> dict[str, Any]:
    """The document, as plain JSON values."""
    kinds = [kind for _, asked, answered, _ in _ROUTES.values() for kind in (asked, answered)]
    references, components = msgspec.json.schema_components(
        [*kinds, CampaignsResponse, ErrorResponse], ref_template="#/components/schemas/{name}"
    )
    refused = references[-1]
    paths: dict[str, Any] = {}
    for place, (path, (summary, _, _, more)) in enumerate(_ROUTES.items()):
        errors = _errors([*_ALWAYS, *more], refused)
        paths[path] = {
            "post": {
                "operationId": path.rsplit("/", 1)[-1],
                "summary": summary,
                "requestBody": {"required": True, "content": _json(references[2 * place])},
                "responses": {
                    "200": {"description": "Done", "content": _json(references[2 * place + 1])},
                    **errors,
                },
            }
        }
    paths["/v1/campaigns"] = {
        "get": {
            "operationId": "campaigns",
            "summary": "How far every campaign has got, and what its slots cost the feed",
            "responses": {
                "200": {"description": "Done", "content": _json(references[-2])},
                **_errors([401, 429, 503], refused),
            },
        }
    }
    for path, (summary, media) in _PLAIN.items():
        responses: dict[str, Any] = {"200": {"description": summary, "content": {media: {}}}}
        if path == "/readyz":
            responses["503"] = {"description": "Not yet, or not any more", "content": _json(refused)}
        paths[path] = {"get": {"operationId": path[1:], "summary": summary, "responses": responses}}
    for schema in components.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    api_key = {"type": "http", "scheme": "bearer", "description": "Where the server has API keys"}
    about = "Ranks endless feeds of shopping videos."
    return {
        "openapi": "3.1.0",
        "info": {"title": "shopreel", "version": version, "description": about},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"apiKey": api_key}},
        "security": [{}, {"apiKey": []}],
    }


def _errors(statuses: Sequence[int], refused: dict[str, Any]) -> dict[str, Any]:
    """What else may be answered; 429 and 503 say when to come back."""
    errors: dict[str, Any] = {
        str(status): {"description": _ERRORS[status], "content": _json(refused)}
        for status in sorted(statuses)
    }
    for status in ("429", "503"):
        retry = {"schema": {"type": "integer"}, "description": "Seconds to wait"}
        errors[status]["headers"] = {"Retry-After": retry}
    return errors


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
