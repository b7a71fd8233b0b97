"""What the benchmarks of the server share: a market with two bundles, and ``shopreel serve`` as a process."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DATES = ("split.validation=2026-03-06", "split.test=2026-03-07", "split.end=2026-03-08")


@dataclass(frozen=True, slots=True)
class SmallWorld:
    """A simulated market of 300 videos, and a folder of two bundles, both with a trained ranker."""

    market: Path
    bundles: Path
    names: tuple[str, str]


def shopreel(command: str, *words: str) -> None:
    """Run one command; its output goes to this process's standard error."""
    subprocess.run([sys.executable, "-m", "shopreel", command, *words], check=True, stdout=sys.stderr)


def small_world(root: Path) -> SmallWorld:
    """Simulate, train for seconds and publish twice into ``root``, unless that was done before."""
    market, prepared, bundles = root / "market", root / "prepared", root / "bundles"
    towers, ranker = root / "towers", root / "ranker"
    if not (bundles / "CURRENT").is_file():
        root.mkdir(parents=True, exist_ok=True)
        words = "users=120 videos=300 products=60 days=6 seed=3 overwrite=true"
        shopreel("simulate", f"out={market}", *words.split())
        shopreel("prepare", f"dataset={market}", f"out={prepared}", "overwrite=true", *_DATES)
        quick = ("max_minutes=0.5", "threads=1", "overwrite=true", f"prepared={prepared}")
        small = ("model.dim=16", "model.layers=1", "model.max_steps=32", "model.max_epochs=2")
        shopreel("train", "model=two_tower", f"out={towers}", *quick, *small)
        shopreel("train", "model=ranker", f"out={ranker}", *quick, "model.max_epochs=2")
        for days in (1, 3):
            shopreel(
                "publish", f"two_tower={towers}", f"ranker={ranker}", f"dataset={market}", f"out={bundles}",
                "min_distinct_share=0.001", f"popularity_days={days}",
            )  # fmt: skip
    live = (bundles / "CURRENT").read_text().strip()
    (other,) = [path.name for path in bundles.glob("bundle-*") if path.name != live]
    return SmallWorld(market, bundles, (live, other))


def point_at(bundles: Path, name: str) -> None:
    """Write ``CURRENT`` as a deployment does, whatever ``name`` is."""
    draft = bundles / ".current"
    draft.write_text(f"{name}\n")
    draft.replace(bundles / "CURRENT")


@dataclass(slots=True)
class Answer:
    """One HTTP answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass
class Client:
    """One connection that is kept open, and opened again after it broke. Not for several threads."""

    port: int
    timeout_s: float = 30.0
    _connection: http.client.HTTPConnection | None = None

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request. Raises ``OSError`` or ``HTTPException`` where no whole answer came back."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        try:
            self._connection.request(method, path, body, headers or {})
            answer = self._connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            raise

    def post(self, path: str, body: Any) -> Answer:
        """A JSON request."""
        return self.send("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


@dataclass
class Server:
    """``shopreel serve`` on ``port`` (0: a free one); its log lines go to ``folder/server.log``."""

    bundles: Path
    store: str
    folder: Path
    words: Sequence[str] = ()
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    _clients: list[Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._from = self.log_path.stat().st_size if self.log_path.exists() else 0
        command = [
            *self.prefix, sys.executable, "-m", "shopreel", "serve",
            f"bundles={self.bundles}", f"store={self.store}", f"port={self.port}", *self.words,
        ]  # fmt: skip
        with self.log_path.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=os.environ | self.environment,
                start_new_session=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        first = self.process.stdout.readline().decode()
        if not first.startswith("shopreel serves at http://"):
            self.process.wait()
            raise RuntimeError(f"the server did not start; see {self.log_path}")
        self.port = int(first.split()[3].rstrip("/").rsplit(":", 1)[1])

    @property
    def log_path(self) -> Path:
        """Where the JSON lines of this server and of those before it in the folder are."""
        return self.folder / "server.log"

    def client(self, timeout_s: float = 30.0) -> Client:
        """A client of this server, closed with it at the latest."""
        self._clients.append(Client(self.port, timeout_s))
        return self._clients[-1]

    def log(self) -> list[dict[str, Any]]:
        """The log lines of this server alone; what is no JSON object comes as ``{"text": …}``."""
        with self.log_path.open("rb") as file:
            file.seek(self._from)
            lines = file.read().decode("utf-8", "replace").splitlines()
        return [
            json.loads(line) if line.startswith("{") and line.endswith("}") else {"text": line}
            for line in lines
        ]

    def faults(self) -> list[str]:
        """Messages of log lines with a traceback, and of what is no log line at all."""
        return [
            str(line.get("message", line.get("text")))
            for line in self.log()
            if "exception" in line or "text" in line
        ]

    def memory_mb(self) -> float:
        """Proportional set size of the process and its children, in MB (Linux)."""
        total = 0
        for pid in [self.process.pid, *_children(self.process.pid)]:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total / 1024

    def kill(self) -> None:
        """SIGKILL the process and its children, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self._reap()

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._reap()

    def _reap(self) -> int:
        for client in self._clients:
            client.close()
        code = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def _children(pid: int) -> list[int]:
    try:
        own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in _children(child)]


def wait_for(what: str, check: Any, timeout_s: float = 60.0) -> None:
    """Return once ``check()`` is true. Raises ``TimeoutError`` naming ``what``."""
    until = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.02)
