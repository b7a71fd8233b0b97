"""The command as a process: it starts, follows CURRENT, drains, dies and comes back with all it promised."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import ConfigError
from shopreel import main, run_command
from tests.serving.conftest import Published


class Process:
    """``shopreel serve`` on a free port; ``log`` holds its JSON lines once it has ended."""

    def __init__(self, published: Published, bundles: Path, folder: Path, *words: str) -> None:
        command = [
            sys.executable, "-m", "shopreel", "serve", f"bundles={bundles}", f"store=sqlite:///{folder}/state.db",
            "port=0", "poll_s=0.05", "memory_limit_gb=1", *words,
        ]  # fmt: skip
        self.errors = (folder / "log").open("a+b")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors)
        assert self.process.stdout is not None
        first = self.process.stdout.readline().decode()
        assert first.startswith("shopreel serves at http://"), self.log()
        self.url = first.split()[3].rstrip("/")

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def feed(self, **body: Any) -> Any:
        status, answer = self.call("/v1/feed", body)
        assert status == 200, answer
        return json.loads(answer)

    def log(self) -> list[Any]:
        self.errors.seek(0)
        return [json.loads(line) for line in self.errors.read().decode().splitlines()]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        status = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.lines = self.log()
        self.errors.close()
        return status


@pytest.fixture
def bundles(published: Published, tmp_path: Path) -> Path:
    """A copy of the folder of bundles that a test may break."""
    return Path(shutil.copytree(published.bundles, tmp_path / "bundles"))


def point_at(bundles: Path, name: str) -> None:
    draft = bundles / "draft"
    draft.write_text(f"{name}\n")
    draft.replace(bundles / "CURRENT")


def ids(page: Any) -> list[int]:
    return [video["video_id"] for video in page["videos"]]


@pytest.mark.slow
def test_a_server_that_is_killed_forgets_nothing_it_acknowledged(
    published: Published, bundles: Path, tmp_path: Path
) -> None:
    words = (f"warm_from={published.market}", "as_of=log")
    server = Process(published, bundles, tmp_path, *words)
    assert server.call("/readyz")[0] == 200
    user = json.loads(server.call("/demo/users")[1])["users"][0]
    assert user["steps"] > 0
    page = server.feed(user_id=user["user_id"], page_size=5)
    assert page["bundle"] == published.live
    assert page["degraded"] == []
    shown = ids(page)
    acknowledged: list[str] = []

    def send() -> None:
        for number in itertools.count():
            event = {"type": "impression", "event_id": f"e{number}", "user_id": "new", "video_id": shown[0]}
            try:
                status, _ = server.call("/v1/events", {"events": [event]})
            except OSError:
                return
            assert status == 200
            acknowledged.append(event["event_id"])

    sender = threading.Thread(target=send)
    sender.start()
    while len(acknowledged) < 20:
        assert sender.is_alive()
        time.sleep(0.02)
    server.end(signal.SIGKILL)
    sender.join()

    again = Process(published, bundles, tmp_path, *words)
    events = [
        {"type": "impression", "event_id": name, "user_id": "new", "video_id": shown[0]}
        for name in acknowledged
    ]
    _, answer = again.call("/v1/events", {"events": events})
    assert json.loads(answer) == {"accepted": 0, "duplicates": len(acknowledged)}
    following = again.feed(user_id=user["user_id"], page_size=5, cursor=page["cursor"])
    assert following["videos"]
    assert not set(ids(following)) & set(shown)
    assert again.feed(user_id=user["user_id"], page_size=9, cursor=page["cursor"]) == following
    assert again.end(signal.SIGTERM) == 0
    messages = [line["message"] for line in again.lines]
    assert messages[-1] == "stopped: every request in hand was answered"
    assert "the store knows users already; warm_from is left alone" in messages


@pytest.mark.slow
def test_bundles_are_swapped_under_load_and_broken_ones_refused(
    published: Published, bundles: Path, tmp_path: Path
) -> None:
    broken = bundles / ("bundle-" + "0" * 16)
    shutil.copytree(bundles / published.other, broken)
    tampered = bundles / published.other / "video_vectors.npy"
    server = Process(published, bundles, tmp_path, "feed.budget_ms=30000")
    pages: list[Any] = []
    stop = threading.Event()

    def scroll() -> None:
        cursor: dict[str, str] = {}
        while not stop.is_set():
            page = server.feed(user_id=1, page_size=3, **cursor)
            cursor = {"cursor": page["cursor"]} if page["videos"] else {}
            pages.append(page)

    def wait_for(bundle: str) -> None:
        while not pages or pages[-1]["bundle"] != bundle:
            assert reader.is_alive()
            time.sleep(0.02)

    def wait_for_refusals(count: int) -> None:
        while f'swaps_total{{result="refused"}} {count}.0' not in server.call("/metrics")[1].decode():
            assert reader.is_alive()
            time.sleep(0.05)

    reader = threading.Thread(target=scroll)
    reader.start()
    wait_for(published.live)
    for name in (published.other, published.live, published.other, published.live):
        point_at(bundles, name)
        wait_for(name)
    point_at(bundles, broken.name)  # a good bundle under a name that is not its content's
    wait_for_refusals(1)
    content = bytearray(tampered.read_bytes())
    content[-1] ^= 1
    tampered.unlink()
    tampered.write_bytes(bytes(content))
    point_at(bundles, published.other)  # one flipped byte
    wait_for_refusals(2)
    point_at(bundles, "nowhere")
    wait_for_refusals(3)
    stop.set()
    reader.join()
    assert pages[-1]["bundle"] == published.live
    assert server.end(signal.SIGINT) == 0
    refusals = [line["message"] for line in server.lines if "refused" in line["message"]]
    assert len(refusals) == 3
    assert "give the directory its name back" in refusals[0]
    assert "video_vectors.npy" in refusals[1]
    assert all(page["degraded"] == [] for page in pages)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bundles={folder}/none"], "make one with shopreel publish"),
        (["store=mysql://x"], "give sqlite:///PATH"),
        (["store=sqlite:////no/such/dir/x.db"], "make it first"),
        (["feed.page_size=101"], "is not within 1 … 100"),
        (["feed.budget_ms=0"], "must be at least 1"),
        (["slate.min_shopping_share=0.9", "slate.max_shopping_share=0.1"], "min_shopping_share"),
        (["exploration.uniform_share=0"], "uniform_share"),
        (["exploration.positions=[3,3]"], "names a position twice"),
        (["memory.seen_days=0"], "must be above 0"),
        (["cursor_secret=short"], "at least 16 characters"),
        (["http.api_keys=[short]"], "at least 16 characters"),
        (["as_of=log"], "give warm_from=DATASET"),
        (["as_of=yesterday"], "write it as 2026-03-16"),
        (["warm_from={folder}/none"], "no such directory"),
        (["port=70000"], "is not within 0 … 65535"),
        (["slate.creator_caps=1"], "creator_cap"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    published: Published, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"bundles={published.bundles}", f"store=sqlite:///{tmp_path}/state.db"]
    assert main(["serve", *given, *(word.format(folder=tmp_path) for word in words)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]
    assert len([line for line in told if line.startswith("shopreel serve:")]) == 1


def test_a_port_in_use_is_the_users_mistake(published: Published, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [f"bundles={published.bundles}", f"store=sqlite:///{tmp_path}/state.db", f"port={port}"]
        with pytest.raises(ConfigError, match=f"port={port}: Address already in use"):
            run_command("serve", words)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command configures logging for its process; here that is the tests'."""
    import logging

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


PLAN = """
experiments:
  model:
    arms:
      control: {weight: 1}
      other: {weight: 1, bundles: BUNDLES/OTHER}
campaigns:
  spring:
    videos: [VIDEO, no such video]
    starts: 2020-01-01T00:00:00Z
    ends: 2120-01-01T00:00:00Z
    impressions: {total: 1000000}
"""


@pytest.mark.slow
def test_plan_and_shadow_on_real_bundles(published: Published, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    video = pq.read_table(published.market / "videos.parquet")["video_id"][7].as_py()
    text = PLAN.replace("BUNDLES", str(published.bundles)).replace("OTHER", published.other)
    (tmp_path / "plan.yaml").write_text(text.replace("VIDEO", str(video)))
    out = tmp_path / "shadow"
    shadow = [f"shadow.bundles={published.bundles / published.other}", f"shadow.out={out}", "shadow.share=1"]
    words = [f"plan={tmp_path}/plan.yaml", "campaigns.positions=[1]", "shadow.load=1", *shadow]
    server = Process(published, published.bundles, tmp_path, *words)
    served: dict[str, str] = {}
    campaigns: list[str] = []
    for user in range(1, 41):
        page = server.feed(user_id=f"user {user}", page_size=4)
        served[page["experiments"]["model"]] = page["bundle"]
        campaigns += [video["campaign_id"] for video in page["videos"] if "campaign_id" in video]
    assert served == {"control": published.live, "other": published.other}
    status, body = server.call("/v1/campaigns")
    (told,) = json.loads(body)["campaigns"]
    assert (status, told["campaign_id"], told["missing_videos"]) == (200, "spring", ["no such video"])
    assert told["impressions"] == told["spent"] == len(campaigns)
    text = server.call("/metrics")[1].decode()
    assert f'shopreel_bundle{{bundle="{published.other}"}} 1.0' in text
    for stage in ("session", "state", "sources", "campaigns", "encode", "retrieve", "rank", "page", "commit"):
        assert f'shopreel_stage_seconds_count{{stage="{stage}"}}' in text
    # a plan that makes no sense changes nothing
    (tmp_path / "plan.yaml").write_text("experiments: [")
    time.sleep(0.3)
    assert server.feed(user_id="user 1", page_size=4)["experiments"]
    assert server.end(signal.SIGTERM) == 0
    assert any("plan refused" in line["message"] for line in server.lines)
    rows = pq.read_table(out).to_pylist()
    assert {row["bundle"] for row in rows} == {published.other}
    assert {row["stage"] for row in rows} == {"shadow"}
