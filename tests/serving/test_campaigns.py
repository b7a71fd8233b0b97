"""Campaigns: who sees them, when, how often, for how much, and what they cost; simulated over whole days."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from data.errors import ConfigError
from serving.campaigns import Campaign
from serving.log_writer import LogWriter
from serving.metrics import Metrics
from serving.pacing import HOUR_MS
from serving.paging import CampaignPreferences
from serving.plan import Plan, read_plan
from serving.plan_follower import FixedPlan, PlanFollower
from serving.rollout import Rollout
from serving.schema import FeedRequest, FeedResponse
from serving.service import FeedService
from serving.slate import SlatePreferences
from serving.state import open_store
from serving.state.protocol import DAY_MS
from tests.serving.fake_world import LIMITS, NOW, World, fake_bundle, make_world
from tests.serving.test_pacing import DIURNAL

MIDNIGHT = NOW - NOW % DAY_MS
SLOT = CampaignPreferences((2,))
FLIGHT = {"starts": "2023-11-01T00:00:00Z", "ends": "2023-12-01T00:00:00Z"}


def plan_of(folder: Path, campaigns: dict[str, Any], **more: Any) -> Plan:
    flights = {name: FLIGHT | fields for name, fields in campaigns.items()}
    (folder / "plan.json").write_text(json.dumps({"campaigns": flights, **more}), encoding="utf-8")
    return read_plan(folder / "plan.json")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "store").mkdir()
    world = make_world(tmp_path / "store", fake_bundle(200, users=100), campaigns=SLOT, page_size=5)
    world.ranker.heads = True
    yield world
    world.close()


def ask(world: World, user: int, **more: Any) -> FeedResponse:
    body = world.service.feed(FeedRequest(user_id=user, **more))
    return msgspec.json.decode(body, type=FeedResponse)


def shown(page: FeedResponse) -> dict[str, int | str]:
    return {str(v.campaign_id): v.video_id for v in page.videos if v.campaign_id is not msgspec.UNSET}


def report(world: World) -> dict[str, dict[str, Any]]:
    return {entry["campaign_id"]: entry for entry in json.loads(world.service.campaigns())["campaigns"]}


GUARANTEED = {"videos": [101, 103, 107], "impressions": {"total": 1000}}


def test_a_campaign_has_its_slot_its_label_and_its_best_video(world: World, tmp_path: Path) -> None:
    world.use(plan_of(tmp_path, {"spring": GUARANTEED | {"label": "Anzeige"}}))
    world.ranker.heads = True
    page = ask(world, 5)
    assert [video.video_id for video in page.videos] == [5, 6, 101, 7, 8]
    paid = page.videos[2]
    assert (paid.source, paid.campaign_id, paid.label, paid.propensity) == (
        "campaign",
        "spring",
        "Anzeige",
        1.0,
    )
    assert page.videos[0].label is msgspec.UNSET
    assert shown(ask(world, 5, cursor=page.cursor)) == {"spring": 103}  # none comes back
    assert report(world)["spring"]["impressions"] == 2


def test_a_page_that_is_asked_for_again_is_paid_for_once(world: World, tmp_path: Path) -> None:
    world.use(plan_of(tmp_path, {"spring": GUARANTEED}))
    first = ask(world, 5)
    for _ in range(3):
        second = ask(world, 5, cursor=first.cursor)
    world.restart()
    assert ask(world, 5, cursor=first.cursor) == second
    assert report(world)["spring"]["spent"] == 2


def test_audience_market_dates_and_holdout(world: World, tmp_path: Path) -> None:
    campaigns = {
        "kr": {"videos": [101], "impressions": {"total": 99}, "markets": ["KR"]},
        "testers": {"videos": [103], "impressions": {"total": 99}, "cohort": "testers"},
        "later": {"videos": [105], "impressions": {"total": 99}, "starts": "2023-11-20T00:00:00Z"},
        "over": {"videos": [107], "impressions": {"total": 99}, "ends": "2023-11-14T00:00:00Z"},
    }
    more = {"cohorts": {"testers": {"users": [7]}}, "holdout": {"percent": 50, "campaigns": False}}
    plan = plan_of(tmp_path, campaigns, **more)
    rollout = Rollout(plan, world.settings)
    world.settings = world.settings.__class__(
        **{name: getattr(world.settings, name) for name in world.settings.__slots__}
        | {"campaigns": CampaignPreferences((0, 1, 2, 3))}
    )
    world.use(plan)
    found = {user: set(shown(ask(world, user, market="KR"))) for user in range(1, 41)}
    for user, names in found.items():
        expected = set() if rollout.held_out(user) else {"kr"} | ({"testers"} if user == 7 else set())
        assert names == expected
    assert set(map(frozenset, found.values())) >= {frozenset(), frozenset({"kr"})}
    assert set(shown(ask(world, 7, market="US"))) <= {"testers"}
    flights = {name: entry["flight"] for name, entry in report(world).items()}
    assert flights == {"kr": "running", "testers": "running", "later": "scheduled", "over": "ended"}


def test_a_campaign_keeps_every_hard_rule_and_every_cap(tmp_path: Path) -> None:
    bundle = fake_bundle(60, markets=True)
    slate = SlatePreferences(1, 0, 0, 0, 0.0, 1.0, 60)  # one video per creator: v mod 7
    world = make_world(tmp_path, bundle, slate=slate, campaigns=CampaignPreferences((0, 1)), page_size=5)
    only_us, sold_out, good, same_creator = 3, 40, 41, 48
    campaigns = {
        "a": {"videos": [only_us, sold_out], "impressions": {"total": 9}},
        "b": {"videos": [good], "impressions": {"total": 9}},
        "c": {"videos": [same_creator], "impressions": {"total": 9}},
    }
    world.use(plan_of(tmp_path, campaigns))
    page = ask(world, 1, market="DE")
    assert len(shown(page)) == 1
    assert not {"a"} & set(shown(page))
    assert page.degraded == []
    assert {int(video.video_id) % 7 for video in page.videos[1:]}.isdisjoint({6})  # 41, 48 mod 7
    world.close()


def test_frequency_caps_one_user_across_sessions(world: World, tmp_path: Path) -> None:
    often = {"frequency": {"impressions": 2, "hours": 24}, "videos": list(range(101, 120, 2))}
    world.use(plan_of(tmp_path, {"spring": GUARANTEED | often}))
    assert [len(shown(ask(world, 5))) for _ in range(4)] == [1, 1, 0, 0]
    assert len(shown(ask(world, 6))) == 1
    world.now_ms += DAY_MS - 1
    assert not shown(ask(world, 5))
    world.now_ms += 1
    assert shown(ask(world, 5))


def test_a_floor_of_quality(world: World, tmp_path: Path) -> None:
    campaigns = {
        "watched": {"videos": [101, 152], "quality": {"watch_ms": 140_000}},
        "bought": {"videos": [102, 52], "quality": {"probabilities": {"purchase": 0.2}}},
        "valued": {"videos": [9, 151], "quality": {"value": -50.0}},
        "unknown_head": {"videos": [153], "quality": {"probabilities": {"save": 0.0}}},
    }
    budget = {"impressions": {"total": 9}}
    plan = plan_of(tmp_path, {name: budget | fields for name, fields in campaigns.items()})
    world.settings = world.settings.__class__(
        **{name: getattr(world.settings, name) for name in world.settings.__slots__}
        | {"campaigns": CampaignPreferences((1, 2, 3, 4))}
    )
    world.use(plan)
    assert shown(ask(world, 5)) == {"watched": 152, "valued": 9}
    world.ranker.heads = False  # no ranker answers: no floor can be shown to hold
    assert shown(ask(world, 6)) == {}


def test_guaranteed_stand_before_bids_and_bids_by_price(world: World, tmp_path: Path) -> None:
    bid = {"spend_minor": {"total": 100_000}, "currency": "USD"}
    campaigns = {
        "low": bid | {"videos": [101], "bid_minor": 5},
        "high": bid | {"videos": [103], "bid_minor": 50},
        "sure": {"videos": [105], "impressions": {"total": 100}},
    }
    world.use(plan_of(tmp_path, campaigns))
    found = [shown(ask(world, 5)) for _ in range(4)]
    assert found == [{"sure": 105}, {"high": 103}, {"low": 101}, {}]  # each has but one video for a viewer
    assert {name: entry["spent"] for name, entry in report(world).items()} == {
        "low": 5,
        "high": 50,
        "sure": 1,
    }


def test_what_a_slot_cost_is_in_the_served_log_and_the_report(world: World, tmp_path: Path) -> None:
    world.use(plan_of(tmp_path, {"spring": {"videos": [4], "impressions": {"total": 9}}}))
    world.ranker.heads = True
    log = LogWriter(tmp_path / "log", world.store, world.deployment.live, world.metrics)
    assert [video.video_id for video in ask(world, 50).videos] == [51, 52, 4, 53, 54]
    log.write()
    rows = pq.read_table(tmp_path / "log" / "served").to_pylist()
    assert [row["campaign_id"] for row in rows] == [None, None, "spring", None, None]
    assert rows[2]["predicted_watch_ms"] == 4_000
    assert (rows[2]["displaced_video_id"], rows[2]["cost_watch_ms"]) == (55, 51_000)
    assert rows[2]["cost_orders"] == pytest.approx(0.051)
    assert rows[0]["cost_watch_ms"] is None
    found = report(world)["spring"]
    assert (found["cost_watch_ms"], found["cost_orders"]) == (51_000, pytest.approx(0.051))
    assert found["cost_slots"] == 1
    assert found["pace"]["budget"] == 9
    world.ranker.heads = False
    assert shown(ask(world, 30))
    assert (report(world)["spring"]["impressions"], report(world)["spring"]["cost_slots"]) == (2, 1)


def test_replicas_share_one_budget(tmp_path: Path) -> None:
    """Eight threads on two replicas, all at the same moment: the last impressions are given once."""
    from concurrent.futures import ThreadPoolExecutor

    plan = plan_of(
        tmp_path, {"spring": {"videos": [101], "impressions": {"total": 7}, "ends": "2023-11-15T00:00:00Z"}}
    )
    world = make_world(tmp_path, fake_bundle(200, users=100), campaigns=SLOT, page_size=3, plan=plan)
    other = FeedService(
        world.deployment,  # type: ignore[arg-type]
        open_store(f"sqlite:///{tmp_path}/state.db", LIMITS),
        world.settings,
        Metrics(),
        clock_ms=lambda: MIDNIGHT + DAY_MS - 1,
        plans=FixedPlan(Rollout(plan, world.settings)),
    )
    world.now_ms = MIDNIGHT + DAY_MS - 1
    services = [world.service, other]

    def feed(user: int) -> int:
        body = services[user % 2].feed(FeedRequest(user_id=user))
        return len(shown(msgspec.json.decode(body, type=FeedResponse)))

    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(feed, range(1, 61)))
    assert sum(given) == 7
    assert report(world)["spring"]["spent"] == 7
    other.close()
    other._store.close()
    world.close()


def do_not_wait_for_the_disk(world: World) -> None:
    """A day has many pages."""
    world.store._written.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]


def simulate(
    folder: Path, plan: Plan, days: int, scale: float
) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, dict[str, Any]]]:
    """Pages and impressions of the campaign ``spring`` by hour of each day: two replicas, one store."""
    world = make_world(
        folder, fake_bundle(400, users=3000), campaigns=SLOT, page_size=4, plan=plan, candidates=20
    )
    replica = World(folder, world.deployment, world.settings, LIMITS, plans=world.plans)
    for server in (world, replica):
        do_not_wait_for_the_disk(server)
    dice = np.random.default_rng(5)
    pages, given = [], []
    for day in range(days):
        pages_H = dice.poisson(scale * np.array(DIURNAL))
        given_H = np.zeros(24, int)
        for hour, count in enumerate(pages_H):
            for moment in np.sort(dice.integers(0, HOUR_MS, count)).tolist():
                server = (world, replica)[int(dice.integers(2))]
                world.now_ms = replica.now_ms = MIDNIGHT + day * DAY_MS + hour * HOUR_MS + moment
                given_H[hour] += len(shown(ask(server, int(dice.integers(1, 3001)))))
        pages.append(pages_H)
        given.append(given_H)
    found = report(world)
    replica.close()
    world.close()
    return pages, given, found


def test_a_day_with_known_traffic_through_the_server(tmp_path: Path) -> None:
    """A budget of half the pages of the day is given out in full, in step with the viewers."""
    budget = 0.3 * sum(DIURNAL)
    spring = {"videos": list(range(101, 121, 2)), "impressions": {"per_day": int(budget)}}
    plan = plan_of(tmp_path, {"spring": spring}, traffic=list(DIURNAL))
    (pages_H,), (given_H,), found = simulate(tmp_path, plan, 1, 0.6)
    assert 0.95 * budget <= given_H.sum() <= budget
    ahead = np.cumsum(given_H) / budget - np.cumsum(pages_H) / pages_H.sum()
    assert np.abs(ahead).max() < 0.05  # no hour burns what belongs to another
    pace = found["spring"]["pace"]
    assert (pace["spent"], pace["budget"]) == (given_H.sum(), int(budget))


def test_traffic_that_is_learned_paces_the_second_day(tmp_path: Path) -> None:
    budget = 0.2 * sum(DIURNAL)
    spring = {"videos": list(range(101, 121, 2)), "impressions": {"per_day": int(budget)}}
    pages, given, _ = simulate(tmp_path, plan_of(tmp_path, {"spring": spring}), 2, 0.4)
    assert given[0].sum() <= budget
    assert 0.95 * int(budget) <= given[1].sum() <= budget
    ahead = [np.cumsum(g) / g.sum() - np.cumsum(p) / p.sum() for g, p in zip(given, pages, strict=True)]
    assert np.abs(ahead[1]).max() < 0.12
    assert np.abs(ahead[1]).max() < np.abs(ahead[0]).max()


def test_days_are_those_of_the_campaigns_zone() -> None:
    fields = {"videos": [1], "impressions": {"per_day": 10}, "time_zone": "Asia/Seoul"}
    campaign = msgspec.convert(FLIGHT | fields, Campaign)
    noon = int(datetime(2023, 11, 14, 16, tzinfo=UTC).timestamp() * 1000)  # one at night in Seoul
    period = campaign.period(noon)
    assert period.name == "2023-11-15"
    assert (noon - period.begin_ms, period.end_ms - period.begin_ms) == (HOUR_MS, DAY_MS)
    first = campaign.period(int(campaign.starts.timestamp() * 1000))
    assert first.end_ms - first.begin_ms == 15 * HOUR_MS  # the flight begins at nine of that day
    berlin = msgspec.convert(
        FLIGHT | fields | {"time_zone": "Europe/Berlin", "starts": "2023-10-01T00:00:00Z"}, Campaign
    )
    long_day = berlin.period(int(datetime(2023, 10, 29, 12, tzinfo=UTC).timestamp() * 1000))
    assert long_day.end_ms - long_day.begin_ms == 25 * HOUR_MS


BAD = [
    ({"impressions": {"total": 9}, "spend_minor": {"total": 9}}, "give either impressions"),
    ({}, "give either impressions"),
    ({"impressions": {}}, "campaigns.x.impressions: give per_day, total or both"),
    ({"spend_minor": {"total": 9}}, "campaigns.x.bid_minor: spend_minor needs bid_minor"),
    ({"impressions": {"total": 9}, "bid_minor": 3}, "are not bid for"),
    ({"impressions": {"total": 0}}, "campaigns.x.impressions.total: Expected `int` >= 1"),
    ({"impressions": {"total": 9}, "ends": "2023-01-01T00:00:00Z"}, "campaigns.x.ends: is not after starts"),
    ({"impressions": {"total": 9}, "starts": "2023-11-01"}, "campaigns.x.starts"),
    ({"impressions": {"total": 9}, "videos": []}, "campaigns.x.videos: Expected `array` of length >= 1"),
    ({"impressions": {"total": 9}, "videos": [1, "1"]}, "names a video twice"),
    ({"impressions": {"total": 9}, "cohort": "nobody"}, "no cohort nobody"),
    ({"impressions": {"total": 9}, "quality": {"probabilities": {"clicks": 0.1}}}, "clicks is no label"),
    ({"impressions": {"total": 9}, "time_zone": "Mars/Olympus"}, "no such time zone as Mars/Olympus"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_campaign_that_makes_no_sense_is_refused(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(tmp_path, {"x": {"videos": [1]} | fields})
    assert message in str(refused.value)


def test_bids_share_a_currency_and_traffic_has_24_hours(tmp_path: Path) -> None:
    bid = {"videos": [1], "spend_minor": {"total": 9}, "bid_minor": 1}
    with pytest.raises(ConfigError, match=r"campaigns\.b\.currency: bids are compared"):
        plan_of(tmp_path, {"a": bid | {"currency": "USD"}, "b": bid | {"currency": "KRW"}})
    with pytest.raises(ConfigError, match="traffic: traffic needs 24 weights"):
        plan_of(tmp_path, {}, traffic=[1.0])


def test_videos_that_the_bundle_lacks_are_refused_or_reported(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = world.deployment.live
    plan_of(tmp_path, {"x": {"videos": [5, 9999], "impressions": {"total": 9}}})

    def follow() -> PlanFollower:
        return PlanFollower(
            tmp_path / "plan.json", world.settings, lambda folder: None,  # type: ignore[arg-type, return-value]
            Metrics(), poll_s=3600, missing=live.missing,
        )  # fmt: skip

    follower = follow()
    follower.close()
    assert "lacks the videos 9999" in caplog.text
    world.use(follower.running.rollout.plan)
    assert report(world)["x"]["missing_videos"] == [9999]
    plan_of(tmp_path, {"x": {"videos": [9998, 9999], "impressions": {"total": 9}}})
    with pytest.raises(ConfigError, match=r"campaigns\.x\.videos: the bundle being served has none"):
        follow()


def test_everybody_is_met_alike_over_the_day(tmp_path: Path) -> None:
    """The pace leaves nobody out: no user is shown the campaign much more often than another."""
    once = {"frequency": {"impressions": 1, "hours": 24}}
    spring = once | {"videos": list(range(101, 121, 2)), "impressions": {"per_day": 150}}
    plan = plan_of(tmp_path, {"spring": spring}, traffic=[1.0] * 24)
    world = make_world(tmp_path, fake_bundle(300, users=300), campaigns=SLOT, page_size=4, plan=plan)
    do_not_wait_for_the_disk(world)
    dice = np.random.default_rng(1)
    met: Counter[int] = Counter()
    for place, user in enumerate(dice.permutation(300).tolist()):
        world.now_ms = MIDNIGHT + place * DAY_MS // 300
        met[user] += len(shown(ask(world, user + 1)))
    assert max(met.values()) == 1
    assert 143 <= sum(met.values()) <= 150
    world.close()
