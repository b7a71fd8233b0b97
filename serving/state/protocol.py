"""What the server remembers: records, limits, and the Store protocol that every implementation keeps.

A store keeps, per user, the last steps (raw records from which ``data.history`` builds the model's
history), the videos seen and served, and what the user has hidden or followed; per session, the pages
already handed out; and a log of accepted events and of served pages.

Promises that callers lean on, and that ``tests/serving/test_state.py`` checks for each implementation:

* what :meth:`Store.accept` or :meth:`Store.commit_page` returned from survives a crash of the process;
* an event id is accepted once; what it changed is visible to the next read from any process;
* of two commits of the same page of a session exactly one wins, and both callers get the winner's body;
* a page's tallies are counted with it, once, and no tally ever passes its limit;
* everything is bounded: by count where :class:`Limits` names a count, by age where it names a time.

Times are Unix milliseconds. Methods block and may be called from several threads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

import msgspec

Id = int | str
DAY_MS = 86_400_000


class StoreUnavailable(Exception):
    """The store cannot answer now (connection lost, disk full, locked): try again later."""


class SessionGone(Exception):
    """The session, or the place in it, is not known: it expired or its store was lost."""


class TallyExceeded(Exception):
    """A page was not handed out, because one of its tallies would have passed its limit."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Mark(Enum):
    """Lasting facts about a user that an event establishes."""

    hidden_video = "hidden_video"
    hidden_creator = "hidden_creator"
    hidden_merchant = "hidden_merchant"
    followed_creator = "followed_creator"


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One step of a user's history, as raw as it was logged.

    ``actions`` and ``known`` are bit masks over ``data.schema.LABELS`` (true, and observed).
    ``watch_ms`` is -1 and ``surface`` None where unknown. ``is_action`` tells an outcome that came as
    an event of its own from an impression.
    """

    video_id: Id
    time_ms: int
    actions: int
    known: int
    watch_ms: int = -1
    surface: str | None = None
    is_action: bool = False


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One accepted event in canonical form: ids of the catalogue's type, times clamped, labels as masks.

    ``marks`` are the lasting facts it establishes: ``((kind, id), …)``.
    """

    event_id: str
    kind: Literal["impression", "action"]
    user_id: Id
    video_id: Id
    time_ms: int
    received_ms: int
    actions: int = 0
    known: int = 0
    watch_ms: int | None = None
    surface: str | None = None
    market: str | None = None
    request_id: str | None = None
    position: int | None = None
    product_id: Id | None = None
    order_value_minor: int | None = None
    currency: str | None = None
    marks: tuple[tuple[Mark, Id], ...] = ()

    @property
    def step(self) -> Step:
        """What this event adds to its user's history."""
        watch_ms = -1 if self.watch_ms is None else min(self.watch_ms, 2**31 - 1)
        is_action = self.kind == "action"
        return Step(self.video_id, self.time_ms, self.actions, self.known, watch_ms, self.surface, is_action)


class Tally(msgspec.Struct, frozen=True):
    """A count that a page adds to: ``key`` grows by ``add``, never past ``limit`` (None: without end).

    It is forgotten ``ttl_ms`` after it last grew.
    """

    key: str
    add: int
    ttl_ms: int
    limit: int | None = None


class PageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One page handed out: the answer's bytes, what the served log keeps besides, and what it counts for.

    ``tallies`` have different keys.
    """

    session_id: bytes
    page: int
    user_id: Id
    time_ms: int
    video_ids: list[Id]
    body: bytes
    log: bytes = b""
    tallies: list[Tally] = []


class LoggedPage(msgspec.Struct, frozen=True):
    """One row of the served log: ``log`` of a :class:`PageRecord` under a growing number."""

    seq: int
    log: bytes


class LoggedEvent(msgspec.Struct, frozen=True):
    """One row of the event log under a growing number."""

    seq: int
    event: EventRecord


@dataclass(slots=True)
class UserState:
    """All that a feed request must know about its user. Empty for an unknown user.

    ``steps`` are ordered by time, impressions before actions, then video id. ``seen`` (from events) and
    ``served`` (from pages) hold each video once, in no order; they cover at least their time to live.
    """

    steps: list[Step] = field(default_factory=list)
    seen: list[Id] = field(default_factory=list)
    served: list[Id] = field(default_factory=list)
    marks: dict[Mark, list[Id]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionState:
    """A feed session: whose, how many pages it has, every video on them, and the page asked for.

    ``body`` and ``log`` are None where that page was not handed out yet.
    """

    user_id: Id
    pages: int
    served: list[Id]
    body: bytes | None
    log: bytes | None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much, and how long, a store remembers."""

    history_steps: int
    seen_ttl_ms: int
    served_ttl_ms: int
    session_ttl_ms: int
    user_ttl_ms: int
    event_ttl_ms: int
    marks_per_kind: int = 10_000


class Store(Protocol):
    """The server's memory. Every method may raise :class:`StoreUnavailable`."""

    def secret(self) -> bytes:
        """32 random bytes, made once per store and shared by all who open it."""
        ...

    def accept(self, events: Sequence[EventRecord]) -> list[bool]:
        """Take events in, all or none, durably; per event whether it was new (False: a duplicate)."""
        ...

    def user(self, user_id: Id, now_ms: int) -> UserState:
        """The state of one user as of now."""
        ...

    def session(self, session_id: bytes, page: int) -> SessionState:
        """A live session and the body of its ``page``. Raises :class:`SessionGone`."""
        ...

    def commit_page(self, page: PageRecord) -> bytes:
        """Hand out a page, durably; returns the body that counts, which is another's when it came first.

        Page 0 opens the session; a later page must be the next one. Its tallies grow with it; where one
        would pass its limit nothing is done at all. Raises :class:`SessionGone`, :class:`TallyExceeded`.
        """
        ...

    def tallies(self, keys: Sequence[str], now_ms: int) -> list[int]:
        """How far each tally has grown; 0 for one that never did, or was forgotten."""
        ...

    def warm(self, users: Iterable[tuple[Id, Sequence[Step], Sequence[Id]]], now_ms: int) -> int:
        """Load ``(user_id, steps, seen)`` in bulk, replacing what is known of them; returns how many.

        The seen videos count as seen now, however old the steps are. Until all are in, the store counts
        as empty, so that what was cut short is begun anew.
        """
        ...

    def is_empty(self) -> bool:
        """Whether no user is known yet, or warming was cut short."""
        ...

    def events_after(self, seq: int, limit: int) -> list[LoggedEvent]:
        """The next logged events in order of acceptance."""
        ...

    def pages_after(self, seq: int, limit: int) -> list[LoggedPage]:
        """The next logged pages in order of commitment."""
        ...

    def sweep(self, now_ms: int) -> int:
        """Forget what has outlived its limits; returns how many rows went. Safe at any time."""
        ...

    def ping(self) -> None:
        """Return when the store can be read and written."""
        ...

    def close(self) -> None:
        """Finish what was begun and let go. Calls after it raise :class:`StoreUnavailable`."""
        ...


def id_key(value: Id) -> str:
    """The text key of an id: ``5`` → ``"5"``, ``"5"`` → ``"s:5"``; the two never meet."""
    return str(value) if isinstance(value, int) else f"s:{value}"


def id_from_key(key: str) -> Id:
    """The inverse of :func:`id_key`."""
    return key[2:] if key.startswith("s:") else int(key)


def step_order(step: Step) -> tuple[int, bool, bool, Id]:
    """Sort key of steps: time, impressions before actions, then the video's id."""
    return step.time_ms, step.is_action, isinstance(step.video_id, str), step.video_id


def last_steps(steps: Iterable[Step], limit: int) -> list[Step]:
    """The newest ``limit`` steps, oldest first."""
    return sorted(steps, key=step_order)[-limit:]


class Window:
    """A sliding window cut into buckets, so that old entries leave by whole buckets.

    It remembers at least ``ttl_ms`` and at most one bucket, a twelfth, more.
    """

    BUCKETS = 12

    def __init__(self, ttl_ms: int) -> None:
        self.bucket_ms = max(1, -(-ttl_ms // self.BUCKETS))

    def bucket(self, time_ms: int) -> int:
        """The bucket that holds ``time_ms``."""
        return time_ms // self.bucket_ms

    def live(self, now_ms: int) -> range:
        """The buckets still remembered at ``now_ms``; as many lie ahead, for a clock that was set back."""
        current = self.bucket(now_ms)
        return range(current - self.BUCKETS, current + self.BUCKETS + 1)

    def expires_ms(self, bucket: int) -> int:
        """When ``bucket`` is forgotten."""
        return (bucket + self.BUCKETS + 1) * self.bucket_ms
