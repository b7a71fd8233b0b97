"""Several processes behind one socket: all serve, one that dies comes back, none outlives the parent."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.serving_world import Server, wait_for
from data.errors import ConfigError
from serving.metrics import METRICS_DIRECTORY
from serving.worker_processes import run_workers
from tests.serving.conftest import Published


def idle(folder: Path, number: int, ready: Callable[[], None]) -> None:
    """Leave a file named by number and process, then wait for SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    (folder / f"{number}-{os.getpid()}").touch()
    ready()
    stop.wait(60)
    (folder / f"{number}-{os.getpid()}").unlink()


def refuse(number: int, ready: Callable[[], None]) -> None:
    raise ConfigError("store=x: no such store; give another")


def vanish(number: int, ready: Callable[[], None]) -> None:
    os._exit(7)


def running(folder: Path) -> dict[int, int]:
    """Process ids by number."""
    return {int(number): int(pid) for number, pid in (path.name.split("-") for path in folder.iterdir())}


def test_a_worker_that_dies_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    seen: list[dict[int, int]] = []

    def meddle() -> None:
        seen.append(running(tmp_path))
        victim = seen[0][1]
        os.kill(victim, signal.SIGKILL)
        (tmp_path / f"1-{victim}").unlink()
        wait_for("the second worker to come back", lambda: set(running(tmp_path)) == {0, 1})
        seen.append(running(tmp_path))
        os.kill(os.getpid(), signal.SIGTERM)

    meddler = threading.Thread(target=meddle)
    run_workers(partial(idle, tmp_path), 2, on_ready=meddler.start, shutdown_s=10)
    meddler.join()
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] != seen[1][1]
    assert list(tmp_path.iterdir()) == []
    assert METRICS_DIRECTORY not in os.environ


def test_what_keeps_a_worker_from_serving_is_the_parents_error() -> None:
    with pytest.raises(ConfigError, match="no such store"):
        run_workers(refuse, 1, on_ready=pytest.fail, shutdown_s=5)
    with pytest.raises(RuntimeError, match="worker 0 ended with 7 before it served"):
        run_workers(vanish, 1, on_ready=pytest.fail, shutdown_s=5)


PARENT = """
from functools import partial
from pathlib import Path
from serving.worker_processes import run_workers
from tests.serving.test_worker_processes import idle
if __name__ == "__main__":
    run_workers(partial(idle, Path({folder!r})), 1, on_ready=lambda: print("ready", flush=True), shutdown_s=5)
"""


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=str(tmp_path / "workers")))
    home = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(home)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, cwd=home)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    assert len(running(tmp_path / "workers")) == 1
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for("the worker to end", lambda: not running(tmp_path / "workers"))


@pytest.mark.slow
def test_two_workers_serve_one_feed(published: Published, tmp_path: Path) -> None:
    words = ["workers=2", "feed.budget_ms=30000", "http.requests_per_second=0", "poll_s=0.1"]
    server = Server(published.bundles, f"sqlite:///{tmp_path}/state.db", tmp_path, words)
    shown: list[int] = []
    cursor: dict[str, str] = {}
    for _ in range(12):  # every page over a connection of its own, and so by either worker
        client = server.client()
        page = client.post("/v1/feed", {"user_id": 1, "page_size": 4, **cursor}).json()
        again = client.post("/v1/feed", {"user_id": 1, "page_size": 4, **cursor}).json() if cursor else page
        client.close()
        assert again == page
        shown += [video["video_id"] for video in page["videos"]]
        cursor = {"cursor": page["cursor"]}
    assert len(set(shown)) == len(shown) == 48
    client = server.client()
    text = client.send("GET", "/metrics").body.decode()
    assert 'shopreel_requests_total{route="/v1/feed",status="200"} 23.0' in text, "all workers count together"
    assert f'shopreel_bundle{{bundle="{published.live}"}} 2.0' in text
    client.close()
    with socket.socket() as idle_client:
        idle_client.connect(("127.0.0.1", server.port))
        time.sleep(0.05)
        assert server.stop() == 0
    assert {line.get("worker") for line in server.log()} >= {0, 1}
    assert server.faults() == []
