"""The shadow sees what was asked and is never seen: not in an answer, and not in how long it took."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from data.assignment import within
from serving.metrics import Metrics
from serving.schema import FeedRequest, FeedResponse
from serving.shadow import Shadow, ShadowLog, ShadowSettings
from tests.serving.fake_world import CircleRanker, World, fake_bundle, make_world

ALL = ShadowSettings(share=1.0, depth=8, load=1.0, max_queue=100)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "store").mkdir()
    world = make_world(tmp_path / "store", page_size=4)
    yield world
    world.close()


def ask(world: World, user: int, cursor: str | None = None) -> FeedResponse:
    body = world.service.feed(FeedRequest(user_id=user, cursor=cursor))
    return msgspec.json.decode(body, type=FeedResponse)


def until(condition: Any) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true")


def count(metrics: Metrics, result: str) -> float:
    return metrics.shadow.labels(result)._value.get()


def test_what_the_shadow_would_have_shown_is_a_run_table(world: World, tmp_path: Path) -> None:
    second = fake_bundle(30, name="bundle-b")  # knows fewer videos
    log = ShadowLog(tmp_path / "shadow", part_rows=1)
    shadow = Shadow(lambda: second, ALL, log.write, world.metrics)
    world.shadow = shadow
    world.restart()
    shadow._metrics = world.metrics
    first = ask(world, 22)
    pages = [first, ask(world, 22, first.cursor)]
    assert [video.video_id for page in pages for video in page.videos] == [22, 23, 24, 25, 26, 27, 28, 29]
    until(lambda: count(world.metrics, "scored") == 2)
    shadow.close()
    log.flush()
    rows = pq.read_table(tmp_path / "shadow").to_pylist()
    runs = [[row for row in rows if row["request_id"] == page.request_id] for page in pages]
    assert [[row["video_id"] for row in run] for run in runs] == [
        [22, 23, 24, 25, 26, 27, 28, 29],
        [26, 27, 28, 29, 1, 2, 3, 4],  # what the first page showed is out of question here too
    ]
    assert [row["rank"] for row in runs[0]] == list(range(1, 9))
    assert [row["served_position"] for row in runs[0]] == [0, 1, 2, 3, None, None, None, None]
    assert {(row["stage"], row["bundle"]) for row in rows} == {("shadow", "bundle-b")}


def test_a_share_is_chosen_by_request_id(world: World) -> None:
    seen: list[str] = []
    some = ShadowSettings(share=0.3, depth=2, load=1.0, max_queue=1_000)
    shadow = Shadow(
        lambda: world.deployment.live,
        some,
        lambda table: seen.append(table["request_id"][0].as_py()),
        Metrics(),
    )
    world.shadow = shadow
    world.restart()
    asked = [ask(world, user).request_id for user in range(1, 41)]
    expected = [request_id for request_id in asked if within("shadow", request_id, 0.3)]
    until(lambda: len(seen) == len(expected))
    shadow.close()
    assert seen == expected
    assert 0 < len(expected) < 40


def test_a_shadow_that_hangs_or_fails_holds_nobody_up(world: World) -> None:
    second = fake_bundle(30, name="bundle-b")
    ranker = second.pipeline
    assert isinstance(ranker, CircleRanker)
    ranker.gate.clear()  # it hangs
    few = ShadowSettings(share=1.0, depth=2, load=1.0, max_queue=3)
    metrics = Metrics()
    shadow = Shadow(lambda: second, few, lambda table: None, metrics)
    plain = [[video.video_id for video in ask(world, user).videos] for user in range(1, 21)]
    world.shadow = shadow
    world.restart()
    begin = time.monotonic()
    world.now_ms += 10 * 86_400_000  # what was served lately is forgotten
    assert [[video.video_id for video in ask(world, user).videos] for user in range(1, 21)] == plain
    assert time.monotonic() - begin < 10
    assert 16 <= count(metrics, "dropped") <= 17  # three wait, and one may have been taken up
    ranker.fail = True
    ranker.gate.set()
    until(lambda: count(metrics, "failed") >= 3)
    assert count(metrics, "scored") == 0
    shadow.close()
    assert ask(world, 30).videos


def test_it_keeps_to_its_share_of_a_core(world: World) -> None:
    second = fake_bundle(30, name="bundle-b")
    done: list[float] = []

    def slow(table: object) -> None:
        time.sleep(0.02)
        done.append(time.monotonic())

    tenth = ShadowSettings(share=1.0, depth=2, load=0.1, max_queue=100)
    shadow = Shadow(lambda: second, tenth, slow, Metrics())
    world.shadow = shadow
    world.restart()
    for user in range(1, 6):
        ask(world, user)
    until(lambda: len(done) >= 3)
    shadow.close()
    gaps = [later - earlier for earlier, later in pairwise(done)]
    assert min(gaps) >= 0.18  # nine times as long as it worked


@pytest.mark.parametrize("fields", [{"share": 1.5}, {"load": 0.0}, {"depth": 0}, {"max_queue": 0}])
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs 0 <= share"):
        ShadowSettings(**({"share": 0.1, "depth": 1, "load": 0.1, "max_queue": 1} | fields))
