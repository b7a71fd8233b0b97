"""What was served comes back as a dataset: whole, exactly once, and good for ``shopreel prepare``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from data.contract import open_dataset
from data.errors import ConfigError
from serving.exploration import ExplorationPreferences
from serving.log_tables import number_of
from serving.log_writer import LogThread, LogWriter
from serving.schema import EventsRequest, FeedRequest, FeedResponse
from shopreel import run_command
from tests.serving.fake_world import NOW, World, fake_bundle, make_world

HOUR_MS = 3_600_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "store").mkdir()
    exploration = ExplorationPreferences((2,), 20, 0.5, 1.0)
    world = make_world(tmp_path / "store", exploration=exploration, page_size=5)
    yield world
    world.close()


def writer(world: World, folder: Path) -> LogWriter:
    return LogWriter(folder / "log", world.store, world.deployment.live, world.metrics)


def feed(world: World, user: Any) -> FeedResponse:
    return msgspec.json.decode(world.service.feed(FeedRequest(user_id=user, market="US")), type=FeedResponse)


def send(world: World, *events: dict[str, Any]) -> None:
    body = msgspec.json.encode({"events": list(events)})
    world.service.events(msgspec.json.decode(body, type=EventsRequest))


def watch(page: FeedResponse, user: Any, position: int, **labels: Any) -> dict[str, Any]:
    video = page.videos[position].video_id
    event = {"type": "impression", "event_id": f"{page.request_id}:{position}", "request_id": page.request_id}
    return event | {"user_id": user, "video_id": video, "position": position, "surface": "feed"} | labels


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "log" / table).to_pylist()
    return found


def test_impressions_carry_the_propensity_of_their_slot(world: World, tmp_path: Path) -> None:
    log = writer(world, tmp_path)
    page = feed(world, 5)
    send(
        world,
        *(watch(page, 5, position, watch_ms=1000 * position, like=position == 2) for position in range(5)),
        {"type": "action", "event_id": "buy", "user_id": 5, "video_id": 6, "action": "purchase",
         "product_id": 6, "order_value_minor": 99, "currency": "USD", "request_id": page.request_id},
        {"type": "impression", "event_id": "elsewhere", "user_id": 5, "video_id": 50},
        watch(page, 6, 1) | {"event_id": "somebody else's page"},
    )  # fmt: skip
    assert log.write() == 9
    assert log.write() == 0
    events = rows(tmp_path, "events")
    assert len(events) == 7
    by_request = [row for row in events if row["request_id"] == page.request_id and row["user_id"] == 5]
    for row, video in zip(by_request, page.videos, strict=True):
        assert (row["video_id"], row["position"]) == (video.video_id, video.position)
        assert row["propensity"] == video.propensity
        assert (row["policy"], row["surface"], row["market"]) == ("bundle-a", "feed", "US")
        assert (row["watch_ms"], row["like"]) == (1000 * video.position, video.position == 2)
        assert "click" not in row  # nothing was ever known of it
    assert 0 < page.videos[2].propensity < 1
    assert [row["propensity"] for row in events if row not in by_request] == [None, None]
    (action,) = rows(tmp_path, "actions")
    assert (action["action"], action["product_id"], action["order_value_minor"]) == ("purchase", 6, 99)
    served = rows(tmp_path, "served")
    assert [row["video_id"] for row in served] == [video.video_id for video in page.videos]
    assert [row["propensity"] for row in served] == [video.propensity for video in page.videos]
    assert served[2]["source"] == "exploration"


def test_every_row_is_written_once_whatever_dies(world: World, tmp_path: Path) -> None:
    log = writer(world, tmp_path)
    pages = [feed(world, user) for user in range(1, 6)]
    send(world, watch(pages[0], 1, 0))
    log.write()
    mark = (tmp_path / "log" / "written.json").read_bytes()
    send(world, watch(pages[1], 2, 0), watch(pages[1], 2, 1, click=True))
    feed(world, 7)
    log.write()
    (tmp_path / "log" / "written.json").write_bytes(mark)  # as if it had died between parts and mark
    (tmp_path / "log" / "events" / ".part.draft").write_bytes(b"half")
    send(world, watch(pages[2], 3, 0, like=False))
    world.restart()
    again = writer(world, tmp_path)
    assert not list((tmp_path / "log" / "events").glob(".*"))
    again.write()
    assert [row["user_id"] for row in rows(tmp_path, "events")] == [1, 2, 2, 3]
    assert [(row["click"], row["like"]) for row in rows(tmp_path, "events")] == [
        (None, None), (None, None), (True, None), (None, False),
    ]  # fmt: skip
    parts = (tmp_path / "log" / "events").glob("*.parquet")
    assert len({tuple(pq.read_schema(part).names) for part in parts}) == 1
    assert len(rows(tmp_path, "served")) == 30
    assert len({(row["request_id"], row["position"]) for row in rows(tmp_path, "served")}) == 30


def test_a_directory_that_is_not_ours_is_refused(world: World, tmp_path: Path) -> None:
    writer(world, tmp_path)
    (tmp_path / "other").mkdir()
    other = make_world(tmp_path / "other")
    with pytest.raises(ConfigError, match="another store"):
        writer(other, tmp_path)
    other.close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="give a new directory"):
        LogWriter(tmp_path / "full", world.store, world.deployment.live, world.metrics)


def test_ids_of_another_type_do_not_break_the_columns(world: World, tmp_path: Path) -> None:
    log = writer(world, tmp_path)
    page = feed(world, "nobody")
    send(
        world,
        watch(page, "nobody", 0, product_id="text"),
        {"type": "impression", "event_id": "no such video", "user_id": 5, "video_id": "text"},
    )
    log.write()
    (row,) = rows(tmp_path, "events")
    assert row["user_id"] == number_of("nobody") < 0
    assert row["product_id"] is None
    assert row["propensity"] == 1.0
    assert {row["user_id"] for row in rows(tmp_path, "served")} == {number_of("nobody")}


def test_text_ids_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    world = make_world(tmp_path / "store", fake_bundle(20, text_ids=True), page_size=3)
    page = feed(world, 5)
    log = writer(world, tmp_path)
    send(world, watch(page, 5, 0))
    log.write()
    assert [row["video_id"] for row in rows(tmp_path, "events")] == ["v005"]
    world.close()


def test_what_was_served_can_be_prepared_for_training(world: World, tmp_path: Path) -> None:
    log = writer(world, tmp_path)
    world.now_ms = NOW - NOW % (24 * HOUR_MS)
    for day in range(4):
        for user in range(1, 9):
            page = feed(world, user)
            world.now_ms += 60_000
            send(world, *(watch(page, user, place, long_view=place % 2 == 0) for place in range(5)))
            like = {"type": "action", "event_id": f"{day}-{user}", "user_id": user, "action": "like"}
            send(world, like | {"video_id": page.videos[0].video_id, "request_id": page.request_id})
        world.now_ms += 24 * HOUR_MS - 8 * 60_000
    thread = LogThread(log, world.metrics, 0.01)
    thread.close()
    dataset = open_dataset(tmp_path / "log")
    assert dataset.scan("events").count_rows() == 160
    dates = "split.validation=2023-11-16 split.test=2023-11-17 split.end=2023-11-18"
    run_command("prepare", [f"dataset={tmp_path}/log", f"out={tmp_path}/prepared", *dates.split()])
    assert (tmp_path / "prepared" / "prepared.json").is_file()


def test_a_full_disk_stops_no_server_and_loses_nothing(world: World, tmp_path: Path) -> None:
    log = writer(world, tmp_path)
    feed(world, 5)
    (tmp_path / "log" / "served").write_text("a file where a folder must be")
    LogThread(log, world.metrics, 0.01).close()
    assert "shopreel_log_failures_total 0.0" not in world.metrics.text().decode()
    (tmp_path / "log" / "served").unlink()
    LogThread(log, world.metrics, 0.01).close()
    assert len(rows(tmp_path, "served")) == 5
