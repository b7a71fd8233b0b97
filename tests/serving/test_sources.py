"""Sources keep to their quotas, and newcomers get what they were promised, whoever serves the pages."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.catalogue import CatalogueFacts
from serving.exact import NO_ROWS
from serving.exploration import ExplorationPreferences
from serving.schema import (
    Action,
    ActionEvent,
    EventsRequest,
    ExplainRequest,
    FeedRequest,
    FeedResponse,
    ImpressionEvent,
)
from serving.sources import NO_SOURCES, SourceQuotas, further_candidates
from serving.state.protocol import DAY_MS, Mark
from tests.serving.fake_world import LIMITS, NOW, World, fake_bundle, make_world, products_table, videos_table

HOUR_MS = DAY_MS // 24
EXPLORE = ExplorationPreferences((1,), 200, 0.5, 1.0)


def quotas(**more: Any) -> SourceQuotas:
    fields = {name: getattr(NO_SOURCES, name) for name in NO_SOURCES.__slots__} | {"fresh_days": 3.0} | more
    return SourceQuotas(**fields)


def ask(world: World, user: int, **more: Any) -> FeedResponse:
    body = world.service.feed(FeedRequest(user_id=user, **more))
    return msgspec.json.decode(body, type=FeedResponse)


def facts_of(publish_ms: list[int | None]) -> CatalogueFacts:
    count = len(publish_ms)
    videos = videos_table(range(1, count + 1), publish_ms=publish_ms)
    return CatalogueFacts.of(videos, products_table(count))


TIMES = st.lists(st.none() | st.integers(NOW - 5 * DAY_MS, NOW + DAY_MS), min_size=2, max_size=40)


@settings(max_examples=30)
@given(TIMES, st.floats(0.1, 6.0), st.lists(st.integers(1, 8), unique=True, max_size=4))
def test_recency_is_what_sorting_says(times: list[int | None], days: float, creators: list[int]) -> None:
    facts = facts_of(times)
    recency = facts.recency()
    by_age = sorted((-at, row) for row, at in enumerate(times, start=1) if at is not None and at <= NOW)
    fresh = [row for age, row in by_age if -age >= NOW - int(days * DAY_MS)]
    assert recency.fresh(NOW, days).tolist() == fresh
    mine = [row for _, row in by_age if facts.creator.code[row] in creators]
    found = recency.of_creators(np.array(creators, np.int64), NOW).tolist()
    assert sorted(found) == sorted(mine)
    ages = [times[row - 1] for row in found]
    assert ages == sorted(ages, reverse=True)


@settings(max_examples=60)
@given(
    TIMES,
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 6),
    st.lists(st.integers(1, 40), max_size=10),
    st.lists(st.integers(1, 40), unique=True, max_size=5),
)
def test_quotas_and_rules_hold_for_every_source(
    times: list[int | None], fresh: int, followed: int, popular: int, shown: list[int], owed: list[int]
) -> None:
    count = len(times)
    eligible = np.arange(count + 1) % 5 != 4
    eligible[0] = False
    owed_rows = np.array([row for row in owed if row <= count], np.int64)
    wanted = quotas(fresh=fresh, followed=followed, popular=popular)
    found = further_candidates(
        facts_of(times).recency(),
        wanted,
        now_ms=NOW,
        eligible=eligible,
        excluded=np.array([row for row in shown if row <= count], np.int64),
        owed=owed_rows,
        followed=np.array([1, 3], np.int64),
        popular=lambda n: np.arange(1, count + 1)[:n],
    )
    for name, limit in (("fresh", fresh), ("followed", followed)):
        rows = found.get(name, NO_ROWS).tolist()
        assert len(set(rows)) == len(rows) <= limit
        assert all(eligible[row] and row not in shown for row in rows)
    open_owed = [row for row in owed_rows.tolist() if eligible[row] and row not in shown]
    assert found.get("fresh", NO_ROWS).tolist()[: len(open_owed)] == open_owed[:fresh]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    # videos 91 … 100 came out in the last day, 100 last; the rest long ago
    publish = [NOW - 50 * DAY_MS] * 90 + [NOW - (100 - v) * HOUR_MS for v in range(91, 101)]
    bundle = fake_bundle(100, users=50, publish_ms=publish)
    (tmp_path / "store").mkdir()
    some = quotas(fresh=3, followed=2, popular=4)
    world = make_world(tmp_path / "store", bundle, sources=some, page_size=100, candidates=5)
    yield world
    world.close()


def test_pages_are_filled_from_every_source(world: World) -> None:
    follow = ActionEvent(event_id="f", user_id=10, video_id=31, action=Action.follow)  # creator 3
    world.service.events(EventsRequest(events=[follow]))
    assert world.store.user(10, NOW).marks[Mark.followed_creator] == [3]
    ask(world, 10, page_size=5)
    # 100 and 90 are out of stock; creator 3 made 31, 38, …, 94; most popular are the lowest numbers
    expected = {"fresh": [99, 98, 97], "followed": [94, 3], "popular": [1, 2, 3, 4]}
    assert world.ranker.extras == [expected]
    shown = set(range(1, 10)) | {94, 99}
    events = [ImpressionEvent(event_id=str(v), user_id=10, video_id=v) for v in shown]
    world.service.events(EventsRequest(events=events))
    ask(world, 10, page_size=5)
    assert world.ranker.extras[1]["fresh"] == [98, 97, 96]
    assert world.ranker.extras[1]["followed"] == [17, 24]
    assert not shown & {row for rows in world.ranker.extras[1].values() for row in rows}
    text = world.metrics.text().decode()
    assert 'shopreel_stage_seconds_count{stage="sources"}' in text


def serve_until(worlds: list[World], pages: int, seed: int) -> Counter[int]:
    """Showings of every video over pages of random users from random replicas."""
    dice = np.random.default_rng(seed)
    shown: Counter[int] = Counter()
    for _ in range(pages):
        world = worlds[int(dice.integers(len(worlds)))]
        for each in worlds:
            each.now_ms += 1_000
        for video in ask(world, int(dice.integers(1, 51))).videos:
            shown[int(video.video_id)] += 1
    return shown


def replicas(folder: Path, count: int, wanted: SourceQuotas, **more: Any) -> list[World]:
    publish = [NOW - 50 * DAY_MS] * 300 + [NOW - HOUR_MS] * 12
    bundle = fake_bundle(312, users=50, publish_ms=publish)
    first = make_world(
        folder, bundle, sources=wanted, exploration=EXPLORE, page_size=4, candidates=10, **more
    )
    others = [World(folder, first.deployment, first.settings, LIMITS) for _ in range(count - 1)]
    for world in (first, *others):
        world.store._written.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]
    return [first, *others]


@pytest.mark.parametrize("count", [1, 3])
def test_every_new_video_gets_its_first_showings(tmp_path: Path, count: int) -> None:
    """Users' own best videos are among the first sixty: without the promise none of the new is ever seen."""
    promise = 5
    worlds = replicas(tmp_path, count, quotas(fresh=6, video_showings=promise))
    new = [video for video in range(301, 313) if video % 10]  # tens are out of stock
    shown = serve_until(worlds, len(new) * promise + 15, seed=2)
    assert min(shown[video] for video in new) >= promise
    assert max(shown[video] for video in new) <= promise + 3  # what replicas do not know of one another
    later = serve_until(worlds, 40, seed=3)
    assert sum(later[video] for video in new) < 20  # they stand on their own now
    for world in worlds:
        world.close()


def test_without_a_promise_they_are_not_seen(tmp_path: Path) -> None:
    worlds = replicas(tmp_path, 1, quotas())
    shown = serve_until(worlds, 40, seed=2)
    assert sum(shown[video] for video in range(301, 313)) == 0
    worlds[0].close()


def test_a_new_merchant_has_a_floor_over_all_its_videos(tmp_path: Path) -> None:
    # merchant 4 sells in videos 4 mod 6; its first is 3 days old, and all others' are older
    publish = [NOW - (3 * DAY_MS if v % 6 == 4 else 60 * DAY_MS) for v in range(1, 121)]
    wanted = quotas(fresh=5, fresh_days=1.0, merchant_showings=6, merchant_days=14.0)
    bundle = fake_bundle(120, users=50, publish_ms=publish)
    world = make_world(tmp_path, bundle, sources=wanted, exploration=EXPLORE, page_size=3, candidates=10)
    first: list[str] = []
    for user in (1, 2, 1, 2, 3, 1, 2, 3, 1):
        world.now_ms += 2_000
        page = ask(world, user)
        question = ExplainRequest(user_id=user, request_id=page.request_id)
        answer = world.service.explain(question)
        for video in msgspec.json.decode(answer)["videos"]:
            if "first_showing" in video["why"]["rules"]:
                first.append(video["video_id"])
                assert int(video["video_id"]) % 6 == 4
                assert 0 < video["propensity"] <= 1
    total = world.store.tallies(["first:merchant:4"], world.now_ms)[0]
    assert total >= 6
    assert 0 < len(first) <= 6
    world.close()


def test_propensities_of_first_showings_are_what_monte_carlo_finds() -> None:
    """The same state, another session each time: what is drawn has the probability that is stated."""
    seen: Counter[int] = Counter()
    stated: dict[int, float] = {}
    draws = 800
    with tempfile.TemporaryDirectory() as folder:
        wanted = quotas(fresh=6, video_showings=10_000_000)
        (world,) = replicas(Path(folder), 1, wanted)
        world.store.commit_page = lambda page: page.body  # type: ignore[method-assign]
        for _ in range(draws):
            video = ask(world, 7).videos[1]
            seen[int(video.video_id)] += 1
            assert stated.setdefault(int(video.video_id), video.propensity) == video.propensity
        world.close()
    assert len(seen) == 6
    assert sum(stated.values()) == pytest.approx(1.0)
    for video_id, count in seen.items():
        p = stated[video_id]
        assert abs(count / draws - p) < 4.5 * np.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fresh": -1}, "must not be negative"),
        ({"fresh_days": 0.0}, "must be above 0"),
        ({"video_showings": 1}, "set fresh above 0"),
    ],
)
def test_quotas_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quotas(**fields)


def test_promises_need_exploration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set exploration\.positions"):
        make_world(tmp_path, sources=quotas(fresh=1, video_showings=1))
