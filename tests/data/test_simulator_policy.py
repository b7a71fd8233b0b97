"""The recorded propensities: against frequencies, against themselves, and against the truth alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import Dataset, DatasetInfo
from data.simulate import market_settings
from data.simulator.market import Market
from data.simulator.oracle import Question, expected_ndcg, oracle_run
from data.simulator.policy import Candidates, draw_sequences, mixture, weights
from data.simulator.retrace import Target, retrace
from data.simulator.sessions import session_starts
from data.simulator.settings import DAY_MS
from data.simulator.shown import Shown


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Market, Dataset]:
    folder = tmp_path_factory.mktemp("policy")
    settings = market_settings(
        "users=500", "videos=600", "products=120", "days=4", "pool_size=100", "campaigns=4"
    )
    market = Market.build(settings, 5)
    for _ in market.write(folder):
        pass
    return Market.load(folder), Dataset(folder, DatasetInfo(name="x", source="x", licence="x"))


def _candidates(users: int, left: list[bool], campaign_slots: int) -> Candidates:
    score = np.linspace(-2, 2, len(left), dtype=np.float32)
    left_UP = np.tile(np.array(left), (users, 1))
    weight = weights(np.tile(score, (users, 1)), left_UP, 1.0)
    return Candidates(weight, left_UP, np.full(users, campaign_slots))


@pytest.mark.parametrize(
    ("explore", "campaign", "slots"), [(0.0, 0.0, 0), (0.3, 0.0, 0), (1.0, 0.0, 2), (0.2, 0.5, 2)]
)
def test_frequencies_of_each_position_are_the_recorded_probabilities(
    explore: float, campaign: float, slots: int
) -> None:
    """Monte Carlo of the first three positions; the second and third given what stood before."""
    users, left = 150_000, [True, True, False, True, True, True]
    candidates = _candidates(users, left, slots)
    shares = {"explore_US": np.full((users, 3), explore), "campaign_US": np.full((users, 3), campaign)}
    drawn = draw_sequences(np.random.default_rng(1), candidates, length_U=np.full(users, 3), **shares)
    for step in range(3):
        for before in np.unique(drawn.slot_US[:, :step], axis=0)[:6]:
            rows = np.flatnonzero((drawn.slot_US[:, :step] == before).all(axis=1))
            left_UP = candidates.left_UP[:1].copy()
            left_UP[0, before] = False
            state = Candidates(candidates.weight_UP[:1], left_UP, candidates.campaign_slots_U[:1])
            stated = mixture(state, np.array([explore]), np.array([campaign]))[0]
            assert stated.sum() == pytest.approx(1.0)
            count = np.bincount(drawn.slot_US[rows, step], minlength=len(left))
            error = np.sqrt(len(rows) * stated * (1 - stated))
            assert (np.abs(count - len(rows) * stated) <= 4.5 * error + 1e-9).all()
            assert np.allclose(drawn.propensity_US[rows, step], stated[drawn.slot_US[rows, step]], rtol=1e-9)


@given(
    seed=st.integers(0, 1000), sharpness=st.floats(0, 5), explore=st.floats(0, 1), campaign=st.floats(0, 1),
    slots=st.integers(0, 4), width=st.integers(4, 30),
)  # fmt: skip
def test_sequences_never_repeat_and_may_empty_the_pool(
    seed: int, sharpness: float, explore: float, campaign: float, slots: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    left = rng.random((5, width)) < 0.7
    left[:, 0] = True
    score = rng.normal(0, 6, (5, width)).astype(np.float32)
    candidates = Candidates(weights(score, left, sharpness), left, np.full(5, slots))
    length = rng.integers(0, left.sum(axis=1) + 1)
    shape = (5, int(length.max()))
    drawn = draw_sequences(
        rng,
        candidates,
        explore_US=np.full(shape, explore),
        campaign_US=np.full(shape, campaign),
        length_U=length,
    )
    for row in range(5):
        chosen = drawn.slot_US[row, : length[row]]
        assert len(set(chosen.tolist())) == len(chosen)
        assert left[row, chosen].all()
        assert (drawn.slot_US[row, length[row] :] == -1).all()
        state = left[row : row + 1].copy()
        for step, slot in enumerate(chosen):
            now = Candidates(candidates.weight_UP[row : row + 1], state, candidates.campaign_slots_U[:1])
            stated = mixture(now, np.array([explore]), np.array([campaign]))[0, slot]
            assert drawn.propensity_US[row, step] == pytest.approx(stated, rel=1e-5)
            state[0, slot] = False


def test_the_truth_alone_gives_back_every_recorded_propensity(written: tuple[Market, Dataset]) -> None:
    market, dataset = written
    for file, found in zip(dataset.files("events"), retrace(market, dataset), strict=True):
        recorded = pa.parquet.read_table(file)["propensity"].to_numpy()
        assert len(recorded) > 1000
        assert np.allclose(found.to_numpy(), recorded, rtol=1e-5)


def test_importance_weights_average_to_one_and_find_another_policys_value(
    written: tuple[Market, Dataset],
) -> None:
    """At position 0 the other policy's value is a finite sum, which the weighted log must meet."""
    market, dataset = written
    target = Target(sharpness=0.3, explore_share=0.5)
    ratio = np.concatenate([found.to_numpy() for found in retrace(market, dataset, target)])
    events = dataset.read("events")
    ratio /= events["propensity"].to_numpy()
    assert ratio.mean() == pytest.approx(1.0, abs=5 * ratio.std() / np.sqrt(len(ratio)))
    first = np.flatnonzero(events["position"].to_numpy() == 0)
    click = events["click"].to_numpy(zero_copy_only=False)[first].astype(float)
    estimate = ratio[first] * click
    user, time = events["user_id"].to_numpy(), events["event_time"].cast(pa.int64()).to_numpy() // 1000
    video, surface = events["video_id"].to_numpy(), np.array(events["surface"].to_pylist())
    truth = []
    for row in first[::25]:
        day = int((time[row] - market.world.settings.start_ms) // DAY_MS)
        shown = video[(user == user[row]) & (time < time[row])]
        ids, logged = market.choice_probabilities(int(user[row]), day, shown)
        _, uniform = market.choice_probabilities(int(user[row]), day, shown, random=True)
        softmax = (logged - 0.1 * uniform) / 0.9
        flatter = softmax ** (0.3 / market.world.settings.policy_sharpness)
        chance = 0.5 * flatter / flatter.sum() + 0.5 * uniform
        gain = market.expected([int(user[row])] * len(ids), ids, int(time[row]), surface=str(surface[row]))
        truth.append(float(chance @ gain["click"]))
    error = np.hypot(estimate.std() / np.sqrt(len(first)), np.std(truth) / np.sqrt(len(truth)))
    assert abs(estimate.mean() - np.mean(truth)) < 4.5 * error
    assert click.mean() - np.mean(truth) > 0  # the logging policy knows tastes better


def test_another_policy_meets_the_same_market_and_pools(tmp_path: Path) -> None:
    worlds = []
    for number, override in enumerate(("explore_share=0.1", "explore_share=1.0")):
        settings = market_settings(
            "users=60", "videos=300", "products=60", "days=2", "pool_size=50", override
        )
        market = Market.build(settings, 8)
        (tmp_path / str(number)).mkdir()
        for _ in market.write(tmp_path / str(number)):
            pass
        worlds.append(market)
    assert np.array_equal(worlds[0].ledger.video_TSP, worlds[1].ledger.video_TSP)
    for table in ("videos.parquet", "users.parquet"):
        assert (tmp_path / "0" / table).read_bytes() == (tmp_path / "1" / table).read_bytes()


def test_choice_probabilities_are_those_of_the_log(written: tuple[Market, Dataset]) -> None:
    market, dataset = written
    events = dataset.read("events").to_pylist()
    user = events[0]["user_id"]
    mine = sorted((row for row in events if row["user_id"] == user), key=lambda row: row["event_time"])[:60]
    for number, row in enumerate(mine):
        day = int((row["event_time"].timestamp() * 1000 - market.world.settings.start_ms) // DAY_MS)
        shown = [before["video_id"] for before in mine[:number]]
        ids, chance = market.choice_probabilities(
            user, day, shown, position=row["position"], random=row["policy"] == "random"
        )
        assert chance.sum() == pytest.approx(1.0)
        assert chance[ids == row["video_id"]] == pytest.approx(row["propensity"], rel=1e-5)


def test_campaigns_run_at_their_position_and_keep_their_budgets(written: tuple[Market, Dataset]) -> None:
    market, dataset = written
    rows = dataset.read("events").select(["campaign_id", "position", "video_id", "market"]).to_pylist()
    paid = [row for row in rows if row["campaign_id"]]
    assert len(paid) > 50
    assert {row["position"] for row in paid} == {3}
    for number, campaign in enumerate(market.world.campaigns):
        own = [row for row in paid if row["campaign_id"] == campaign.campaign_id]
        assert {row["video_id"] for row in own} <= set(market.video_ids[campaign.video].tolist())
        assert len(own) == market.ledger.spent[number]
        assert len(own) <= 1.5 * campaign.budget_impressions + 5


def test_taste_matters_oracle_far_above_popularity(tmp_path: Path) -> None:
    """With the demo's settings popularity gets less than two thirds of what could be had."""
    market = Market.build(market_settings(), 1)
    for _ in market.write(tmp_path):
        pass
    dataset = Dataset(tmp_path, DatasetInfo(name="x", source="x", licence="x"))
    events = dataset.read("events")
    begin = market.world.settings.start_ms + 12 * DAY_MS
    past = events["event_time"].cast(pa.int64()).to_numpy() // 1000 < begin
    video, long_view = events["video_id"].to_numpy(), events["long_view"].to_numpy(zero_copy_only=False)
    users = market.user_ids[::20]
    seen = {int(user): video[past & (events["user_id"].to_numpy() == user)] for user in users}
    row = np.searchsorted(market.video_ids, video[past & long_view])
    count = np.bincount(row, minlength=len(market.video_ids))
    question = Question(time=begin + DAY_MS // 2, seen=seen)
    popular = []
    for user in users:
        candidate = market.live(int(user), question.time) & ~np.isin(market.video_ids, seen[int(user)])
        popular.append(market.video_ids[np.argsort(-np.where(candidate, count, -1), kind="stable")[:20]])
    reached = expected_ndcg(market, users, np.array(popular), question)
    best = oracle_run(market, users, question, k=20)["video_id"].to_numpy().reshape(len(users), 20)
    assert np.allclose(expected_ndcg(market, users, best, question), 1.0)
    assert 0.2 < reached.mean() < 0.66
    logged = [
        _logged_ndcg(events, ~past & (events["user_id"].to_numpy() == user), [popular[n], best[n]])
        for n, user in enumerate(users)
    ]
    by_popularity, by_oracle = np.nanmean(np.array(logged), axis=0)
    assert by_oracle > 1.5 * by_popularity


def test_expected_ndcg_of_strangers_repeats_and_nothing(written: tuple[Market, Dataset]) -> None:
    market, _ = written
    question = Question(time=market.world.settings.start_ms)
    user = market.user_ids[:1]
    best = oracle_run(market, user, question, k=3)["video_id"].to_numpy()
    ranked = np.array([[best[0], best[0], -1]])
    (value,) = expected_ndcg(market, user, ranked, question, k=3)
    scores = np.sort(market.oracle_scores(int(user[0]), question.time))[::-1][:3]
    assert value == pytest.approx(scores[0] / (scores @ (1 / np.log2([2, 3, 4]))))
    nothing = Question(time=question.time, among_N=np.zeros(len(market.video_ids), dtype=bool))
    assert np.isnan(expected_ndcg(market, user, ranked, nothing)).all()


def _logged_ndcg(events: pa.Table, rows: np.ndarray, rankings: list[np.ndarray]) -> list[float]:
    mine = events.filter(pa.array(rows))
    truth = mine["video_id"].to_numpy()[mine["long_view"].to_numpy(zero_copy_only=False)]
    if not len(truth):
        return [np.nan] * len(rankings)
    discount = 1 / np.log2(np.arange(2, 22))
    return [float(np.isin(ids, truth) @ discount / discount[: len(truth)].sum()) for ids in rankings]


def test_sessions_of_a_user_never_overlap() -> None:
    user, begin, length = np.array([0, 0, 1]), np.array([10, 20, 5]), np.array([30, 1, 1])
    assert session_starts(user, begin, length).tolist() == [10, 40, 5]
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(50), 6)
    begin = np.sort(rng.integers(0, DAY_MS, (50, 6)), axis=1).ravel()
    length = rng.integers(1, DAY_MS // 3, 300)
    start = session_starts(user, begin, length)
    same = user[1:] == user[:-1]
    assert (start >= begin).all()
    assert (start[1:][same] >= (start + length)[:-1][same]).all()


def test_shown_videos_are_struck_out_from_the_next_day_on() -> None:
    shown = Shown(3)
    pool = np.array([[4, 7, -1], [7, 8, 9]], dtype=np.int32)
    segment = np.array([0, 1, 1])
    assert shown.left(0, 3, segment, pool, 10).tolist() == [[True, True, False], [True] * 3, [True] * 3]
    shown.add(np.array([1, 0]), np.array([7]))
    shown.add(np.array([2]), np.array([9, 4]))
    assert shown.left(0, 3, segment, pool, 10).sum() == 8
    shown.end_day()
    assert shown.left(0, 3, segment, pool, 10).tolist() == [
        [True, False, False],
        [True] * 3,
        [True, True, False],
    ]
    assert shown.left(2, 3, segment[2:], pool, 10).tolist() == [[True, True, False]]
