"""Clients that scroll, watch and like, and the ledger of what the server promised them.

The ledger is the judge of the fault drill: whatever happened to the server, what it acknowledged must hold.
"""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from benchmarks.serving_world import Answer, Client, Server


@dataclass
class Ledger:
    """What clients were told. ``broken`` names every promise that was not kept; it must stay empty."""

    statuses: Counter[int] = field(default_factory=Counter)
    bundles: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)
    pages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, what: str) -> None:
        """Note a broken promise."""
        with self._lock:
            self.broken.append(what)

    def answered(self, answer: Answer, allowed: frozenset[int], seconds: float) -> bool:
        """Count an answer; whether it is a 200."""
        with self._lock:
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.latencies_ms.append(1000 * seconds)
        if answer.status not in allowed:
            self.tell(f"status {answer.status}: {answer.body[:120]!r}")
        if answer.status == 503 and not answer.headers.get("retry-after", "").isdigit():
            self.tell("503 without Retry-After")
        return answer.status == 200

    def page(self, session: str, page: dict[str, Any], known: frozenset[str] | None) -> None:
        """Keep a page of a session; none of its videos may have been on an earlier one."""
        with self._lock:
            before = self.pages.setdefault(session, [])
            shown = {video["video_id"] for other in before for video in other["videos"]}
            repeated = [video["video_id"] for video in page["videos"] if video["video_id"] in shown]
            before.append(page)
            self.bundles[page["bundle"]] += 1
            self.degraded.update(page["degraded"])
        if repeated:
            self.tell(f"session {session[:8]} was shown {repeated} twice")
        if known is not None and page["bundle"] not in known:
            self.tell(f"served from {page['bundle']}, which was never live")

    @property
    def counts(self) -> str:
        """One line of numbers."""
        told = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        pages = sum(map(len, self.pages.values()))
        cut = f", cut off {self.cut}" if self.cut else ""
        kept = f"{pages} pages of {len(self.pages)} feeds, {len(self.acknowledged)} events acknowledged"
        return f"{told}{cut}; {kept}"

    def audit(self, server: Server) -> None:
        """Ask the server, as it is now, whether it knows all that was acknowledged, as it was."""
        client = server.client()
        events = list(self.acknowledged.values())
        for start in range(0, len(events), 500):
            batch = events[start : start + 500]
            told = client.post("/v1/events", {"events": batch}).json()
            if told != {"accepted": 0, "duplicates": len(batch)}:
                self.tell(f"acknowledged events were lost: {told} of {len(batch)}")
        for session, pages in self.pages.items():
            for place, page in enumerate(pages[1:], 1):
                question = {"user_id": page["user_id"], "cursor": pages[place - 1]["cursor"], "page_size": 3}
                again = client.post("/v1/feed", question)
                kept = {key: value for key, value in page.items() if key != "user_id"}
                if again.status != 200 or again.json() != kept:
                    self.tell(f"page {place} of {session[:8]} is not what it was: {again.status}")
        client.close()


@dataclass
class Crowd:
    """``size`` clients on threads of their own, until stopped. ``allowed`` are the statuses they put up with.

    Where ``mortal``, the server may break connections off; a client then asks for the same page again.
    Every client is one user, or with ``users`` one of so many in each feed.
    """

    server: Server
    ledger: Ledger
    size: int
    seed: int = 0
    allowed: frozenset[int] = frozenset({200})
    mortal: bool = False
    known: frozenset[str] | None = None
    page_size: int = 5
    pages_per_feed: int = 6
    pause_s: float = 0.0
    users: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self.sent = 0
        self._threads = [threading.Thread(target=self._live, args=(number,)) for number in range(self.size)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _live(self, number: int) -> None:
        dice = random.Random(f"{self.seed}/{number}")
        client, user = Client(self.server.port), number % 40
        try:
            while not self._stop.is_set():
                name = f"{self.seed}-{number}-{dice.randrange(10**12)}"
                self._scroll(client, name, dice.randrange(self.users) if self.users else user, dice)
        except Exception as error:
            self.ledger.tell(f"a client gave up: {error!r}")
        finally:
            client.close()

    def _scroll(self, client: Client, name: str, user: int, dice: random.Random) -> None:
        """One feed of a few pages, with events about some of its videos."""
        cursor: dict[str, str] = {}
        for turn in range(self.pages_per_feed):
            body = {"user_id": user, "page_size": self.page_size, **cursor}
            page = self._ask(client, "/v1/feed", body, retry=bool(cursor))
            if page is None:
                return
            self.ledger.page(name, page | {"user_id": user}, self.known)
            if cursor and dice.random() < 0.2:
                again = self._ask(client, "/v1/feed", body, retry=True)
                if again is not None and again != page:
                    self.ledger.tell(f"a retry of page {turn} of {name} brought another page")
            if not page["videos"]:
                return
            cursor = {"cursor": page["cursor"]}
            self._watch(client, f"{name}-{turn}", user, page, dice)

    def _watch(self, client: Client, name: str, user: int, page: dict[str, Any], dice: random.Random) -> None:
        events = [
            {
                "type": "impression", "event_id": f"{name}-{place}", "user_id": user,
                "video_id": video["video_id"], "request_id": page["request_id"], "position": place,
                "watch_ms": dice.randrange(30_000), "like": dice.random() < 0.1,
            }
            for place, video in enumerate(page["videos"][:3])
        ]  # fmt: skip
        told = self._ask(client, "/v1/events", {"events": events}, retry=True)
        if told is not None:
            self.ledger.acknowledged.update({event["event_id"]: event for event in events})

    def _ask(self, client: Client, path: str, body: dict[str, Any], *, retry: bool) -> Any:
        """The JSON of a 200; None where there was none. With ``retry`` it is asked until it is answered."""
        while not self._stop.is_set():
            started = time.monotonic()
            self.sent += 1
            try:
                client.port = self.server.port
                answer = client.post(path, body)
            except (OSError, HTTPException):
                self.ledger.cut += 1
                if not self.mortal:
                    self.ledger.tell("a connection was broken off")
                time.sleep(0.05)
                if not retry:
                    return None
                continue
            if self.ledger.answered(answer, self.allowed, time.monotonic() - started):
                time.sleep(self.pause_s) if self.pause_s else None
                return answer.json()
            if not retry or answer.status not in (429, 503):
                return None
            time.sleep(0.05)
        return None
