"""The shared store: one Redis primary for all replicas of the server.

Durable before acknowledged needs Redis to be started with ``--appendonly yes --appendfsync always``
(``everysec`` may lose the last second); a server that runs without says so in its log at start.
Every write is one Lua script, so it is applied, and appended to the file, whole or not at all. The
scripts touch several keys of one store: Redis Cluster is not supported.

Keys, under ``shopreel:``

====================  ======================================================================
``secret``            string
``known``, ``warming``  set when any user is known; while users are loaded in bulk
``event:ID``          the ids accepted, for as long as events are kept
``events``, ``pages``  streams, the event log and the served log, ids ``SEQ-0``
``u:USER:steps``      list of packed steps, in order of arrival
``u:USER:MARK``       sorted set of ids by time
``u:USER:seen:B``, ``u:USER:served:B``  sets of video ids, one per bucket of the window
``tally:KEY``         how far a tally has grown
``s:SESSION``         hash: user, pages; body and log of page n under ``n`` and ``n:log``
``s:SESSION:videos``  list, the packed video ids of each page
====================  ======================================================================

Ids are text keys (``serving.state.protocol.id_key``), so that sets of integers stay compact.
"""

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

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
    TallyExceeded,
    UserState,
    Window,
    id_from_key,
    id_key,
    last_steps,
)
from serving.state.redis_scripts import ACCEPT, COMMIT

logger = logging.getLogger("shopreel.store")

_encode = msgspec.msgpack.Encoder().encode
_step = msgspec.msgpack.Decoder(Step)
_videos = msgspec.msgpack.Decoder(list[Id])
_event = msgspec.msgpack.Decoder(EventRecord)


class RedisStore:
    """A :class:`serving.state.protocol.Store` on a Redis server.

    Of a user's steps the last to arrive are kept, where SQLite keeps the last in time.
    """

    def __init__(self, url: str, limits: Limits, prefix: str = "shopreel:") -> None:
        """Connect. Raises :class:`ConfigError` where no Redis answers at ``url``."""
        self._limits = limits
        self._prefix = prefix
        self._windows = {"seen": Window(limits.seen_ttl_ms), "served": Window(limits.served_ttl_ms)}
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=2.0,
                socket_connect_timeout=2.0,
                health_check_interval=15,
                retry=Retry(ConstantBackoff(0.05), 2),  # every script may be run again: all are idempotent
            )
            self._redis.ping()
        except (redis.RedisError, ValueError) as error:
            raise ConfigError(f"store={url}: {error}; start redis-server or give another store") from None
        self._accept_script = self._redis.register_script(ACCEPT)
        self._commit_script = self._redis.register_script(COMMIT)
        self._warn_unless_durable()

    def secret(self) -> bytes:
        """See :meth:`Store.secret`."""
        with self._guard():
            self._redis.set(self._prefix + "secret", secrets.token_bytes(32), nx=True)
            return bytes(self._redis.get(self._prefix + "secret"))

    def accept(self, events: Sequence[EventRecord]) -> list[bool]:
        """See :meth:`Store.accept`."""
        limits, window = self._limits, self._windows["seen"]
        values: list[str | bytes | int] = [
            self._prefix, limits.event_ttl_ms, limits.user_ttl_ms, limits.history_steps, limits.marks_per_kind
        ]  # fmt: skip
        for event in events:
            now_ms, bucket = event.received_ms, window.bucket(event.received_ms)
            values += [event.event_id, _encode(event), now_ms, id_key(event.user_id), _encode(event.step)]
            values += [bucket, window.expires_ms(bucket) - now_ms, id_key(event.video_id), len(event.marks)]
            for mark, value in event.marks:
                values += [mark.value, id_key(value)]
        if not events:
            return []
        with self._guard():
            return [new == 1 for new in self._accept_script(args=values)]

    def user(self, user_id: Id, now_ms: int) -> UserState:
        """See :meth:`Store.user`."""
        base = f"{self._prefix}u:{id_key(user_id)}:"
        with self._guard():
            batch = self._redis.pipeline(transaction=True)
            batch.lrange(base + "steps", 0, -1)
            for mark in Mark:
                batch.zrange(base + mark.value, 0, -1)
            for kind in ("seen", "served"):
                batch.sunion([f"{base}{kind}:{bucket}" for bucket in self._windows[kind].live(now_ms)])
            steps, *marks, seen, served = batch.execute()
        return UserState(
            steps=last_steps(map(_step.decode, steps), self._limits.history_steps),
            seen=_ids(seen),
            served=_ids(served),
            marks={mark: _ids(keys) for mark, keys in zip(Mark, marks, strict=True) if keys},
        )

    def session(self, session_id: bytes, page: int) -> SessionState:
        """See :meth:`Store.session`."""
        key = f"{self._prefix}s:{session_id.hex()}"
        with self._guard():
            batch = self._redis.pipeline(transaction=True)
            batch.hmget(key, "user", "pages", str(page), f"{page}:log")
            batch.lrange(key + ":videos", 0, -1)
            (user, pages, body, log), videos = batch.execute()
        if user is None:
            raise SessionGone
        served = [video for blob in videos for video in _videos.decode(blob)]
        return SessionState(id_from_key(user.decode()), int(pages), served, body, log)

    def commit_page(self, page: PageRecord) -> bytes:
        """See :meth:`Store.commit_page`."""
        window = self._windows["served"]
        bucket = window.bucket(page.time_ms)
        ttl_ms = window.expires_ms(bucket) - page.time_ms
        values: list[str | bytes | int] = [self._prefix, page.session_id.hex(), page.page]
        values += [id_key(page.user_id), _encode(page.video_ids), page.body, page.log, page.time_ms]
        values += [self._limits.session_ttl_ms, bucket, ttl_ms, len(page.tallies)]
        for tally in page.tallies:
            values += [tally.key, tally.add, tally.ttl_ms, "" if tally.limit is None else tally.limit]
        values += map(id_key, page.video_ids)
        with self._guard():
            body = self._commit_script(args=values)
        if body is None:
            raise SessionGone
        if isinstance(body, list):
            raise TallyExceeded(body[0].decode())
        return bytes(body)

    def tallies(self, keys: Sequence[str], now_ms: int) -> list[int]:
        """See :meth:`Store.tallies`."""
        if not keys:
            return []
        with self._guard():
            return [int(count or 0) for count in self._redis.mget([f"{self._prefix}tally:{k}" for k in keys])]

    def warm(self, users: Iterable[tuple[Id, Sequence[Step], Sequence[Id]]], now_ms: int) -> int:
        """See :meth:`Store.warm`."""
        count = 0
        window = self._windows["seen"]
        bucket = window.bucket(now_ms)
        with self._guard():
            self._redis.set(self._prefix + "warming", 1)
            batch = self._redis.pipeline(transaction=False)
            for user_id, steps, seen in users:
                base = f"{self._prefix}u:{id_key(user_id)}:"
                batch.delete(base + "steps", *(base + mark.value for mark in Mark))
                kept = last_steps(steps, self._limits.history_steps)
                if kept:
                    batch.rpush(base + "steps", *map(_encode, kept))
                    batch.pexpire(base + "steps", self._limits.user_ttl_ms)
                if seen:
                    batch.sadd(f"{base}seen:{bucket}", *map(id_key, seen))
                    batch.pexpire(f"{base}seen:{bucket}", window.expires_ms(bucket) - now_ms)
                count += 1
                if count % 1_000 == 0:
                    batch.execute()
            if count:
                batch.set(self._prefix + "known", 1)
            batch.delete(self._prefix + "warming")
            batch.execute()
        return count

    def is_empty(self) -> bool:
        """See :meth:`Store.is_empty`."""
        with self._guard():
            warming, known = self._redis.mget(self._prefix + "warming", self._prefix + "known")
            return warming is not None or known is None

    def events_after(self, seq: int, limit: int) -> list[LoggedEvent]:
        """See :meth:`Store.events_after`."""
        rows = self._range("events", seq, limit)
        return [LoggedEvent(number, _event.decode(row[b"e"])) for number, row in rows]

    def pages_after(self, seq: int, limit: int) -> list[LoggedPage]:
        """See :meth:`Store.pages_after`."""
        return [LoggedPage(number, row[b"l"]) for number, row in self._range("pages", seq, limit)]

    def sweep(self, now_ms: int) -> int:
        """See :meth:`Store.sweep`. Redis itself forgets all but the two logs."""
        events = self._trim("events", now_ms - self._limits.event_ttl_ms)
        return events + self._trim("pages", now_ms - self._limits.session_ttl_ms)

    def ping(self) -> None:
        """See :meth:`Store.ping`."""
        with self._guard():
            self._redis.set(self._prefix + "ping", 1, px=1_000)

    def close(self) -> None:
        """See :meth:`Store.close`."""
        client, self._redis = self._redis, None
        if client is not None:
            client.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        if self._redis is None:
            raise StoreUnavailable("the store is closed")
        try:
            yield
        except redis.RedisError as error:
            raise StoreUnavailable(str(error)) from error

    def _range(self, stream: str, seq: int, limit: int) -> list[tuple[int, dict[bytes, bytes]]]:
        with self._guard():
            rows = self._redis.xrange(self._prefix + stream, f"({seq}-0" if seq else "-", "+", count=limit)
        return [(int(number.split(b"-")[0]), row) for number, row in rows]

    def _trim(self, stream: str, before_ms: int) -> int:
        """Drop the head of a log up to the first row that is young enough."""
        gone, seq = 0, 0
        while rows := self._range(stream, seq, 1_000):
            old = [number for number, row in rows if int(row[b"t"]) < before_ms]
            if old:
                seq = old[-1]
                with self._guard():
                    gone += self._redis.xtrim(self._prefix + stream, minid=f"{seq + 1}-0", approximate=False)
            if len(old) < len(rows):
                break
        return gone

    def _warn_unless_durable(self) -> None:
        try:
            found = self._redis.config_get("appendonly", "appendfsync")
        except redis.RedisError:
            return  # hosted servers forbid CONFIG; their durability is theirs to state
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            logger.warning(
                "redis can lose acknowledged events in a crash (appendonly %s, appendfsync %s): "
                "start it with --appendonly yes --appendfsync always",
                found.get("appendonly"),
                found.get("appendfsync"),
            )


def _ids(keys: Iterable[bytes]) -> list[Id]:
    return [id_from_key(key.decode()) for key in keys]
