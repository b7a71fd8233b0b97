"""The simulator against itself: its log must have the frequencies that its truth states."""

import filecmp
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shopreel
from data.contract import open_dataset
from data.dataset import Dataset
from data.errors import ConfigError, ContractError
from data.simulate import market_settings
from data.simulator.behaviour import SURFACES
from data.simulator.expectation import QUANTITIES
from data.simulator.market import Market
from data.simulator.settings import DAY_MS

SMALL = ["users=400", "videos=800", "products=150", "days=5", "pool_size=120", "campaigns=4"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulator") / "dataset"
    assert shopreel.main(["simulate", f"out={out}", *SMALL, "seed=3"]) == 0
    return out


@pytest.fixture(scope="module")
def dataset(simulated: Path) -> Dataset:
    return open_dataset(simulated)


@pytest.fixture(scope="module")
def market(simulated: Path) -> Market:
    return Market.load(simulated)


@pytest.fixture(scope="module")
def events(dataset: Dataset) -> pa.Table:
    return dataset.read("events")


def test_dataset_keeps_the_contract_and_names_its_tasks(dataset: Dataset, events: pa.Table) -> None:
    assert set(dataset.info.tasks) <= {*events.column_names, "add_to_cart", "purchase"}
    assert set(dataset.read("actions")["action"].to_pylist()) == {"add_to_cart", "purchase"}
    # Roughly as many impressions as asked for.
    assert events.num_rows == pytest.approx(400 * 5 * 9, rel=0.2)


def test_same_seed_same_bytes_and_another_seed_differs(simulated: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert shopreel.main(["simulate", f"out={again}", *SMALL, "seed=3"]) == 0
    assert shopreel.main(["simulate", f"out={other}", *SMALL, "seed=4"]) == 0
    files = [path.relative_to(simulated) for path in simulated.rglob("*") if path.is_file()]
    assert len(files) >= 5 + 5 + 3 + 3 + 1
    same, different, missing = filecmp.cmpfiles(simulated, again, files, shallow=False)
    assert (different, missing) == ([], [])
    assert len(same) == len(files)
    assert not filecmp.cmp(simulated / "videos.parquet", other / "videos.parquet", shallow=False)


def test_a_slate_is_whole_distinct_and_ordered_in_time(events: pa.Table) -> None:
    slates = events.group_by("request_id", use_threads=False).aggregate(
        [("position", "min"), ("position", "max"), ("position", "count"), ("user_id", "count_distinct")]
    )
    assert set(slates["position_min"].to_pylist()) == {0}
    assert set(slates["user_id_count_distinct"].to_pylist()) == {1}
    count = slates["position_count"].to_numpy()
    assert (slates["position_max"].to_numpy() + 1 == count).all()
    assert np.mean(count == 8) > 0.99  # only midnight cuts a slate
    pairs = events.group_by(["user_id", "video_id"], use_threads=False).aggregate([("position", "count")])
    assert pairs.num_rows == events.num_rows  # nobody is shown a video twice
    user = events["user_id"].to_numpy()
    time = events["event_time"].cast(pa.int64()).to_numpy()
    inside = (user[1:] == user[:-1]) & (time[1:] // (DAY_MS * 1000) == time[:-1] // (DAY_MS * 1000))
    assert (time[1:][inside] > time[:-1][inside]).all()


def test_nothing_is_shown_before_it_is_published_or_outside_its_markets(
    dataset: Dataset, events: pa.Table
) -> None:
    videos = dataset.read("videos").select(["video_id", "publish_time", "markets"])
    joined = events.select(["video_id", "event_time", "market"]).join(videos.drop("markets"), "video_id")
    assert all(joined["event_time"].to_numpy() >= joined["publish_time"].to_numpy())
    markets = dict(zip(videos["video_id"].to_pylist(), videos["markets"].to_pylist(), strict=True))
    pairs = events.select(["video_id", "market"]).group_by(["video_id", "market"]).aggregate([])
    assert all(
        m in markets[v]
        for v, m in zip(pairs["video_id"].to_pylist(), pairs["market"].to_pylist(), strict=True)
    )


def test_actions_follow_their_impression_down_the_funnel(
    dataset: Dataset, events: pa.Table, market: Market
) -> None:
    shown = {
        (row["request_id"], row["video_id"]): row
        for row in events.select(
            ["request_id", "video_id", "event_time", "product_id", "market", "click", "product_click"]
        ).to_pylist()
    }
    carts = {}
    end = market.world.settings.end_ms
    for action in sorted(dataset.read("actions").to_pylist(), key=lambda row: row["action_time"]):
        key = (action["request_id"], action["video_id"])
        cause = shown[key]
        assert cause["click"]
        assert cause["product_click"]
        assert cause["product_id"] == action["product_id"]
        assert action["action_time"] > cause["event_time"]
        assert action["action_time"].timestamp() * 1000 < end
        if action["action"] == "add_to_cart":
            carts[key] = action["action_time"]
            assert (action["action_time"] - cause["event_time"]).total_seconds() < 1800
            assert action["order_value_minor"] is None
            assert action["currency"] is None
        else:
            assert carts[key] < action["action_time"]
            assert action["order_value_minor"] > 0
            assert action["currency"] == {"us": "USD", "gb": "GBP", "de": "EUR", "jp": "JPY"}[cause["market"]]


def test_frequencies_of_the_log_are_the_stated_probabilities(
    market: Market, events: pa.Table, dataset: Dataset
) -> None:
    """Calibration in the large and by decile, for every label, against binomial error."""
    stated = _stated(market, events)
    for label in QUANTITIES:
        if label not in events.column_names or label in ("watch_ms", "order_value_minor"):
            continue
        happened = events[label].to_numpy(zero_copy_only=False).astype(float)
        for part in _deciles(stated[label]):
            variance = (stated[label][part] * (1 - stated[label][part])).sum()
            assert abs((happened[part] - stated[label][part]).sum()) < 4.5 * np.sqrt(variance) + 1, label
    watch = events["watch_ms"].to_numpy() + 0.0
    error = watch - stated["watch_ms"]
    assert abs(error.mean()) < 4.5 * error.std() / np.sqrt(len(error)) + 0.5


def test_orders_within_the_window_have_their_stated_probability_and_value(
    market: Market, events: pa.Table, dataset: Dataset
) -> None:
    """The log holds what comes before its end, so each impression's window is the time that is left."""
    time = events["event_time"].cast(pa.int64()).to_numpy() // 1000
    carts = _count(dataset, "add_to_cart")
    orders = _count(dataset, "purchase")
    early = time < market.world.settings.end_ms - 30 * 60_000
    stated = _stated(market, events.filter(pa.array(early)))
    assert abs(carts["rows"] - stated["add_to_cart"].sum()) < 4.5 * np.sqrt(carts["rows"]) + 5
    window = (market.world.settings.end_ms - time) / DAY_MS
    chance = np.zeros(len(time))
    value = np.zeros(len(time))
    for edge in np.unique(np.floor(window * 8)):
        part = np.flatnonzero(np.floor(window * 8) == edge)
        found = _stated(market, events.take(pa.array(part)), window_days=float(window[part].mean()))
        chance[part], value[part] = found["purchase"], found["order_value_minor"]
    assert abs(orders["rows"] - chance.sum()) < 4.5 * np.sqrt(chance.sum())
    assert orders["value"] == pytest.approx(value.sum(), rel=6 / np.sqrt(orders["rows"]))


def test_sold_out_products_are_not_bought_and_shown_as_such(market: Market, dataset: Dataset) -> None:
    products = dataset.read("products")
    sold_out = dict(zip(products["product_id"].to_pylist(), products["in_stock"].to_pylist(), strict=True))
    assert 0.01 < np.mean([not there for there in sold_out.values()]) < 0.5
    out_day = dict(zip(market.world.products.id.tolist(), market.ledger.stock_out_day.tolist(), strict=True))
    start = market.world.settings.start_ms
    requests = _request_times(dataset)
    for action in dataset.read("actions").to_pylist():
        day = (requests[action["request_id"]].timestamp() * 1000 - start) // DAY_MS
        assert day < out_day[action["product_id"]]
    for product, there in sold_out.items():
        assert there == (out_day[product] >= market.world.settings.days)


def test_position_and_surface_change_the_probability_as_stated(market: Market) -> None:
    user, video = market.user_ids[:50], market.video_ids[:50]
    time = market.world.settings.start_ms
    top = market.expected(user, video, time)["click"]
    for surface in SURFACES:
        by_position = [
            market.expected(user, video, time, surface=surface, position=k)["click"] for k in (0, 3, 7)
        ]
        assert (by_position[0] > by_position[1]).all()
        assert (by_position[1] > by_position[2]).all()
    at_seven = market.expected(user, video, time, position=np.full(50, 7), surface=["feed"] * 50)["click"]
    assert np.allclose(at_seven, top / 1.35)
    assert all((market.expected(user, video, time)[label] >= 0).all() for label in QUANTITIES)


def test_oracle_scores_are_expectations_of_live_videos(market: Market) -> None:
    user = int(market.user_ids[7])
    time = market.world.settings.start_ms + 2 * DAY_MS
    scores, live = market.oracle_scores(user, time), market.live(user, time)
    assert len(scores) == len(market.video_ids)
    assert (np.isfinite(scores) == live).all()
    assert 0 < live.sum() < len(live)
    expected = market.expected([user] * int(live.sum()), market.video_ids[live], time)["long_view"]
    assert np.array_equal(scores[live], expected)


def test_loaded_market_answers_as_the_one_that_wrote(simulated: Path, tmp_path: Path) -> None:
    built = Market.build(market_settings(*SMALL), 3)
    for _ in built.write(tmp_path):
        pass
    loaded = Market.load(simulated)
    user, video = built.user_ids[:200], built.video_ids[300:500]
    time = built.world.settings.start_ms + 4 * DAY_MS
    mine, theirs = built.expected(user, video, time), loaded.expected(user, video, time)
    assert all(np.array_equal(mine[name], theirs[name]) for name in QUANTITIES)


def test_new_videos_first_appear_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "cold"
    options = ["users=100", "videos=500", "products=50", "days=4", "pool_size=100"]
    assert (
        shopreel.main(["simulate", f"out={out}", *options, "new_video_share=0.2", "new_videos_from_day=3"])
        == 0
    )
    market = Market.load(out)
    cold = market.world.videos.live_day == 3
    assert cold.mean() == pytest.approx(0.2, abs=0.06)
    assert set(market.world.videos.live_day) == {0, 3}
    first = pq.read_table(out / "events" / "day-0002.parquet")["video_id"].to_pylist()
    last = pq.read_table(out / "events" / "day-0003.parquet")["video_id"].to_pylist()
    new = set(market.video_ids[cold].tolist())
    assert not new & set(first)
    assert new & set(last)


def test_content_tells_the_taste_of_a_video_that_nobody_has_seen(market: Market, dataset: Dataset) -> None:
    """The nearest videos by content embedding are near in taste, far beyond chance."""
    embedding = np.stack(dataset.read("videos")["content_embedding"].to_numpy(zero_copy_only=False))
    centred = embedding - embedding.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    near = np.argsort(-(centred @ centred.T), axis=1)[:, 1:6]
    taste = market.world.videos.vector_ND
    alike = np.einsum("nd,nkd->nk", taste, taste[near]).mean()
    assert alike > 0.6
    assert (taste @ taste.T).mean() < 0.3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("users=0", "users=0"), ("explore_share=1.5", "explore_share"), ("markets=9", "markets=9"),
        ("start=2020-13-01", "start=2020-13-01"), ("start=2999-01-01", "another start="),
        ("seed=-1", "seed=-1"), ("pool_size=12", "pool_size=12"), ("userz=3", "users"),
        ("new_videos_from_day=14", "new_videos_from_day"), ("users=many", "users"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line(
    override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shopreel.main(["simulate", f"out={tmp_path / 'x'}", override]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_truth_is_refused_where_missing_damaged_or_asked_for_strangers(
    market: Market, simulated: Path, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match="no truth here"):
        Market.load(tmp_path)
    with pytest.raises(ContractError, match="video_id 5 is not of this market"):
        market.expected([int(market.user_ids[0])], [5], 0)
    with pytest.raises(ConfigError, match="no quantity 'clicks'"):
        market.expected(market.user_ids[:1], market.video_ids[:1], 0, quantities=("clicks",))
    folder = tmp_path / "truth"
    folder.mkdir()
    (folder / "market.json").write_bytes((simulated / "truth" / "market.json").read_bytes())
    (folder / "market.safetensors").write_bytes(
        (simulated / "truth" / "market.safetensors").read_bytes()[:5000]
    )
    with pytest.raises(ContractError, match="damaged truth"):
        Market.load(tmp_path)


def test_an_existing_dataset_stays_when_a_run_breaks_off(
    simulated: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "dataset"

    def broken(self: Market, directory: Path) -> Iterator[None]:
        (directory / "events").mkdir()
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Market, "write", broken)
    assert shopreel.main(["simulate", f"out={out}", *SMALL]) == 130
    assert list(tmp_path.iterdir()) == []


def _stated(market: Market, events: pa.Table, window_days: float = 7.0) -> dict[str, np.ndarray]:
    return market.expected(
        events["user_id"].to_numpy(),
        events["video_id"].to_numpy(),
        events["event_time"].cast(pa.int64()).to_numpy() // 1000,
        surface=events["surface"].to_pylist(),
        position=events["position"].to_numpy(),
        window_days=window_days,
    )


def _request_times(dataset: Dataset) -> dict[str, datetime]:
    events = dataset.read("events")
    return dict(zip(events["request_id"].to_pylist(), events["event_time"].to_pylist(), strict=True))


def _deciles(score: np.ndarray) -> list[np.ndarray]:
    return np.array_split(np.argsort(score), 10)


def _count(dataset: Dataset, action: str) -> dict[str, float]:
    rows = dataset.read("actions").to_pylist()
    mine = [row for row in rows if row["action"] == action]
    return {"rows": len(mine), "value": sum(row["order_value_minor"] or 0 for row in mine)}
