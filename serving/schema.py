"""What goes over the wire: requests, responses, and the tree of errors.

Bodies are decoded straight into these types: a wrong type, a value out of range or an unknown key is
refused with the path of the field, before any of it is used. Ids are int64 or strings; a client whose
numbers end at 2^53 may send an int64 id as a string of digits.
"""

import re
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from data.schema import LABELS

MAX_PAGE_SIZE = 100
MAX_SCORED = 1_000
MAX_EVENTS = 1_000

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Int64 | Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
Key = Annotated[str, Meta(min_length=1, max_length=128)]
Context = Annotated[
    dict[Name, Annotated[str, Meta(max_length=256)] | Int64 | float | bool | None],
    Meta(max_length=32, description="What is known of this request alone; `language` limits the languages"),
]
Time = Annotated[
    Annotated[datetime, Meta(tz=True)] | Annotated[int, Meta(ge=0, le=2**53)],
    Meta(description="RFC 3339 with a time zone, or Unix milliseconds"),
]
#: An outcome of an impression, by its name in the dataset contract.
Action = Enum("Action", {label: label for label in LABELS})  # type: ignore[misc]


class HideScope(Enum):
    """What a ``hide`` hides: this video, all videos of its creator, or of its merchants."""

    video = "video"
    creator = "creator"
    merchant = "merchant"


class FeedRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The next page of a user's feed; without ``cursor`` a new feed begins."""

    user_id: Id
    market: Name | None = None
    surface: Name | None = None
    page_size: Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE)] | None = None
    cursor: Annotated[str, Meta(max_length=256)] | None = None
    context: Context | None = None


class ScoreRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Videos to be scored for one user; the answer keeps their order."""

    user_id: Id
    video_ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_SCORED)]
    market: Name | None = None
    surface: Name | None = None
    context: Context | None = None


class ImpressionEvent(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="impression"):
    """A video was shown. A label that is absent or null is unknown; false was observed.

    ``event_time`` defaults to the moment of arrival, and is never later than it.
    """

    event_id: Key
    user_id: Id
    video_id: Id
    event_time: Time | None = None
    request_id: Key | None = None
    position: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    surface: Name | None = None
    market: Name | None = None
    watch_ms: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    click: bool | None = None
    long_view: bool | None = None
    like: bool | None = None
    comment: bool | None = None
    share: bool | None = None
    follow: bool | None = None
    save: bool | None = None
    profile_view: bool | None = None
    hide: bool | None = None
    product_click: bool | None = None
    add_to_cart: bool | None = None
    purchase: bool | None = None
    product_id: Id | None = None
    order_value_minor: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | None = None


class ActionEvent(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="action"):
    """One outcome, as it happens. ``scope`` belongs to ``hide`` alone and says how much it hides."""

    event_id: Key
    user_id: Id
    video_id: Id
    action: Action
    action_time: Time | None = None
    request_id: Key | None = None
    surface: Name | None = None
    market: Name | None = None
    scope: HideScope | None = None
    product_id: Id | None = None
    order_value_minor: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | None = None


class EventsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Events, taken in all or none. One that was taken in before, by ``event_id``, changes nothing."""

    events: Annotated[list[ImpressionEvent | ActionEvent], Meta(min_length=1, max_length=MAX_EVENTS)]


class ProductTag(Struct, frozen=True, kw_only=True):
    """A product that the video sells in this market; the price in minor units of its currency."""

    product_id: int | str
    price_minor: int | None
    currency: str | None


class FeedVideo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One slot of a page. ``propensity`` is the probability with which this video was put here.

    ``label`` is there on a campaign's slot, and is to be shown to the viewer.
    """

    video_id: int | str
    position: int
    score: float
    probabilities: dict[str, float]
    products: list[ProductTag]
    source: str
    propensity: float
    campaign_id: str | UnsetType = UNSET
    label: str | UnsetType = UNSET
    why: "Why | UnsetType" = UNSET


class Why(Struct, frozen=True, kw_only=True):
    """Why a video stands where it does (``/v1/explain``).

    ``rank`` is its place (from 0) by score among all that the hard rules admitted, ``moved`` by how many
    places slots and preferences moved it (positive: towards the top). ``rules`` names the preferences
    that gave way for it, and what put it there if not its score.
    """

    retrieval_score: float | None
    rank: int | None
    moved: int
    rules: list[str]
    heads: dict[str, float]


class FeedResponse(Struct, frozen=True, kw_only=True):
    """A page. It is empty when everything that this user may see was shown: the feed's only end.

    ``degraded`` names what could not be used; empty when all went well. ``experiments`` holds the user's
    arm by experiment; absent where there is none. The same cursor always brings the same page, byte for byte.
    """

    request_id: str
    bundle: str
    cursor: str
    degraded: list[str]
    videos: list[FeedVideo]
    experiments: dict[str, str] | UnsetType = UNSET


class ExplainRequest(FeedRequest, forbid_unknown_fields=True, kw_only=True):
    """As for the feed; or ``request_id``, to explain a page that this user was given before."""

    request_id: Key | None = None


class ExplainResponse(FeedResponse, frozen=True, kw_only=True):
    """A page with reasons. Of all candidates the hard rules admitted ``admitted`` and refused the others.

    ``refused`` counts these by rule, beyond the videos that were never looked up because they had been
    shown, or because they cannot be shown in this market.
    """

    admitted: int
    refused: dict[str, int]
    market: str | None
    policy: str
    history_steps: int


class ScoredVideo(Struct, frozen=True, kw_only=True):
    """``known`` tells whether the video is in the catalogue; an unknown one is scored by its prior."""

    video_id: int | str
    value: float
    probabilities: dict[str, float]
    known: bool


class ScoreResponse(Struct, frozen=True, kw_only=True):
    """Values in the order of the question."""

    bundle: str
    degraded: list[str]
    videos: list[ScoredVideo]


class EventsResponse(Struct, frozen=True, kw_only=True):
    """How many events were new, and how many had been taken in before."""

    accepted: int
    duplicates: int


class ErrorDetail(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``code`` is stable and for programs, ``message`` for people, ``field`` the path of what was wrong."""

    code: str
    message: str
    field: str | UnsetType = UNSET


class ErrorResponse(Struct, frozen=True, kw_only=True):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not 2xx: ``status``, stable ``code``, and a message that says how to mend it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """The JSON that goes out."""
        field = UNSET if self.field is None else self.field
        return encode(ErrorResponse(error=ErrorDetail(code=self.code, message=str(self), field=field)))


T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_NAMED = re.compile(r"(?:missing required|unknown) field `([^`]*)`")


def encode(value: Struct) -> bytes:
    """JSON of a response."""
    return _encoder.encode(value)


def decode(body: bytes, kind: type[T]) -> T:
    """Parse a request body. Raises :class:`ApiError` 400 ``invalid_json`` or 422 ``invalid_field``."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        where = _WHERE.search(message)
        named = _NAMED.search(message)
        path = [where[1] if where else "", named[1] if named else ""]
        field = ".".join(part for part in path if part)
        raise ApiError(422, "invalid_field", _WHERE.sub("", message), field=field or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None


def components(*kinds: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """JSON schemas of ``kinds``, and the named definitions that they refer to."""
    return msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")  # type: ignore[return-value]
