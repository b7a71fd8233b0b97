"""The SQLite file under the store: its tables, connections, and the one thread that writes.

Writes go through one thread per process that commits whatever has gathered in one transaction
(``synchronous=FULL``), so that durability costs one disk sync per group, not per request.
"""

import queue
import secrets
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from data.errors import ConfigError
from serving.state.protocol import StoreUnavailable

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], object]

SCHEMA_VERSION = 2
#: Statements by the version of the file that they lead to.
_SCHEMA = {
    1: """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE users (
    user TEXT PRIMARY KEY, steps BLOB NOT NULL, marks BLOB NOT NULL, touched_ms INTEGER NOT NULL
);
CREATE INDEX users_touched ON users (touched_ms);
CREATE TABLE exposures (
    user TEXT NOT NULL, kind TEXT NOT NULL, bucket INTEGER NOT NULL, videos BLOB NOT NULL,
    UNIQUE (user, kind, bucket)
);
CREATE INDEX exposures_bucket ON exposures (kind, bucket);
CREATE TABLE sessions (
    session BLOB PRIMARY KEY, user TEXT NOT NULL, pages INTEGER NOT NULL, touched_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_touched ON sessions (touched_ms);
CREATE TABLE pages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, session BLOB NOT NULL, page INTEGER NOT NULL,
    videos BLOB NOT NULL, body BLOB NOT NULL, log BLOB NOT NULL,
    UNIQUE (session, page)
);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE,
    received_ms INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE INDEX events_received ON events (received_ms);
""",
    2: """
CREATE TABLE tallies (key TEXT PRIMARY KEY, count INTEGER NOT NULL, expires_ms INTEGER NOT NULL);
CREATE INDEX tallies_expires ON tallies (expires_ms);
""",
}
_GROUP = 256  # writes in one transaction at most
_BUSY_S = 5.0  # how long to wait for another process's write


def connect(path: Path) -> sqlite3.Connection:
    """A connection that may be used from any thread, by one at a time."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, or those that an older one lacks.

    Raises :class:`ConfigError` for a file of a later version.
    """
    db.execute("BEGIN IMMEDIATE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    for step in range(version + 1, SCHEMA_VERSION + 1):
        for statement in _SCHEMA[step].split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {step}")
    if version == 0:
        db.execute("INSERT INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
    db.execute("COMMIT")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"store=sqlite:///{path}: made by another version of shopreel "
            f"(store schema {version}, this one reads {SCHEMA_VERSION}); give a new file"
        )


class GroupWriter:
    """Runs writes on a thread of its own, many in one transaction, each whole or not at all."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._closed = False
        self._queue: queue.SimpleQueue[tuple[Write, Future[object]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="sqlite-writer", daemon=True)
        self._thread.start()

    def run(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """Run a write; what it returned is durable. Raises what it raised, or :class:`StoreUnavailable`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            self._queue.put((write, future))  # type: ignore[arg-type]
        return future.result()

    def close(self) -> bool:
        """Do what was begun, then stop; False where it was closed before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        return True

    def _loop(self) -> None:
        open_for_work = True
        while open_for_work:
            group = [self._queue.get()]
            while len(group) < _GROUP and not self._queue.empty():
                group.append(self._queue.get())
            open_for_work = None not in group
            self._write_group([job for job in group if job is not None])

    def _write_group(self, group: list[tuple[Write, "Future[object]"]]) -> None:
        db = self._db
        done: list[tuple[Future[object], object]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for write, future in group:
                db.execute("SAVEPOINT job")
                try:
                    done.append((future, write(db)))
                except Exception as error:
                    if not db.in_transaction:  # SQLite gave the whole transaction up, as on a full disk
                        raise
                    db.execute("ROLLBACK TO job")
                    future.set_exception(_translate(error))
                db.execute("RELEASE job")
            db.execute("COMMIT")
        except Exception as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            for _, future in group:
                if not future.done():
                    future.set_exception(_translate(error))
            return
        for future, value in done:
            future.set_result(value)


def _translate(error: Exception) -> Exception:
    return StoreUnavailable(str(error)) if isinstance(error, sqlite3.Error) else error
