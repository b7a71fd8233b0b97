"""One contract, two stores: what SQLite promises, Redis promises, and a killed process breaks neither."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from data.schema import LABEL_BIT
from serving.state import Limits, Store, open_store
from serving.state.protocol import (
    DAY_MS,
    EventRecord,
    Mark,
    PageRecord,
    SessionGone,
    Step,
    StoreUnavailable,
    Tally,
    TallyExceeded,
    Window,
    id_from_key,
    id_key,
)
from tests.serving.fake_world import LIMITS

NOW = 1_700_000_000_000


class Opener:
    """``opener(limits)`` opens the same store again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stores: list[Store] = []

    def __call__(self, limits: Limits | None = None) -> Store:
        store = open_store(self.url, limits or LIMITS)
        self.stores.append(store)
        return store


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server with an append-only file, on a free port of the loopback."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the path")
    folder = tmp_path_factory.mktemp("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = f"--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --save  --dir {folder}"
    server = subprocess.Popen([program, *words.split(" ")], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["Opener"]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/state.db"
    else:
        import redis

        url = request.getfixturevalue("redis_server")
        with redis.Redis.from_url(url) as client:
            client.flushall()

    opener = Opener(url)
    yield opener
    for store in opener.stores:
        store.close()


def impression(event_id: str, *, user: int | str = 1, video: int | str = 10, at: int = NOW, **more: object):
    values = {
        "kind": "impression",
        "user_id": user,
        "video_id": video,
        "time_ms": at,
        "received_ms": at,
        **more,
    }
    return EventRecord(event_id=event_id, **values)  # type: ignore[arg-type]


def page(
    session: bytes, number: int, videos: list[int | str], *, user: int | str = 1, at: int = NOW, body=b""
):
    body = body or f"body {number} {videos}".encode()
    return PageRecord(
        session_id=session,
        page=number,
        user_id=user,
        time_ms=at,
        video_ids=videos,
        body=body,
        log=b"log" + body,
    )


S1, S2 = b"1" * 16, b"2" * 16


def test_an_unknown_user_is_empty(opener: Opener) -> None:
    state = opener().user("nobody", NOW)
    assert (state.steps, state.seen, state.served, state.marks) == ([], [], [], {})


def test_secret_is_made_once_and_shared(opener: Opener) -> None:
    first, second = opener(), opener()
    assert len(first.secret()) == 32
    assert first.secret() == second.secret()


def test_an_accepted_event_is_known_to_the_next_read_and_after_reopening(opener: Opener) -> None:
    store = opener()
    like = LABEL_BIT["like"]
    events = [
        impression("a", video=10, watch_ms=900, surface="feed", known=like),
        impression("b", video=11, at=NOW + 5, kind="action", actions=like, known=like),
    ]
    assert store.accept(events) == [True, True]
    for reader in (store, opener()):
        state = reader.user(1, NOW + 10)
        assert state.steps == [
            Step(10, NOW, 0, like, 900, "feed", False),
            Step(11, NOW + 5, like, like, -1, None, True),
        ]
        assert sorted(state.seen) == [10, 11]
        assert reader.user(2, NOW).steps == []
    assert not store.is_empty()


def test_an_event_id_counts_once_even_within_one_batch(opener: Opener) -> None:
    store = opener()
    assert store.accept([impression("a"), impression("a", video=99), impression("b")]) == [True, False, True]
    assert store.accept([impression("a")]) == [False]
    assert len(store.user(1, NOW).steps) == 2
    assert [row.event.event_id for row in store.events_after(0, 10)] == ["a", "b"]


def test_steps_are_ordered_and_bounded(opener: Opener) -> None:
    store = opener(replace(LIMITS, history_steps=3))
    store.accept([impression("late", at=NOW + 3, video=3), impression("early", at=NOW + 1, video=1)])
    store.accept(
        [impression("action", at=NOW + 3, video=2, kind="action"), impression("mid", at=NOW + 2, video=2)]
    )
    steps = store.user(1, NOW + 9).steps
    assert len(steps) == 3
    assert [step.time_ms for step in steps] == sorted(step.time_ms for step in steps)
    assert steps[-1].is_action


def test_marks_are_kept_apart_bounded_and_newest_last(opener: Opener) -> None:
    store = opener(replace(LIMITS, marks_per_kind=2))
    for number in range(4):
        marks = ((Mark.hidden_creator, number), (Mark.hidden_video, "v"))
        store.accept([impression(f"e{number}", at=NOW + number, marks=marks)])
    assert store.user(1, NOW).marks == {Mark.hidden_creator: [2, 3], Mark.hidden_video: ["v"]}


def test_ids_keep_their_type(opener: Opener) -> None:
    store = opener()
    big = 2**63 - 1
    store.accept([impression("a", user="5", video="7"), impression("b", user=5, video=big)])
    assert store.user("5", NOW).seen == ["7"]
    assert store.user(5, NOW).seen == [big]
    assert store.user(5, NOW).steps[0].video_id == big


def test_seen_and_served_are_forgotten_by_age_but_not_before(opener: Opener) -> None:
    store = opener(replace(LIMITS, seen_ttl_ms=10 * DAY_MS, served_ttl_ms=2 * DAY_MS, session_ttl_ms=DAY_MS))
    store.accept([impression("a", video=1)])
    store.commit_page(page(S1, 0, [2]))
    later = store.user(1, NOW + 2 * DAY_MS)
    assert (later.seen, later.served) == ([1], [2])
    assert store.user(1, NOW + 10 * DAY_MS).seen == [1]
    gone = store.user(1, NOW + 11 * DAY_MS)
    assert (gone.seen, gone.served) == ([], [])


def test_pages_form_a_session(opener: Opener) -> None:
    store = opener()
    assert store.commit_page(page(S1, 0, [1, 2])) == b"body 0 [1, 2]"
    assert store.commit_page(page(S1, 1, [3])) == b"body 1 [3]"
    for reader in (store, opener()):
        state = reader.session(S1, 1)
        assert (state.user_id, state.pages, state.served) == (1, 2, [1, 2, 3])
        assert (state.body, state.log) == (b"body 1 [3]", b"logbody 1 [3]")
        assert reader.session(S1, 2).body is None
        assert sorted(reader.user(1, NOW).served) == [1, 2, 3]
    logs = [row.log for row in store.pages_after(0, 10)]
    assert logs == [b"logbody 0 [1, 2]", b"logbody 1 [3]"]
    assert [row.log for row in store.pages_after(store.pages_after(0, 1)[0].seq, 10)] == logs[1:]


def test_the_first_commit_of_a_page_wins(opener: Opener) -> None:
    store = opener()
    assert store.commit_page(page(S1, 0, [1], body=b"first")) == b"first"
    assert store.commit_page(page(S1, 0, [2], body=b"second")) == b"first"
    assert store.session(S1, 0).served == [1]
    assert store.user(1, NOW).served == [1]


def test_one_of_many_concurrent_commits_wins(opener: Opener) -> None:
    stores = [opener(), opener()]
    answers: list[bytes] = []

    def commit(number: int) -> None:
        answers.append(stores[number % 2].commit_page(page(S1, 0, [number], body=b"%d" % number)))

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert stores[0].session(S1, 0).served == [int(answers[0])]


@pytest.mark.parametrize(
    "bad", [page(S2, 1, [1]), page(S1, 2, [1]), page(S1, 1, [1], user=2), page(S1, 0, [1], user="1")]
)
def test_a_page_out_of_place_is_refused(opener: Opener, bad: PageRecord) -> None:
    store = opener()
    store.commit_page(page(S1, 0, [7]))
    with pytest.raises(SessionGone):
        store.commit_page(bad)
    with pytest.raises(SessionGone):
        store.session(S2, 0)
    assert store.session(S1, 0).served == [7]


def counted(session: bytes, number: int, *tallies: Tally, at: int = NOW) -> PageRecord:
    return msgspec.structs.replace(page(session, number, [number], at=at), tallies=list(tallies))


def test_tallies_grow_with_the_page_once_and_never_past_their_limit(opener: Opener) -> None:
    store, other = opener(), opener()
    assert store.tallies(["a", "b"], NOW) == [0, 0]
    assert store.tallies([], NOW) == []
    first = counted(S1, 0, Tally("a", 3, DAY_MS, 5), Tally("b", -2, DAY_MS))
    store.commit_page(first)
    other.commit_page(first)  # the same page again
    assert other.tallies(["b", "no", "a"], NOW) == [-2, 0, 3]
    with pytest.raises(TallyExceeded) as exceeded:
        other.commit_page(counted(S1, 1, Tally("b", 1, DAY_MS), Tally("a", 3, DAY_MS, 5)))
    assert exceeded.value.key == "a"
    assert store.tallies(["a", "b"], NOW) == [3, -2]  # nothing of it was counted
    assert store.session(S1, 1).body is None
    other.commit_page(counted(S1, 1, Tally("a", 2, DAY_MS, 5)))
    assert store.tallies(["a"], NOW) == [5]


def test_a_limit_holds_for_many_at_once(opener: Opener) -> None:
    stores = [opener(), opener()]
    exceeded: list[int] = []

    def commit(number: int) -> None:
        try:
            stores[number % 2].commit_page(counted(bytes([number] * 16), 0, Tally("hot", 1, DAY_MS, 20)))
        except TallyExceeded:
            exceeded.append(number)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(exceeded) == 30
    assert stores[0].tallies(["hot"], NOW) == [20]


def test_sqlite_forgets_a_tally_a_while_after_it_grew_last(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/state.db", LIMITS)
    store.commit_page(counted(S1, 0, Tally("a", 1, 1_000)))
    store.commit_page(counted(S1, 1, Tally("a", 1, 1_000), at=NOW + 900))
    assert [store.tallies(["a"], NOW + late) for late in (1_500, 1_899, 1_900)] == [[2], [2], [0]]
    store.commit_page(counted(S1, 2, Tally("a", 1, 1_000, 1), at=NOW + 1_900))
    assert store.tallies(["a"], NOW + 1_900) == [1]
    assert store.sweep(NOW + 3_000) == 1
    store.close()


def test_a_file_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/state.db", LIMITS)
    store.accept([impression("a")])
    secret = store.secret()
    store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("DROP TABLE tallies")
        db.execute("PRAGMA user_version = 1")
    again = open_store(f"sqlite:///{tmp_path}/state.db", LIMITS)
    assert again.secret() == secret
    again.commit_page(counted(S1, 0, Tally("a", 1, DAY_MS)))
    assert again.tallies(["a"], NOW) == [1]
    again.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="another version"):
        open_store(f"sqlite:///{tmp_path}/state.db", LIMITS)


def test_sweep_forgets_what_is_old_and_only_that(opener: Opener) -> None:
    store = opener(replace(LIMITS, session_ttl_ms=DAY_MS, event_ttl_ms=DAY_MS, user_ttl_ms=5 * DAY_MS))
    store.accept([impression("old"), impression("new", at=NOW + 2 * DAY_MS)])
    store.commit_page(page(S1, 0, [1]))
    store.commit_page(page(S2, 0, [2], at=NOW + 2 * DAY_MS))
    assert store.sweep(NOW + 2 * DAY_MS) > 0
    assert [row.event.event_id for row in store.events_after(0, 10)] == ["new"]
    assert [row.log for row in store.pages_after(0, 10)] == [b"logbody 0 [2]"]
    assert store.session(S2, 0).served == [2]
    assert len(store.user(1, NOW + 2 * DAY_MS).steps) == 2
    assert store.sweep(NOW + 2 * DAY_MS) == 0


def test_warming_gives_history_and_seen_videos_from_now_on(opener: Opener) -> None:
    store = opener(replace(LIMITS, history_steps=2))
    assert store.is_empty()
    old = NOW - 400 * DAY_MS
    steps = [Step(video, old + video, 1, 1) for video in (3, 1, 2)]
    assert store.warm([(1, steps, [1, 2, 3]), ("b", [], [])], NOW) == 2
    state = store.user(1, NOW)
    assert [step.video_id for step in state.steps] == [2, 3]
    assert sorted(state.seen) == [1, 2, 3]
    assert not store.is_empty()


def test_a_closed_store_is_unavailable(opener: Opener) -> None:
    store = opener()
    store.close()
    for call in (lambda: store.user(1, NOW), lambda: store.accept([impression("a")]), store.ping):
        with pytest.raises(StoreUnavailable):
            call()
    store.close()


_KILLED = """
import sys
from serving.state import open_store
from serving.state.protocol import EventRecord
from tests.serving.fake_world import LIMITS
store = open_store(sys.argv[1], LIMITS)
for number in range(100_000):
    store.accept([EventRecord(event_id=f"e{number}", kind="impression", user_id=1, video_id=number,
                              time_ms=number, received_ms=number)])
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_sigkill(
    opener: Opener, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = opener()
    url = (
        f"sqlite:///{tmp_path}/state.db"
        if "sqlite" in request.node.name
        else request.getfixturevalue("redis_server")
    )
    child = subprocess.Popen([sys.executable, "-c", _KILLED, url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(50):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    last = 49
    for line in child.stdout:
        last = int(line) if line.endswith("\n") else last
    child.wait()
    child.stdout.close()
    known = {row.event.event_id for row in store.events_after(0, 100_000)}
    assert {f"e{number}" for number in range(last + 1)} <= known
    assert set(store.user(1, 0).seen) >= set(range(last + 1))


def test_sqlite_refuses_a_write_to_a_full_disk_and_recovers(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/state.db", LIMITS)
    store.accept([impression("a")])
    store._written.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]
    big = "x" * 100_000
    with pytest.raises(StoreUnavailable):
        store.accept([impression("b", surface=big)])
    store._written.execute("PRAGMA max_page_count = 100000")  # type: ignore[attr-defined]
    assert store.accept([impression("a"), impression("b", surface=big)]) == [False, True]
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "state.db",
        "sqlite://x",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://x",
        "redis://",
        "sqlite:////no/dir/x.db",
    ],
)
def test_a_store_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="store="):
        open_store(url, LIMITS)


def test_a_redis_that_does_not_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="start redis-server"):
        open_store("redis://127.0.0.1:1/0", LIMITS)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    with pytest.raises(ConfigError, match="not a database"):
        open_store(f"sqlite:///{tmp_path}/junk.db", LIMITS)


@given(st.integers(-(2**63), 2**63 - 1) | st.text())
def test_id_keys_are_one_to_one(value: int | str) -> None:
    assert id_from_key(id_key(value)) == value


@settings(max_examples=50)
@given(st.integers(1, 10**11), st.integers(0, 10**13), st.integers(0, 10**11))
def test_a_window_remembers_at_least_its_ttl_and_little_more(ttl_ms: int, at_ms: int, age_ms: int) -> None:
    window = Window(ttl_ms)
    alive = window.bucket(at_ms) in window.live(at_ms + age_ms)
    if age_ms <= ttl_ms:
        assert alive
    if age_ms > ttl_ms + 2 * window.bucket_ms + Window.BUCKETS:
        assert not alive
    assert window.expires_ms(window.bucket(at_ms)) > at_ms + ttl_ms


def test_records_survive_encoding() -> None:
    event = impression("a", marks=((Mark.hidden_video, 5), (Mark.followed_creator, "x")), watch_ms=3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=EventRecord) == event
