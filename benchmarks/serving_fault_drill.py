"""Breaks the server in every way that is to be expected, under load, and checks what it had promised.

    python benchmarks/serving_fault_drill.py WORK [only=swaps,kills,…] [times=30] [soak=20000] [seed=1]

Publishes a small market into WORK (kept for the next time). ``times`` is how often each fault happens,
``soak`` the number of requests over which memory must stay flat. Exit code 1 where a promise was broken: an
acknowledged event lost, a video shown twice in a feed, a page that changed, a bundle that was never live, a
5xx other than 503. The store is SQLite; Redis where it is the store that dies.
"""

import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.serving_damage import limit_files, running_redis, ways_to_damage
from benchmarks.serving_load_ledger import Crowd, Ledger
from benchmarks.serving_world import Server, SmallWorld, point_at, small_world, wait_for

OVERLOADED = frozenset({200, 503})


class Drill:
    """One world, one scratch folder, and how hard to try."""

    def __init__(self, world: SmallWorld, folder: Path, *, times: int, soak: int, seed: int) -> None:
        self.world, self.folder = world, folder
        self.times, self.soak_requests, self.seed = times, soak, seed
        self.bundles = folder / "bundles"
        shutil.copytree(world.bundles, self.bundles)
        self.known = frozenset(world.names)

    def server(self, name: str, *words: str, store: str | None = None, port: int = 0) -> Server:
        """A server with a folder of its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        fixed = [f"warm_from={self.world.market}", "poll_s=0.1", "feed.budget_ms=30000", "memory_limit_gb=1"]
        return Server(
            self.bundles, store or f"sqlite:///{folder}/state.db", folder, [*fixed, *words], port=port
        )

    # each fault returns what it saw, in words; what broke is in the ledger

    def swaps(self, ledger: Ledger) -> str:
        """``CURRENT`` moves back and forth; no request notices, and none gets the old one afterwards."""
        server = self.server("swaps")
        client, stale = server.client(), 0
        with Crowd(server, ledger, 4, self.seed, known=self.known):
            for number in range(self.times):
                name = self.world.names[(number + 1) % 2]
                point_at(self.bundles, name)
                wait_for(f"bundle {name}", lambda name=name: _serving(client) == name)
                page = client.post("/v1/feed", {"user_id": 1, "page_size": 3}).json()
                stale += page["bundle"] != name
        if stale:
            ledger.tell(f"{stale} pages from the bundle before")
        return _ended(server, ledger, f"{self.times} swaps")

    def corrupt(self, ledger: Ledger) -> str:
        """What is published is damaged: it is refused, and what is served stays."""
        server = self.server("corrupt")
        client, live = server.client(), _serving(server.client())
        (other,) = self.known - {live}
        ways = ways_to_damage(self.bundles, other)
        with Crowd(server, ledger, 4, self.seed, known=frozenset({live})):
            for number, damage in enumerate(ways, 1):
                damage()
                wait_for(f"refusal {number}", lambda number=number: _refusals(client) >= number)
        if _serving(client) != live:
            ledger.tell("a damaged bundle is served")
        shutil.rmtree(self.bundles)
        shutil.copytree(self.world.bundles, self.bundles)
        return _ended(server, ledger, f"{len(ways)} damaged bundles refused")

    def kills(self, ledger: Ledger) -> str:
        """SIGKILL at random moments; a new process on the same store knows all that was acknowledged."""
        dice, server = random.Random(self.seed), self.server("kills")
        served = 0.0
        with Crowd(
            server, ledger, 4, self.seed, mortal=True, known=self.known, pages_per_feed=40, page_size=2
        ):
            for _ in range(self.times):
                moment = dice.uniform(0.05, 1.0)
                time.sleep(moment)
                server.kill()
                again = self.server("kills", port=server.port)
                server.process = again.process
                served += moment
        ledger.audit(server)
        return _ended(server, ledger, f"{self.times} SIGKILLs within {served:.0f} s of service")

    def store(self, ledger: Ledger) -> str:
        """Redis is killed and comes back; meanwhile 503, afterwards all that was acknowledged."""
        with running_redis(self.folder / "redis") as redis:
            server = self.server("store", store=f"redis://127.0.0.1:{redis.port}/0")
            client = server.client()
            with Crowd(server, ledger, 4, self.seed, allowed=OVERLOADED, known=self.known):
                for _ in range(max(1, self.times // 5)):
                    _wait_for_answers(ledger, 20)
                    redis.kill()
                    wait_for("503 without a store", lambda: client.send("GET", "/readyz").status == 503)
                    if client.send("GET", "/healthz").status != 200:
                        ledger.tell("not alive without a store")
                    redis.start()
                    wait_for("the store to be back", lambda: client.send("GET", "/readyz").status == 200)
            ledger.audit(server)
            return _ended(server, ledger, f"store killed {max(1, self.times // 5)} times", tracebacks=False)

    def disk(self, ledger: Ledger) -> str:
        """No file may grow (RLIMIT_FSIZE, while it runs), then it may again; the log lacks nothing."""
        folder = self.folder / "disk"
        server = self.server("disk", f"log={folder}/log", "log_every_s=0.2")
        client, rounds = server.client(), max(1, self.times // 10)
        with Crowd(server, ledger, 4, self.seed, allowed=OVERLOADED, known=self.known):
            for _ in range(rounds):
                _wait_for_answers(ledger, 20)
                limit_files(server.process.pid, 4096)
                wait_for("503 on a full disk", lambda: client.send("GET", "/readyz").status == 503)
                limit_files(server.process.pid, resource.RLIM_INFINITY)
                wait_for("room again", lambda: client.send("GET", "/readyz").status == 200)
            failures = _metric(client, "shopreel_log_failures_total")
        ledger.audit(server)
        what = f"disk full {rounds} times, {failures:.0f} failed attempts to write the log"
        told = _ended(server, ledger, what, tracebacks=False)
        lost = _compare_log(folder / "log", ledger)
        return f"{told}; served log: {lost}"

    def clock(self, ledger: Ledger) -> str:
        """The server's clock jumps by hours and days, back and forth, from one start to the next."""
        jumps = [0, 2, -3, 20, -20, 1][: max(2, self.times)]
        for number, hours in enumerate(jumps):
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600 * hours))
            server = self.server("clock", f"as_of={moment}")
            with Crowd(server, ledger, 2, self.seed + number, known=self.known):
                _wait_for_answers(ledger, 20)
            ledger.audit(server)
            _ended(server, ledger, "")
        return f"{len(jumps)} jumps of the clock, up to 40 h at once; {ledger.counts}"

    def flood(self, ledger: Ledger) -> str:
        """Five times as many at once as are taken in: 503 for the rest, and health checks are answered."""
        capacity = 8
        server = self.server("flood", f"http.max_in_flight={capacity}", "http.threads=4")
        client, slowest = server.client(), 0.0
        with Crowd(server, ledger, 5 * capacity, self.seed, allowed=OVERLOADED, known=self.known):
            until = time.monotonic() + min(20.0, max(2.0, self.times / 3))
            while time.monotonic() < until:
                started = time.monotonic()
                if client.send("GET", "/healthz").status != 200:
                    ledger.tell("not alive in a flood")
                slowest = max(slowest, time.monotonic() - started)
                time.sleep(0.05)
        if not ledger.statuses[503]:
            ledger.tell("nobody was turned away")
        ledger.audit(server)
        return _ended(server, ledger, f"5 × {capacity} clients; slowest health check {1000 * slowest:.0f} ms")

    def drain(self, ledger: Ledger) -> str:
        """SIGTERM under load: whatever was taken in is answered, the exit code is 0."""
        rounds, exits = max(1, self.times // 10), []
        for number in range(rounds):
            server = self.server("drain")
            with Crowd(server, ledger, 4, self.seed + number, mortal=True, known=self.known):
                _wait_for_answers(ledger, 20)
                exits.append(server.stop())
        if any(exits):
            ledger.tell(f"exit codes {exits}")
        server = self.server("drain")
        ledger.audit(server)
        return _ended(server, ledger, f"{rounds} times stopped under load, exit codes {set(exits)}")

    def soak(self, ledger: Ledger) -> str:
        """Memory stays flat over many requests of ever new users."""
        server = self.server("soak", "memory.history_steps=64", "feed.candidates=30")
        samples: list[tuple[int, float]] = []
        users = max(40, self.soak_requests // 10)
        with Crowd(server, ledger, 4, self.seed, known=self.known, users=users) as crowd:
            while crowd.sent < self.soak_requests:
                time.sleep(0.5)
                samples.append((crowd.sent, server.memory_mb()))
                if ledger.broken:
                    break
                ledger.pages.clear()  # judged page by page already
                ledger.acknowledged.clear()
        tenths = [
            _median([mb for sent, mb in samples if tenth <= 10 * sent / self.soak_requests < tenth + 1])
            for tenth in range(10)
        ]
        if tenths[-1] > 1.05 * tenths[1] + 10:
            ledger.tell(f"memory grew from {tenths[1]:.0f} to {tenths[-1]:.0f} MB")
        told = " ".join(f"{mb:.0f}" for mb in tenths)
        return _ended(server, ledger, f"{crowd.sent} requests; MB, median of every tenth of them: {told}")


FAULTS: dict[str, Callable[[Drill, Ledger], str]] = {
    name: getattr(Drill, name)
    for name in ("swaps", "corrupt", "kills", "store", "disk", "clock", "flood", "drain", "soak")
}


def main(work: str, *words: str) -> int:
    """Run the drill; the numbers go to standard output."""
    options: dict[str, Any] = {"only": ",".join(FAULTS), "times": 30, "soak": 20_000, "seed": 1}
    options |= {name: value for name, _, value in (word.partition("=") for word in words)}
    world = small_world(Path(work))
    failed = 0
    for name in options["only"].split(","):
        with tempfile.TemporaryDirectory() as folder:
            numbers = {key: int(options[key]) for key in ("times", "soak", "seed")}
            drill, ledger = Drill(world, Path(folder), **numbers), Ledger()
            started = time.monotonic()
            try:
                said = FAULTS[name](drill, ledger)
            except (OSError, HTTPException, subprocess.SubprocessError, RuntimeError) as error:
                ledger.tell(f"the drill itself failed: {error!r}")
                said = "not finished"
            verdict = "kept" if not ledger.broken else f"BROKEN {len(ledger.broken)} times"
            print(f"{name:8} {verdict}  {time.monotonic() - started:4.0f} s  {said}", flush=True)
            for what in ledger.broken[:5]:
                print(f"         {what}", flush=True)
            failed += bool(ledger.broken)
    return int(failed > 0)


def _ended(server: Server, ledger: Ledger, what: str, *, tracebacks: bool = True) -> str:
    """Stop the server; it must have ended well and, but for a store that failed it, logged no traceback."""
    code = server.stop()
    if code:
        ledger.tell(f"exit code {code}")
    faults = server.faults() if tracebacks else []
    for fault in faults[:3]:
        ledger.tell(f"in the log: {fault[:150]}")
    return f"{what}; {ledger.counts}"


def _metric(client: Any, name: str) -> float:
    text = client.send("GET", "/metrics").body.decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def _wait_for_answers(ledger: Ledger, more: int) -> None:
    wanted = ledger.statuses[200] + more
    wait_for(f"{more} more answers", lambda: ledger.statuses[200] >= wanted)


def _serving(client: Any) -> str:
    text = client.send("GET", "/metrics").body.decode()
    (name,) = (
        line.split('"')[1]
        for line in text.splitlines()
        if line.startswith("shopreel_bundle{") and not line.endswith(" 0.0")
    )
    return str(name)


def _refusals(client: Any) -> float:
    return _metric(client, 'shopreel_bundle_swaps_total{result="refused"}')


def _compare_log(log: Path, ledger: Ledger) -> str:
    """The Parquet log against the ledger: every acknowledged event and every page, once."""
    events, served = pq.read_table(log / "events"), pq.read_table(log / "served")
    keys = list(zip(events["request_id"].to_pylist(), events["video_id"].to_pylist(), strict=True))
    wanted = {(event["request_id"], event["video_id"]) for event in ledger.acknowledged.values()}
    if len(set(keys)) != len(keys) or not wanted <= set(keys):
        ledger.tell(f"log: {len(keys)} events, {len(set(keys))} distinct, {len(wanted - set(keys))} missing")
    slots = list(zip(served["request_id"].to_pylist(), served["position"].to_pylist(), strict=True))
    shown = {
        (page["request_id"], video["position"])
        for pages in ledger.pages.values()
        for page in pages
        for video in page["videos"]
    }
    if len(set(slots)) != len(slots) or not shown <= set(slots):
        ledger.tell(f"log: {len(slots)} slots, {len(set(slots))} distinct, {len(shown - set(slots))} missing")
    return f"{len(keys)} events and {len(slots)} slots, each once, none missing"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
