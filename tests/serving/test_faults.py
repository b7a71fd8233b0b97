"""Short forms of the fault drill (benchmarks/serving_fault_drill.py), and the clock that jumps."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.serving_fault_drill import FAULTS, Drill
from benchmarks.serving_load_ledger import Ledger
from benchmarks.serving_world import SmallWorld
from serving.schema import EventsRequest, EventsResponse, FeedRequest, FeedResponse
from tests.serving.conftest import Published
from tests.serving.fake_world import NOW, World, make_world

HOUR_MS = 3_600_000


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["disk", "flood", "drain"])
def test_what_was_promised_is_kept_whatever_breaks(published: Published, tmp_path: Path, fault: str) -> None:
    world = SmallWorld(published.market, published.bundles, (published.live, published.other))
    ledger = Ledger()
    FAULTS[fault](Drill(world, tmp_path, times=1, soak=0, seed=1), ledger)
    assert ledger.broken == []
    assert ledger.statuses[200] > 2
    assert ledger.acknowledged


def feed(world: World, cursor: str | None) -> FeedResponse:
    request = FeedRequest(user_id=5, cursor=cursor, page_size=4)
    return msgspec.json.decode(world.service.feed(request), type=FeedResponse)


def send(world: World, name: str, video: int | str) -> EventsResponse:
    event = {"type": "impression", "event_id": name, "user_id": 5, "video_id": video}
    request = msgspec.convert({"events": [event]}, EventsRequest)
    return msgspec.json.decode(world.service.events(request), type=EventsResponse)


def test_a_clock_that_jumps_repeats_no_video_and_takes_no_event_twice(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    page = feed(world, None)
    shown = [video.video_id for video in page.videos]
    for number, hours in enumerate((0, 3, -17, 2, -1, 0, 6, -16)):
        world.now_ms = NOW + hours * HOUR_MS
        if number == 4:
            world.restart()
        assert send(world, f"e{number}", shown[-1]).accepted == 1
        assert send(world, f"e{number}", shown[-1]).duplicates == 1
        page = feed(world, page.cursor)  # the same feed goes on, and another one begins
        shown += [video.video_id for video in (*page.videos, *feed(world, None).videos)]
        assert len(set(shown)) == len(shown)
    assert len(shown) == 4 + 8 * 8
    world.close()
