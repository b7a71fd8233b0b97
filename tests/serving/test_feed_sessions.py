"""No video returns within a session's feed: over pages, retries, restarts, swaps and other sessions."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.exploration import ExplorationPreferences
from serving.schema import Action as Label
from serving.schema import ActionEvent, EventsRequest, FeedRequest, FeedResponse, HideScope
from serving.slate import NO_PREFERENCES, SlatePreferences
from serving.state.protocol import DAY_MS
from tests.serving.fake_world import World, fake_bundle, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    yield world
    world.close()


def ask(
    world: World, user: int = 5, cursor: str | None = None, size: int | None = None, **more: str
) -> FeedResponse:
    body = world.service.feed(FeedRequest(user_id=user, cursor=cursor, page_size=size, **more))
    return msgspec.json.decode(body, type=FeedResponse)


def ids(page: FeedResponse) -> list[int | str]:
    return [video.video_id for video in page.videos]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("next"), st.integers(1, 12)),
        st.tuples(st.just("retry"), st.integers(0, 30)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("swap"), st.integers(0, 2)),
        st.tuples(st.just("hide"), st.integers(1, 60)),
        st.tuples(st.just("new session"), st.integers(1, 12)),
        st.tuples(st.just("fail"), st.booleans()),
        st.tuples(st.just("wait"), st.integers(0, 20 * 3_600_000)),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(STEPS, st.booleans())
def test_no_video_returns_whatever_happens(steps: list[tuple[str, int]], explore: bool) -> None:
    bundles = [
        fake_bundle(60),
        fake_bundle(80, name="bundle-b"),
        fake_bundle(40, name="bundle-c", markets=True),
    ]
    exploration = ExplorationPreferences((1, 3) if explore else (), 20, 0.3, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        slate = SlatePreferences(2, 3, 4, 1, 0.0, 1.0, 30)
        world = make_world(Path(folder), bundles[0], slate=slate, exploration=exploration, candidates=7)
        cursor: str | None = None
        asked: list[tuple[str | None, int, list[int | str]]] = []
        shown: list[int | str] = []
        hidden: set[int | str] = set()
        last_ms = world.now_ms
        for step, value in steps:
            if step == "next":
                page = ask(world, cursor=cursor, size=value)
                if cursor is not None:
                    asked.append((cursor, value, ids(page)))
                assert not set(ids(page)) & set(shown)
                assert not set(ids(page)) & hidden
                shown += ids(page)
                cursor, last_ms = page.cursor, world.now_ms
            elif step == "retry" and asked:
                old, size, expected = asked[value % len(asked)]
                assert ids(ask(world, cursor=old, size=size + 1)) == expected
            elif step == "restart":
                world.restart()
            elif step == "swap":
                world.deployment.live = bundles[value]
            elif step == "hide":
                event = ActionEvent(event_id=f"hide-{value}", user_id=5, video_id=value, action=Label.hide)
                world.service.events(EventsRequest(events=[event]))
                hidden.add(value)
            elif step == "new session":
                page = ask(world, size=value)
                assert not set(ids(page)) & set(shown)  # served lately, in another session
            elif step == "fail":
                world.ranker.fail = bool(value)
            elif step == "wait" and world.now_ms + value < last_ms + DAY_MS:
                world.now_ms += value  # the session lives on
        assert len(set(shown)) == len(shown)
        world.close()


def test_two_requests_at_once_for_one_page_get_the_same_page(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    first = ask(world)
    request = FeedRequest(user_id=5, cursor=first.cursor)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: world.service.feed(request), range(16)))
    assert len(set(answers)) == 1
    after = ask(world, cursor=msgspec.json.decode(answers[0], type=FeedResponse).cursor)
    assert not set(ids(after)) & {*ids(first), *ids(msgspec.json.decode(answers[0], type=FeedResponse))}


def test_an_expired_session_begins_anew_and_says_so(world: World) -> None:
    from serving.schema import ApiError

    page = ask(world)
    world.now_ms += 3 * DAY_MS
    world.service.sweep()
    with pytest.raises(ApiError) as refused:
        ask(world, cursor=page.cursor)
    assert (refused.value.status, refused.value.code) == (410, "session_expired")


def test_candidates_are_fetched_deeper_when_rules_leave_too_few(tmp_path: Path) -> None:
    world = make_world(tmp_path, fake_bundle(100), candidates=5, page_size=30)
    # language en leaves four of five; five candidates at a time would never fill a page
    page = ask(world, user=1, size=30)
    assert len(page.videos) == 30
    german = msgspec.json.decode(
        world.service.feed(FeedRequest(user_id=2, page_size=30, context={"language": "de"})),
        type=FeedResponse,
    )
    assert ids(german) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]  # all there are, but for those out of stock
    world.close()


def test_what_was_hidden_stays_hidden_when_what_was_seen_may_return(world: World) -> None:
    hide = ActionEvent(event_id="h", user_id=5, video_id=6, action=Label.hide, scope=HideScope.video)
    like = ActionEvent(event_id="l", user_id=5, video_id=7, action=Label.like)
    world.service.events(EventsRequest(events=[hide, like]))
    assert not {6, 7} & set(ids(ask(world, size=4)))
    world.now_ms += 100 * DAY_MS  # seen_ttl_ms is 90 days
    shown = ids(ask(world, size=4))
    assert 7 in shown
    assert 6 not in shown


def test_diversity_moves_a_video_down_that_is_like_one_before_it(tmp_path: Path) -> None:
    # alike are videos with the same last digit: 13 and 23 are copies of 3 to the fake ranker
    slate = replace(NO_PREFERENCES, diversity=0.5)
    diverse = make_world(tmp_path, fake_bundle(60), slate=slate, candidates=20)
    shown = [int(video) for video in ids(ask(diverse, size=14))]
    assert shown[0] == 5
    assert len({video % 10 for video in shown[:9]}) == 9  # all kinds but those out of stock
    assert len(set(shown)) == 14
    diverse.close()


def test_the_market_limits_videos_and_products(tmp_path: Path) -> None:
    world = make_world(tmp_path, fake_bundle(30, markets=True), page_size=30)
    us, de = ask(world, user=1, market="US"), ask(world, user=2, market="DE")
    assert 3 in ids(us)
    assert not [video for video in ids(de) if int(video) % 3 == 0]
    world.close()


def test_hiding_reaches_creators_and_merchants_at_once(world: World) -> None:
    hide = Label.hide
    events = [
        ActionEvent(event_id="1", user_id=5, video_id=6, action=hide, scope=HideScope.creator),  # creator 6
        ActionEvent(event_id="2", user_id=5, video_id=8, action=hide, scope=HideScope.merchant),  # merchant 2
    ]
    world.service.events(EventsRequest(events=events))
    page = ask(world, size=60)
    assert not [v for v in ids(page) if int(v) % 7 == 6]
    assert not [v for v in ids(page) if int(v) % 2 == 0 and int(v) % 6 == 2]
    assert [v for v in ids(ask(world, user=6, size=60)) if int(v) % 7 == 6]
