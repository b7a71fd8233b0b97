"""Requests that no client should send: valid ones, damaged as JSON, as bytes and as HTTP.

One seed gives the same requests everywhere. :func:`complaint` says what is wrong with an answer.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PATHS = ("/v1/feed", "/v1/score", "/v1/events", "/v1/explain")
#: Every status that a mutated request may get. 503 is for load alone and is judged by the caller.
EXPECTED = {200, 304, 400, 401, 404, 405, 410, 413, 422, 429, 503}

_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    10**40,
    1.5,
    -0.0,
    1e308,
)
_TEXTS = (
    "", " ", "0", "-0", "05", "1e3", "NaN", "null", "\x00", "\ud800", "é", "💥" * 64, "a" * 129, "x" * 5_000,
    "../../etc/passwd", "' OR 1=1 --", "{{7*7}}", "%00", "\r\nx-injected: 1", "2026-03-02T00:00:00Z",
    "2026-02-30T00:00:00Z", "9999-12-31T23:59:59.999999+14:00", "0001-01-01T00:00:00-14:00",
    "s:5", "shopreel:events", "٣", "１２３",
)  # fmt: skip
_METHODS = ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")
_HEADERS = (
    {"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-16"},
    {"content-encoding": "gzip"}, {"x-request-id": 'a"\\n{}'}, {"x-request-id": "y" * 300},
    {"authorization": "Bearer \u00e9"}, {"authorization": "Basic Og=="}, {"accept": "image/png"},
    {"traceparent": "00-0-0-zz"}, {"expect": "100-continue"}, {"content-length": "abc"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: ``what`` was done to it, for the report."""

    what: str
    path: str
    body: bytes
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def valid(path: str, number: int) -> dict[str, Any]:
    """A request that the server takes; ``number`` makes it one of its own."""
    user = number % 97
    match path:
        case "/v1/feed":
            return {
                "user_id": user,
                "page_size": 5,
                "market": "us",
                "surface": "feed",
                "context": {"language": "en"},
            }
        case "/v1/score":
            return {"user_id": user, "video_ids": [1, 2, number], "market": "us"}
        case "/v1/explain":
            return {"user_id": user, "page_size": 3}
        case _:
            common = {"user_id": user, "video_id": 1}
            seen = {"type": "impression", "event_id": f"seen-{number}", "watch_ms": 900, "like": True}
            done = {"type": "action", "event_id": f"done-{number}", "action": "like", "action_time": 10**12}
            return {"events": [seen | common, done | common]}


def mutated(count: int, seed: int) -> Iterator[Sent]:
    """``count`` damaged requests to all routes; about one in eight is still valid."""
    dice = random.Random(seed)
    for number in range(count):
        path = dice.choice(PATHS)
        body = valid(path, number)
        kind = dice.randrange(8)
        if kind < 4:  # as JSON, up to three times
            for _ in range(dice.randint(1, 3)):
                body = _mutate(body, dice)
            yield Sent("json", path, _encode(body))
        elif kind < 6:
            yield Sent("bytes", path, _damage(_encode(body), dice))
        elif kind == 6:
            yield Sent("headers", path, _encode(body), "POST", dict(dice.choice(_HEADERS)))
        else:
            yield _elsewhere(path, _encode(body), dice)


def complaint(sent: Sent, status: int, headers: dict[str, str], body: bytes) -> str | None:
    """What is wrong with an answer; None for nothing. Header names are lower case."""
    if status not in EXPECTED:
        return f"status {status}"
    if b"Traceback" in body or b'File "' in body:
        return "a traceback"
    if sent.method == "HEAD" or status in (200, 304):
        return None
    if status == 400 and b"Invalid HTTP request" in body:
        return None  # no request at all: the HTTP layer's own words
    if headers.get("content-type") != "application/json":
        return f"{status} as {headers.get('content-type')}"
    try:
        error = json.loads(body)["error"]
        if not (isinstance(error["code"], str) and error["message"]):
            return f"{status} without code or message"
    except (ValueError, KeyError, TypeError):
        return f"{status} that is not an error of the contract: {body[:80]!r}"
    if status in (429, 503) and not headers.get("retry-after", "").isdigit():
        return f"{status} without Retry-After"
    return None


def _mutate(value: Any, dice: random.Random) -> Any:
    """One change somewhere in a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.75:
        key = dice.choice(list(value))
        changed = dict(value)
        match dice.randrange(4):
            case 0:
                del changed[key]
            case 1:
                changed[dice.choice(_TEXTS)] = changed.pop(key)
            case _:
                changed[key] = _mutate(value[key], dice)
        return changed
    if isinstance(value, list) and value and dice.random() < 0.75:
        place = dice.randrange(len(value))
        changed_list = list(value)
        match dice.randrange(4):
            case 0:
                del changed_list[place]
            case 1:
                return value * dice.choice((2, 50, 600))
            case _:
                changed_list[place] = _mutate(value[place], dice)
        return changed_list
    match dice.randrange(6):
        case 0:
            return dice.choice(_NUMBERS)
        case 1 | 2:
            return dice.choice(_TEXTS)
        case 3:
            return dice.choice((None, True, False, float("nan"), float("inf"), float("-inf")))
        case 4:
            return _nested(value, dice.choice((1, 3, 200)))
        case _:
            return dice.choice(([], {}, [value], {"user_id": value}))


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _damage(body: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(body) + 1)
    match dice.randrange(7):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + dice.randbytes(dice.randint(1, 8)) + body[at:]
        case 2:
            return body[: max(0, at - 1)] + bytes([dice.randrange(256)]) + body[at:]
        case 3:
            return body + body[at:]
        case 4:
            return b"\xef\xbb\xbf" + body
        case 5:
            return b"[" * dice.choice((10, 10_000, 200_000))
        case _:
            return body.decode().encode(dice.choice(("utf-16", "utf-32")))


def _elsewhere(path: str, body: bytes, dice: random.Random) -> Sent:
    """Another method, or another path."""
    if dice.random() < 0.5:
        return Sent("method", path, body, dice.choice(_METHODS))
    paths = (
        path + "/", path + "?user_id=1", path.replace("v1", "v2"), path + "%00", path + "/../../metrics",
        "/static/../serving/app.py", "/%2e%2e/etc/passwd", "/" + "a" * 2_000, "/docs", "/openapi.json",
        "/metrics", "/demo/videos?id=" + "9" * 400, "/demo/videos?id=%ff%fe&id=1", "/demo/users",
    )  # fmt: skip
    return Sent("path", dice.choice(paths), body, dice.choice(("GET", "POST")))
