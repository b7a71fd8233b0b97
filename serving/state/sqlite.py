"""The embedded store: one SQLite file in WAL mode, shared by the threads and processes of one machine.

Writes go through one thread per process (:mod:`serving.state.sqlite_file`). Reads use one connection per
thread and never wait for writes.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from data.errors import ConfigError
from serving.state.protocol import (
    EventRecord,
    Id,
    Limits,
    LoggedEvent,
    LoggedPage,
    Mark,
    PageRecord,
    SessionGone,
    SessionState,
    Step,
    StoreUnavailable,
    UserState,
    Window,
    id_from_key,
    id_key,
    last_steps,
)
from serving.state.sqlite_file import GroupWriter, connect, prepare
from serving.state.sqlite_tallies import add, counts

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_steps = msgspec.msgpack.Decoder(list[Step])
_videos = msgspec.msgpack.Decoder(list[Id])
_marks = msgspec.msgpack.Decoder(dict[Mark, list[Id]])
_event = msgspec.msgpack.Decoder(EventRecord)
_NO_STEPS, _NO_MARKS = _encode([]), _encode({})


class SqliteStore:
    """A :class:`serving.state.protocol.Store` in one file."""

    def __init__(self, path: str | Path, limits: Limits) -> None:
        """Open or make the file. Raises :class:`ConfigError` where that is impossible."""
        self._path = Path(path)
        self._limits = limits
        self._windows = {"seen": Window(limits.seen_ttl_ms), "served": Window(limits.served_ttl_ms)}
        self._local = threading.local()
        self._lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        if not self._path.parent.is_dir():
            raise ConfigError(f"store=sqlite:///{path}: no directory {self._path.parent}; make it first")
        try:
            self._written = connect(self._path)
            prepare(self._written, self._path)
        except sqlite3.Error as error:
            raise ConfigError(f"store=sqlite:///{path}: {error}; give a path that can be written") from None
        self._writer = GroupWriter(self._written)
        self._closed = False

    # reads

    def secret(self) -> bytes:
        """See :meth:`Store.secret`."""
        with self._read() as db:
            return bytes(db.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone()[0])

    def user(self, user_id: Id, now_ms: int) -> UserState:
        """See :meth:`Store.user`."""
        key = id_key(user_id)
        state = UserState()
        with self._read() as db:
            row = db.execute("SELECT steps, marks FROM users WHERE user = ?", (key,)).fetchone()
            state.seen = self._exposed(db, key, "seen", now_ms)
            state.served = self._exposed(db, key, "served", now_ms)
        if row is not None:
            state.steps, state.marks = _steps.decode(row[0]), _marks.decode(row[1])
        return state

    def session(self, session_id: bytes, page: int) -> SessionState:
        """See :meth:`Store.session`."""
        with self._read() as db:
            row = db.execute("SELECT user, pages FROM sessions WHERE session = ?", (session_id,)).fetchone()
            if row is None:
                raise SessionGone
            found = db.execute(
                "SELECT videos FROM pages WHERE session = ? ORDER BY page", (session_id,)
            ).fetchall()
            query = "SELECT body, log FROM pages WHERE session = ? AND page = ?"
            body, log = db.execute(query, (session_id, page)).fetchone() or (None, None)
        served = [video for (blob,) in found for video in _videos.decode(blob)]
        return SessionState(id_from_key(row[0]), row[1], served, body, log)

    def is_empty(self) -> bool:
        """See :meth:`Store.is_empty`."""
        with self._read() as db:
            warming = db.execute("SELECT 1 FROM meta WHERE key = 'warming'").fetchone()
            return warming is not None or db.execute("SELECT 1 FROM users LIMIT 1").fetchone() is None

    def events_after(self, seq: int, limit: int) -> list[LoggedEvent]:
        """See :meth:`Store.events_after`."""
        with self._read() as db:
            query = "SELECT seq, event FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
            rows = db.execute(query, (seq, limit))
            return [LoggedEvent(number, _event.decode(blob)) for number, blob in rows]

    def pages_after(self, seq: int, limit: int) -> list[LoggedPage]:
        """See :meth:`Store.pages_after`."""
        with self._read() as db:
            query = "SELECT seq, log FROM pages WHERE seq > ? ORDER BY seq LIMIT ?"
            return [LoggedPage(*row) for row in db.execute(query, (seq, limit))]

    def tallies(self, keys: Sequence[str], now_ms: int) -> list[int]:
        """See :meth:`Store.tallies`."""
        with self._read() as db:
            return counts(db, keys, now_ms)

    # writes

    def accept(self, events: Sequence[EventRecord]) -> list[bool]:
        """See :meth:`Store.accept`."""
        return self._writer.run(lambda db: self._accept(db, events))

    def commit_page(self, page: PageRecord) -> bytes:
        """See :meth:`Store.commit_page`."""
        return self._writer.run(lambda db: self._commit_page(db, page))

    def warm(self, users: Iterable[tuple[Id, Sequence[Step], Sequence[Id]]], now_ms: int) -> int:
        """See :meth:`Store.warm`."""
        count = 0
        self._writer.run(lambda db: db.execute("INSERT OR REPLACE INTO meta VALUES ('warming', 1)"))
        for group in _chunks(users, 1_000):
            count += self._writer.run(lambda db, group=group: self._warm(db, group, now_ms))  # type: ignore[misc]
        self._writer.run(lambda db: db.execute("DELETE FROM meta WHERE key = 'warming'"))
        return count

    def sweep(self, now_ms: int) -> int:
        """See :meth:`Store.sweep`."""
        limits = self._limits
        gone = 0
        while count := self._writer.run(lambda db: self._drop_sessions(db, now_ms - limits.session_ttl_ms)):
            gone += count
        for kind, window in self._windows.items():
            first = window.live(now_ms).start
            gone += self._delete("exposures", "kind = ? AND bucket < ?", (kind, first))
        gone += self._delete("tallies", "expires_ms <= ?", (now_ms,))
        gone += self._delete("users", "touched_ms < ?", (now_ms - limits.user_ttl_ms,))
        return gone + self._delete("events", "received_ms < ?", (now_ms - limits.event_ttl_ms,))

    def ping(self) -> None:
        """See :meth:`Store.ping`."""
        self._writer.run(lambda db: None)

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._closed = True
        if self._writer.close():
            with self._lock:
                for connection in [*self._readers, self._written]:
                    connection.close()

    # inside

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        try:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if db is None:
                db = self._local.db = connect(self._path)
                with self._lock:
                    self._readers.append(db)
            db.execute("BEGIN")  # one snapshot for all statements of the block
            try:
                yield db
            finally:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from error

    def _delete(self, table: str, where: str, values: tuple[object, ...], step: int = 5_000) -> int:
        """Delete in small transactions, so that a large sweep holds nobody up."""
        delete = f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {where} LIMIT {step})"
        gone = 0
        while count := self._writer.run(lambda db: db.execute(delete, values).rowcount):
            gone += count
        return gone

    @staticmethod
    def _drop_sessions(db: sqlite3.Connection, before_ms: int) -> int:
        query = "SELECT session FROM sessions WHERE touched_ms < ? LIMIT 200"
        sessions = db.execute(query, (before_ms,)).fetchall()
        gone = 0
        for session in sessions:
            gone += db.execute("DELETE FROM pages WHERE session = ?", session).rowcount
            gone += db.execute("DELETE FROM sessions WHERE session = ?", session).rowcount
        return gone

    def _accept(self, db: sqlite3.Connection, events: Sequence[EventRecord]) -> list[bool]:
        fresh: list[bool] = []
        by_user: dict[str, list[EventRecord]] = {}
        for event in events:
            new = db.execute(
                "INSERT OR IGNORE INTO events (event_id, received_ms, event) VALUES (?, ?, ?)",
                (event.event_id, event.received_ms, _encode(event)),
            ).rowcount
            fresh.append(new == 1)
            if new:
                by_user.setdefault(id_key(event.user_id), []).append(event)
        for key, news in by_user.items():
            row = db.execute("SELECT steps, marks FROM users WHERE user = ?", (key,)).fetchone()
            steps = _steps.decode(row[0]) if row else []
            marks = _marks.decode(row[1]) if row else {}
            steps = last_steps([*steps, *(event.step for event in news)], self._limits.history_steps)
            for event in news:
                for kind, value in event.marks:
                    kept = [other for other in marks.get(kind, ()) if other != value]
                    marks[kind] = [*kept, value][-self._limits.marks_per_kind :]
            db.execute(
                "INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?)",
                (key, _encode(steps), _encode(marks), max(event.received_ms for event in news)),
            )
            for bucket, videos in _by_bucket(self._windows["seen"], news).items():
                self._expose(db, key, "seen", bucket, videos)
        return fresh

    def _exposed(self, db: sqlite3.Connection, key: str, kind: str, now_ms: int) -> list[Id]:
        live = self._windows[kind].live(now_ms)
        query = "SELECT videos FROM exposures WHERE user = ? AND kind = ? AND bucket BETWEEN ? AND ?"
        found = db.execute(query, (key, kind, live.start, live.stop - 1)).fetchall()
        lists = [_videos.decode(blob) for (blob,) in found]
        return lists[0] if len(lists) == 1 else list(dict.fromkeys(video for part in lists for video in part))

    def _expose(self, db: sqlite3.Connection, key: str, kind: str, bucket: int, videos: Iterable[Id]) -> None:
        query = "SELECT videos FROM exposures WHERE user = ? AND kind = ? AND bucket = ?"
        row = db.execute(query, (key, kind, bucket)).fetchone()
        merged = list(dict.fromkeys([*(_videos.decode(row[0]) if row else ()), *videos]))
        insert = "INSERT OR REPLACE INTO exposures VALUES (?, ?, ?, ?)"
        db.execute(insert, (key, kind, bucket, _encode(merged)))

    def _commit_page(self, db: sqlite3.Connection, page: PageRecord) -> bytes:
        key = id_key(page.user_id)
        row = db.execute("SELECT user, pages FROM sessions WHERE session = ?", (page.session_id,)).fetchone()
        user, pages = row or (key, 0)
        if user != key or page.page > pages:
            raise SessionGone
        if page.page < pages:
            sql = "SELECT body FROM pages WHERE session = ? AND page = ?"
            return bytes(db.execute(sql, (page.session_id, page.page)).fetchone()[0])
        add(db, page.tallies, page.time_ms)
        db.execute(
            "INSERT INTO pages (session, page, videos, body, log) VALUES (?, ?, ?, ?, ?)",
            (page.session_id, page.page, _encode(page.video_ids), page.body, page.log),
        )
        db.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)",
            (page.session_id, key, page.page + 1, page.time_ms),
        )
        if page.video_ids:
            self._expose(db, key, "served", self._windows["served"].bucket(page.time_ms), page.video_ids)
        return page.body

    def _warm(
        self, db: sqlite3.Connection, users: Sequence[tuple[Id, Sequence[Step], Sequence[Id]]], now_ms: int
    ) -> int:
        bucket = self._windows["seen"].bucket(now_ms)
        for user_id, steps, seen in users:
            key = id_key(user_id)
            kept = _encode(last_steps(steps, self._limits.history_steps))
            db.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?)", (key, kept, _NO_MARKS, now_ms))
            if seen:
                self._expose(db, key, "seen", bucket, seen)
        return len(users)


def _by_bucket(window: Window, events: Iterable[EventRecord]) -> dict[int, list[Id]]:
    """Videos by the bucket in which the server heard of them: an event told late is remembered full time."""
    buckets: dict[int, list[Id]] = {}
    for event in events:
        buckets.setdefault(window.bucket(event.received_ms), []).append(event.video_id)
    return buckets


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
