"""Cohorts, arms and holdout: pure functions of plan, user and market; logged so that evaluate reads them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.contract import open_dataset
from data.errors import ConfigError
from models.value import ValueFormula
from serving.log_writer import LogWriter
from serving.metrics import Metrics
from serving.paging import FeedSettings
from serving.plan import Plan, ValuePatch, patched_value, read_plan
from serving.plan_follower import PlanFollower
from serving.rollout import Rollout, policy_name
from serving.schema import EventsRequest, FeedRequest, FeedResponse
from serving.slate import SlatePreferences
from shopreel import run_command
from tests.serving.fake_world import World, fake_bundle, make_world

SETTINGS = FeedSettings(page_size=10, candidates=50, max_batch=4, max_queue=8)
PLAN = """
salt: spring
holdout: {percent: 10}
cohorts:
  testers: {users: [7, "8", 1000001]}
  korea: {markets: [KR], percent: 50}
  launch: {users: [5], markets: [KR, US]}
experiments:
  caps:
    arms:
      control: {weight: 1}
      tight: {weight: 1, slate: {creator_cap: 1, lookahead: 5}, feed: {candidates: 20}}
  explore:
    cohort: korea
    arms:
      control: {weight: 3}
      lots: {weight: 1, exploration: {positions: [1, 2]}}
"""


def plan_of(text: str, folder: Path) -> Plan:
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    return read_plan(folder / "plan.yaml")


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    return Rollout(plan_of(PLAN, tmp_path), SETTINGS)


def test_cohorts_by_list_market_and_percentage(rollout: Rollout) -> None:
    assert rollout.in_cohort("testers", 7, None)
    assert rollout.in_cohort("testers", "7", "DE")
    assert rollout.in_cohort("testers", 8, None)
    assert not rollout.in_cohort("testers", 9, None)
    assert rollout.in_cohort("launch", 5, "DE")  # listed: the market does not matter
    assert not rollout.in_cohort("launch", 6, "DE")
    assert rollout.in_cohort("launch", 6, "US")
    users = range(20_000)
    korea = [user for user in users if rollout.in_cohort("korea", user, "KR")]
    assert abs(len(korea) - 10_000) < 4.5 * 5_000**0.5
    assert not any(rollout.in_cohort("korea", user, "US") for user in users)
    assert not any(rollout.in_cohort("korea", user, None) for user in users)


def test_arms_are_dealt_by_weight_and_the_held_out_have_none(rollout: Rollout) -> None:
    users = range(20_000)
    arms = [rollout.arms(user, "KR") for user in users]
    held_out = [found for found in arms if found["holdout"] == "held_out"]
    assert abs(len(held_out) - 2_000) < 4.5 * 1_800**0.5
    assert all(found == {"holdout": "held_out"} for found in held_out)
    caps = Counter(found.get("caps") for found in arms)
    assert abs(caps["tight"] - caps["control"]) < 4.5 * 18_000**0.5
    explore = Counter(found.get("explore") for found in arms)
    quarter = explore["lots"] / (explore["lots"] + explore["control"])
    assert abs(quarter - 0.25) < 4.5 * (0.25 * 0.75 / 9_000) ** 0.5
    assert {(arm := rollout.arms(user, "US")).get("explore") for user in users} == {None}
    assert arm["holdout"] == "open"


def test_fixed_assignments(rollout: Rollout) -> None:
    """These never change: replicas of two versions must agree, and logs of last year must be readable."""
    expected = {
        1: {"holdout": "open", "caps": "control"},
        2: {"holdout": "held_out"},
        3: {"holdout": "held_out"},
        4: {"holdout": "open", "caps": "tight"},
        5: {"holdout": "open", "caps": "control", "explore": "control"},
        6: {"holdout": "open", "caps": "tight", "explore": "lots"},
        17: {"holdout": "open", "caps": "control", "explore": "control"},
        "somebody": {"holdout": "open", "caps": "control"},
        9007199254740993: {"holdout": "open", "caps": "control"},
    }
    assert {user: rollout.arms(user, "KR") for user in expected} == expected


@given(st.integers(-(2**63), 2**63 - 1) | st.text(min_size=1), st.sampled_from([None, "KR", "US"]))
def test_assignment_is_a_function_of_plan_user_and_market(user: int | str, market: str | None) -> None:
    raw = {"experiments": {"x": {"arms": {"control": {"weight": 1}, "new": {"weight": 1}}}}}
    replicas = [Rollout(msgspec.convert(raw, Plan), SETTINGS) for _ in range(2)]
    first, second = (replica.arms(user, market) for replica in replicas)
    assert first == second == replicas[0].arms(str(user), market)


def test_an_arm_changes_what_it_names_and_nothing_else(rollout: Rollout) -> None:
    tight = rollout.settings({"caps": "tight", "explore": "control", "holdout": "open"})
    assert tight.slate == SlatePreferences(1, 0, 0, 0, 0.0, 1.0, 5)
    assert (tight.candidates, tight.page_size, tight.exploration) == (20, 10, SETTINGS.exploration)
    both = rollout.settings({"caps": "tight", "explore": "lots"})
    assert both.exploration.positions == (1, 2)
    assert rollout.settings({"holdout": "held_out"}) == SETTINGS
    assert policy_name("bundle", {"caps": "tight", "explore": "lots"}) == "bundle|caps=tight|explore=lots"


def test_value_weights_are_merged_into_the_bundles_formula() -> None:
    formula = ValueFormula(version="1", watch_s=0.5, gmv=2.0, tasks={"click": 1.0, "like": 3.0})
    patched = patched_value(formula, ValuePatch(gmv=0.0, tasks={"like": 5.0}), "1|x=y")
    assert patched == ValueFormula(version="1|x=y", watch_s=0.5, gmv=0.0, tasks={"click": 1.0, "like": 5.0})


TWO = "a: {weight: 1}, b: {weight: 1"  # ends within the second arm
BAD_PLANS = {
    "[1, 2]": "Expected `object`",
    "cohort: {}": "unknown field `cohort`",
    "cohorts: {a: {}}": "cohorts.a: give users, markets or percent",
    "cohorts: {a: {percent: 101}}": "cohorts.a.percent: Expected `float` <= 100.0",
    "cohorts: {Big: {percent: 1}}": "Expected `str` matching regex",
    "cohorts: {a: {percent: 1}, a: {percent: 2}}": "duplicate key",
    "holdout: {percent: -1}": "holdout.percent: Expected `float` >= 0.0",
    "experiments: {x: {arms: {a: {weight: 1}}}}": "experiments.x.arms: an experiment needs two arms",
    "experiments: {x: {arms: {a: {weight: 0}, b: {weight: 0}}}}": "experiments.x.arms: every weight is 0",
    f"experiments: {{x: {{cohort: none, arms: {{{TWO}}}}}}}}}": "no cohort none; there are none",
    f"experiments: {{holdout: {{arms: {{{TWO}}}}}}}}}": "is the name of the built-in one",
    f"experiments: {{x: {{arms: {{{TWO}, bundles: x}}}}}}, y: {{arms: {{{TWO}, bundles: z}}}}}}}}": (
        "experiments.y: changes bundles, and so does x"
    ),
    "experiments: {y: {arms: {}}, x: {arms: {a: {weight: 1}, b: {weight: -1}}}}": "x.arms.b.weight: Expected",
    "a: [": "while parsing",
}


@pytest.mark.parametrize("text", BAD_PLANS)
def test_a_plan_that_makes_no_sense_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(text, tmp_path)
    assert BAD_PLANS[text] in str(refused.value)
    assert str(refused.value).startswith(f"plan={tmp_path}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"slate": {"creator_cop": 1}}, "no key creator_cop; there are creator_cap"),
        ({"slate": {"creator_cap": -1}}, "a cap is a number"),
        ({"slate": {"creator_cap": "two"}}, "Expected `int`, got `str`"),
        ({"exploration": {"positions": [1, 1]}}, "names a position twice"),
        ({"exploration": {"positions": [3]}, "campaigns": {"positions": [3]}}, "slot 3 cannot both"),
        ({"sources": {"fresh": 5, "video_showings": 2}}, "set exploration.positions"),
        ({"feed": {"max_queue": 1}}, "no key max_queue; an arm may change page_size, candidates"),
        ({"feed": {"page_size": 101}}, "page_size 101"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(arm: dict[str, Any], message: str) -> None:
    raw = {"experiments": {"x": {"arms": {"control": {"weight": 1}, "new": {"weight": 1} | arm}}}}
    with pytest.raises(ConfigError, match=r"experiments\.x\.arms\.new") as refused:
        Rollout(msgspec.convert(raw, Plan), SETTINGS)
    assert message in str(refused.value)


def test_a_plan_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"holdout": {"percent": 5}}))
    plan = read_plan(tmp_path / "plan.json")
    assert plan.holdout is not None
    assert plan.holdout.percent == 5


class FakePlaces:
    """Deployments by folder that note whether they were closed."""

    def __init__(self) -> None:
        self.open: set[str] = set()

    def __call__(self, folder: str) -> Any:
        if folder == "missing":
            raise ConfigError("bundles=missing: no such folder")
        self.open.add(folder)
        places = self

        class Place:
            live = fake_bundle(40, name=f"bundle-{folder}")

            def close(self) -> None:
                places.open.discard(folder)

        return Place()


TWO_BUNDLES = "experiments: {model: {arms: {control: {weight: 1}, other: {weight: 1, bundles: %s}}}}"


def test_a_plan_is_followed_and_a_bad_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(TWO_BUNDLES % "a")
    places, metrics = FakePlaces(), Metrics()
    follower = PlanFollower(path, SETTINGS, places, metrics, poll_s=3600)
    assert places.open == {"a"}
    live = follower.running.live({"model": "other"})
    assert live is not None
    assert live.name == "bundle-a"
    assert follower.running.live({"model": "control"}) is None
    first = follower.running
    for bad in ("experiments: [", TWO_BUNDLES % "missing", "holdout: {percent: no}"):
        path.write_text(bad)
        assert not follower.look()
        assert follower.running is first
        assert places.open == {"a"}
    path.unlink()
    assert not follower.look()
    path.write_text(TWO_BUNDLES % "b")
    assert follower.look()
    assert places.open == {"b"}
    assert 'shopreel_plans_total{result="refused"} 4.0' in metrics.text().decode()
    follower.close()
    assert places.open == set()
    with pytest.raises(ConfigError):
        PlanFollower(tmp_path / "nowhere.yaml", SETTINGS, places, metrics, poll_s=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "store").mkdir()
    world = make_world(tmp_path / "store", page_size=4, plan=plan_of(PLAN, tmp_path))
    yield world
    world.close()


def ask(world: World, user: int, market: str | None = "KR", cursor: str | None = None) -> FeedResponse:
    body = world.service.feed(FeedRequest(user_id=user, market=market, cursor=cursor))
    return msgspec.json.decode(body, type=FeedResponse)


def test_the_answer_names_the_arms_and_pages_follow_them(world: World) -> None:
    seen: Counter[tuple[str, bool]] = Counter()
    for user in range(1, 51):
        page = ask(world, user)
        assert page.experiments == world.plans.running.rollout.arms(user, "KR")
        assert ask(world, user, cursor=page.cursor).experiments == page.experiments
        explores = any(video.source == "exploration" for video in page.videos)
        seen[page.experiments.get("explore", "none"), explores] += 1
    assert set(seen) == {("lots", True), ("control", False), ("none", False)}
    text = world.metrics.text().decode()
    assert 'shopreel_arms_total{arm="held_out",experiment="holdout"}' in text


def test_what_was_served_is_an_experiment_to_evaluate(world: World, tmp_path: Path) -> None:
    """Users of the arm ``tight`` watch ten seconds longer; evaluate finds that, and the planned split."""
    world.plans = None
    world.restart()
    watch(world, 1, ask(world, 1), 0)  # before the experiment
    LogWriter(tmp_path / "log", world.store, world.deployment.live, world.metrics).write()
    world.use(plan_of(PLAN, tmp_path))
    log = LogWriter(tmp_path / "log", world.store, world.deployment.live, world.metrics)
    pages = [(user, ask(world, user)) for user in range(1, 201)]
    for user, page in pages:
        longer = 10_000 * (page.experiments.get("caps") == "tight")
        for position in range(4):
            watch(world, user, page, position, watch_ms=5_000 + 100 * (user % 7) + longer)
    log.write()
    files = sorted((tmp_path / "log" / "events").glob("*.parquet"))
    assert len(files) == 2
    assert len({tuple(pq.read_schema(file).names) for file in files}) == 1
    rows = pq.read_table(tmp_path / "log" / "events").to_pylist()
    rollout = world.plans.running.rollout
    for row in rows[1:]:
        arms = rollout.arms(row["user_id"], "KR")
        assert row["arm_caps"] == arms.get("caps")
        assert row["arm_explore"] == arms.get("explore")
        assert row["arm_holdout"] == arms["holdout"]
        assert row["policy"] == policy_name("bundle-a", arms)
    assert (rows[0]["arm_caps"], rows[0]["policy"]) == (None, "bundle-a")
    open_dataset(tmp_path / "log")
    served = pq.read_table(tmp_path / "log" / "served").to_pylist()
    assert dict(served[-1]["arms"]) == rollout.arms(200, "KR")

    run_command("evaluate", [f"log={tmp_path}/log", f"out={tmp_path}/report", "experiment.arm=arm_caps"])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    found = report["experiment"]
    planned = Counter(rollout.arms(user, "KR").get("caps") for user in range(1, 201))
    assert found["users"] == {"control": planned["control"], "tight": planned["tight"]}
    assert found["sample_ratio_p"] > 0.05
    (uplift,) = (row for row in found["uplifts"]["tight"] if row["metric"] == "watch_ms_per_user")
    assert uplift["low"] < 40_000 < uplift["high"]  # four videos, ten seconds each


def watch(world: World, user: int, page: FeedResponse, position: int, watch_ms: int = 1_000) -> None:
    event = {
        "type": "impression", "event_id": f"{page.request_id}:{position}", "request_id": page.request_id,
        "user_id": user, "video_id": page.videos[position].video_id, "watch_ms": watch_ms,
    }  # fmt: skip
    body = msgspec.json.encode({"events": [event]})
    world.service.events(msgspec.json.decode(body, type=EventsRequest))
