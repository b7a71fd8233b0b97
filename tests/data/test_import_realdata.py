"""Imports of the real logs give the published counts."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from data.contract import open_dataset
from shopreel import run_command

pytestmark = pytest.mark.realdata
Query = Callable[[str], list[tuple[object, ...]]]


def imported(out: Path, source: str, raw: Path) -> Query:
    """Import and return a function that queries the views events, videos, users and products."""
    if not raw.exists():
        pytest.skip(f"no {raw}")
    run_command("import", [f"source={source}", f"raw={raw}", f"out={out}"])
    dataset = open_dataset(out)
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    for table in ("events", "videos", "users", "products"):
        if files := [str(file) for file in dataset.files(table)]:
            connection.execute(f"create view {table} as select * from read_parquet({files})")
    return lambda sql: connection.execute(sql).fetchall()


def test_kuairand_pure_gives_the_published_split(real_data: Path, tmp_path: Path) -> None:
    query = imported(tmp_path / "kuairand", "kuairand", real_data / "kuairand-pure" / "data")
    report = open_dataset(tmp_path / "kuairand").info.extra["import_report"]
    assert report["events"] == {
        "read": 185_061 + 817_187, "kept": 997_571, "added": 0, "dropped": {"exact duplicate rows": 4_677},
    }  # fmt: skip
    assert query("select count(*) from videos") == [(7_583,)]
    assert query("select count(*) from users") == [(27_285,)]
    day = "(event_time::timestamp + interval 8 hour)::date"
    real = "policy is not null"  # rows with real times and all labels, not those of log_history
    assert query(f"select count(*) from events where {real} and {day} <= '2022-05-03'") == [(150_055,)]
    assert query(f"select count(*) from events where {real} and {day} = '2022-05-05'") == [(13_103,)]
    history = 'select count(*), count("like"), count(long_view), count(click), count(watch_ms) from events'
    assert query(f"{history} where policy is null") == [(817_187, 817_187, 817_187, 0, 0)]
    positives = (
        f"select sum(\"like\"::int), sum(profile_view::int) from events where {real} and {day} = '2022-05-05'"
    )
    assert query(positives) == [(185, 225)]
    truth = (
        f"select distinct user_id, video_id from events where long_view and {day} = '2022-05-05'"
        f" except select user_id, video_id from events where {day} < '2022-05-05'"
    )
    assert query(f"select count(distinct user_id), count(*) from ({truth})") == [(3_108, 3_962)]


@pytest.mark.parametrize(
    ("name", "users", "videos", "events"),
    [("Beauty", 22_363, 12_101, 198_502), ("Sports_and_Outdoors", 35_598, 18_357, 296_337)],
)
def test_s3rec_sequences(
    name: str, users: int, videos: int, events: int, real_data: Path, tmp_path: Path
) -> None:
    query = imported(tmp_path / name, "sequence", real_data / "amazon-s3rec" / f"{name}.txt")
    assert query("select count(*), count(distinct user_id), count(distinct video_id) from events") == [
        (events, users, videos)
    ]
    assert query("select split, count(*) from events group by split order by split") == [
        ("test", users), ("train", events - 2 * users), ("validation", users),
    ]  # fmt: skip
    assert query("select count(*), count(tags) from videos") == [(videos, videos)]


def test_ml_1m_given_sets(real_data: Path, tmp_path: Path) -> None:
    query = imported(tmp_path / "ml1m", "sequence", real_data / "ml-1m-ultragcn")
    counts = dict(query("select split, count(*) from events group by split"))
    assert counts["test"] == 99_455
    assert counts["train"] + counts["validation"] == 796_244
    assert 0.09 < counts["validation"] / 796_244 < 0.1
    assert query("select count(distinct event_time) from events") == [(3,)]


def test_taobao_ecomm(real_data: Path, tmp_path: Path) -> None:
    query = imported(tmp_path / "taobao", "taobao", real_data / "taobao-ecomm")
    labels = "count(product_click), count(save), count(add_to_cart), count(purchase)"
    assert query(f"select count(*), {labels} from events") == [(59_870, 40_746, 4_112, 10_679, 4_333)]
    assert query("select count(*), count(price_minor), min(price_minor) from products") == [
        (36_224, 36_224, 70)
    ]
    assert query("select count(*) from users") == [(1_500,)]


def test_ml_100k_atomic(real_data: Path, tmp_path: Path) -> None:
    query = imported(tmp_path / "ml100k", "recbole", real_data / "ml-100k-atomic")
    assert query('select count(*), sum("like"::int) from events') == [(100_000, 55_375)]
    assert query("select count(*), count(title) from videos") == [(1_682, 1_682)]


def test_open_bandit(real_data: Path, tmp_path: Path) -> None:
    query = imported(tmp_path / "openbandit", "openbandit", real_data / "open-bandit-small")
    assert query("select policy, surface, count(*) from events group by all order by all") == [
        (policy, campaign, 10_000) for policy in ("bts", "random") for campaign in ("all", "men", "women")
    ]
    uniform = "from events where policy = 'random' group by surface order by surface"
    bounds = query(f"select min(propensity), max(propensity) {uniform}")
    assert bounds == [(pytest.approx(1 / arms), pytest.approx(1 / arms)) for arms in (80, 34, 46)]


def test_otto_sample(real_data: Path, tmp_path: Path) -> None:
    query = imported(tmp_path / "otto", "otto", real_data / "format-samples" / "otto")
    assert query("select count(*), count(distinct user_id) from events") == [(862, 20)]
