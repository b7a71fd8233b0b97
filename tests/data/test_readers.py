"""Every reader on a hand-made log in the upstream layout: what is kept, dropped and why, and the values."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from data.contract import open_dataset
from data.dataset import Dataset
from shopreel import run_command
from tests.data.upstream import UPSTREAM


@pytest.fixture
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """The dataset imported from the layout that the test names with ``@layout``."""
    name, overrides = request.param
    source, write = UPSTREAM[name]
    (tmp_path / "raw").mkdir()
    raw = write(tmp_path / "raw")
    out = tmp_path / "dataset"
    run_command("import", [f"source={source}", f"raw={raw}", f"out={out}", "threads=1", *overrides])
    return open_dataset(out)


def layout(name: str, *overrides: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("imported", [(name, overrides)], indirect=True, ids=[name])


def rows(dataset: Dataset, table: str = "events", *columns: str) -> list[Any]:
    """Rows as dicts without nulls; with ``columns``, as tuples of them with nulls."""
    found = dataset.scan(table).to_table().to_pylist()
    if columns:
        return [tuple(row[name] for name in columns) for row in found]
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def dropped(dataset: Dataset, table: str = "events") -> dict[str, int]:
    report = dataset.info.extra["import_report"][table]
    assert report["read"] == report["kept"] + sum(report["dropped"].values())
    assert report["kept"] + report["added"] == dataset.scan(table).count_rows()
    return report["dropped"]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@layout("kuairand")
def test_kuairand_keeps_unknown_apart_from_false(imported: Dataset) -> None:
    assert dropped(imported) == {
        "without user or video": 1, "without time": 1, "time out of range": 2, "exact duplicate rows": 2,
    }  # fmt: skip
    events = rows(imported)
    labels = {"long_view", "like", "click", "comment", "share", "follow", "profile_view", "hide"}
    from_history = [event for event in events if "policy" not in event]
    assert [(event["long_view"], event["like"]) for event in from_history] == [(False, False), (True, True)]
    assert all(not labels - {"long_view", "like"} & event.keys() for event in from_history)
    assert all(labels <= event.keys() for event in events if "policy" in event)
    first = events[0]
    assert first["event_time"] == utc("2022-04-26T04:00:00.123")
    assert (first["surface"], first["watch_ms"], first["policy"]) == ("1", 20000, "standard")
    assert {name for name in labels if first[name]} == {"click", "long_view", "share", "profile_view"}
    # the same impression but for a column that is not imported is another impression, not a duplicate
    assert events[0] == events[1]
    assert [event["policy"] for event in events if event["event_time"] == utc("2022-04-27T17:20:01")] == [
        "random"
    ]
    assert "watch_ms" not in next(event for event in events if event["video_id"] == 99)


@layout("kuairand")
def test_kuairand_places_a_row_in_its_logged_day_in_order(imported: Dataset) -> None:
    late = [event for event in rows(imported) if event.get("surface") == "4"]
    assert [event["video_id"] for event in late] == [2, 3]
    midnight = utc("2022-04-26T16:00:00")
    assert all(0 <= (event["event_time"] - midnight).total_seconds() < 11 for event in late)
    assert late[0]["event_time"] < late[1]["event_time"]


@layout("kuairand")
def test_kuairand_catalogue(imported: Dataset) -> None:
    videos = {video.pop("video_id"): video for video in rows(imported, "videos")}
    assert videos[1]["tags"] == ["12", "65"]
    assert videos[1]["publish_time"] == utc("2022-04-09T16:00:00")
    assert videos[1]["title"] == '#王者荣耀 "妲己",\n第二行'
    assert (videos[1]["category"], videos[1]["top_category"]) == ("球类运动", "运动")
    assert videos[2]["creator_id"] == 9007199254740993
    assert not {"duration_ms", "tags", "category", "title"} & videos[2].keys()
    assert not {"duration_ms", "publish_time"} & videos[3].keys()
    assert videos[99] == {}
    assert dropped(imported, "videos") == {}
    users = rows(imported, "users")
    assert "is_live_streamer" not in users[0]
    assert "user_active_degree" not in users[1]
    assert (users[0]["register_days"], users[0]["onehot_feat4"]) == (799.0, 4)
    assert "statistic" in " ".join(imported.info.notes)


@layout("kuairec")
def test_kuairec(imported: Dataset) -> None:
    assert dropped(imported) == {"without time": 1, "exact duplicate rows": 1}
    assert rows(imported, "events", "video_id", "watch_ms", "long_view", "policy") == [
        (148, 4381, False, "standard"), (183, 11635, True, "standard"),
        (148, 18000, True, "everything_shown"),
    ]  # fmt: skip
    assert rows(imported)[0]["event_time"] == utc("2020-07-04T21:27:48.378")
    first, second = rows(imported, "videos")
    assert (first["upload_type"], first["tags"], first["category"]) == (
        "ShortImport",
        ["27", "9"],
        "颜值随拍",
    )
    assert first["title"] == '精神小伙路难走 "程哥""你狗粮慢点撒\n第二行'.replace('""', '"')
    assert "music_id" not in first
    assert second == {"video_id": 183, "duration_ms": 6100, "tags": ["8"]}


@layout("microlens")
def test_microlens_with_times(imported: Dataset) -> None:
    assert dropped(imported) == {"time out of range": 1, "exact duplicate rows": 1}
    assert rows(imported)[1] == {
        "user_id": 36121, "video_id": 9580, "event_time": utc("2020-03-05T03:23:49.552"),
        "click": True, "comment": True,
    }  # fmt: skip
    assert rows(imported, "videos", "video_id", "title") == [(2, None), (9580, 'a "quoted", é\ntitle')]


@layout("microlens_tsv")
def test_microlens_in_order_only(imported: Dataset) -> None:
    assert imported.info.ordered
    assert not imported.info.real_time
    splits = rows(imported, "events", "user_id", "video_id", "split")
    assert splits[:4] == [(1, 11, "train"), (1, 12, "train"), (1, 13, "validation"), (1, 14, "test")]
    assert splits[4:] == [(2, 12, "train"), (2, 11, "train")]


@layout("taobao_user_behavior")
def test_taobao_user_behavior(imported: Dataset) -> None:
    days = "outside the log's days (2017-11-25 to 2017-12-03)"
    assert dropped(imported) == {days: 4, "unknown behaviour": 1, "exact duplicate rows": 1}
    labels = ("product_click", "save", "add_to_cart", "purchase")
    found = rows(imported, "events", "user_id", *labels)
    assert found == [
        (1, True, None, None, None), (1, None, None, None, True),
        (2, None, True, None, None), (2, None, None, True, None),
    ]  # fmt: skip
    assert rows(imported, "videos", "video_id", "product_ids") == [(3, [3]), (2268318, [2268318])]


@layout("taobao_ecomm")
def test_taobao_ecomm(imported: Dataset) -> None:
    assert dropped(imported) == {"unknown behaviour": 1, "not a day": 1, "exact duplicate rows": 1}
    assert rows(imported, "events", "user_id", "video_id", "event_time") == [
        (10, 500, utc("2019-06-15T16:00:00")), (10, 501, utc("2019-06-15T16:00:01")),
        (10, 500, utc("2019-06-16T16:00:00")), (11, 777, utc("2019-06-09T16:00:00")),
    ]  # fmt: skip
    assert not imported.info.real_time
    assert imported.info.extra["time_resolution"] == "day"
    assert rows(imported, "products", "product_id", "price_minor", "currency", "brand") == [
        (500, 2180, "CNY", None), (501, 29, "CNY", "88"), (777, None, None, None),
    ]  # fmt: skip
    assert dropped(imported, "videos") == dropped(imported, "products") == {}
    assert rows(imported, "users")[1] == {"user_id": 11, "gender": 0, "career": 9}


@layout("retailrocket")
def test_retailrocket(imported: Dataset) -> None:
    assert dropped(imported) == {"unknown event": 1, "exact duplicate rows": 1}
    assert {event["product_id"] for event in rows(imported) if event.get("purchase")} == {356475}
    products = rows(imported, "products", "product_id", "category", "parent_category")
    assert products == [(9, None, None), (5206, None, None), (355908, "1", "1016"), (356475, None, None)]


@layout("otto")
def test_otto(imported: Dataset) -> None:
    assert dropped(imported) == {"time out of range": 1, "unknown type": 1, "exact duplicate rows": 1}
    assert rows(imported, "events", "user_id", "product_id", "product_click", "add_to_cart", "purchase") == [
        (0, 5, True, None, None), (0, 6, None, True, None),
        (0, 6, None, None, True), (3, 7, True, None, None),
    ]  # fmt: skip


@layout("movielens_100k")
def test_movielens_100k(imported: Dataset) -> None:
    assert dropped(imported) == {"time out of range": 1}
    assert rows(imported, "events", "video_id", "click", "like") == [(1, True, True), (242, True, False)]
    assert rows(imported, "videos", "title", "tags", "release_year") == [
        ("Toy Story (1995)", ["Animation", "Comedy"], 1995),
        ("Misérables, Les (1995)", None, 1995), ("unknown", None, None),
    ]  # fmt: skip
    assert rows(imported, "users")[0]["zip_code"] == "T8H1N"


@layout("movielens_1m", "like_from_rating=3")
def test_movielens_1m(imported: Dataset) -> None:
    assert dropped(imported) == {"exact duplicate rows": 1}
    assert rows(imported, "events", "video_id", "like") == [(1193, True), (661, True)]
    assert rows(imported, "videos", "title")[1] == ("L'Été: 'One' \"Flew\" (1975)",)
    assert rows(imported, "users")[0]["age_group"] == 1


@layout("movielens_25m")
def test_movielens_25m(imported: Dataset) -> None:
    assert rows(imported, "events", "video_id", "like") == [(306, False), (296, True), (306, True)]
    assert rows(imported, "videos", "title", "tags") == [
        ('Fiction, "Pulp" (1994)', ["Comedy", "Crime"]), ("Three Colors: Красный", None),
    ]  # fmt: skip


@layout("recbole")
def test_recbole(imported: Dataset) -> None:
    assert dropped(imported) == {"exact duplicate rows": 1}
    # an id with a leading zero stays text, and with it all ids of that column
    assert rows(imported, "events", "user_id", "video_id", "like") == [("u1", "007", True), ("u2", "8", None)]
    assert rows(imported)[0]["event_time"] == utc("2020-03-05T03:23:49.552")
    assert rows(imported, "videos")[0] == {
        "video_id": "007", "title": 'A "quoted', "tags": ["x", "y"], "price": 1.5, "tags_field": "spy",
    }  # fmt: skip
    assert "vector" in " ".join(imported.info.notes)


@layout("sequence")
def test_sequence_leaves_one_out(imported: Dataset) -> None:
    assert imported.info.ordered
    assert not imported.info.real_time
    assert rows(imported, "events", "user_id", "video_id", "split") == [
        (1, 10, "train"), (1, 11, "train"), (1, 10, "validation"), (1, 12, "test"),
        (2, 11, "train"), (2, 12, "train"),
        (3, 13, "train"), (3, 10, "validation"), (3, 11, "test"),
    ]  # fmt: skip
    times = [event["event_time"] for event in rows(imported)[:4]]
    assert [(time - times[0]).total_seconds() for time in times] == [0, 1, 2, 3]
    assert rows(imported, "videos", "video_id", "tags") == [
        (10, ["3", "1"]),
        (11, []),
        (12, None),
        (13, None),
    ]


@layout("sequence_sets")
def test_sets_share_one_time_and_hold_out_by_hash(imported: Dataset) -> None:
    assert not imported.info.ordered
    assert dropped(imported) == {"exact duplicate rows": 1}
    events = rows(imported)
    assert len({(event["split"], event["event_time"]) for event in events}) == 3
    parts = {
        part: {event["video_id"] for event in events if event["user_id"] == 0 and event["split"] == part}
        for part in ("train", "validation", "test")
    }
    assert parts["test"] == {20, 21}
    assert len(parts["validation"]) == 2
    assert parts["train"] | parts["validation"] == set(range(20))
    assert {event["split"] for event in events if event["user_id"] == 1} == {"train", "test"}


@layout("sequence_sets", "validation_share=0")
def test_sets_without_validation_stay_as_given(imported: Dataset) -> None:
    assert {event["split"] for event in rows(imported)} == {"train", "test"}


@layout("openbandit")
def test_openbandit(imported: Dataset) -> None:
    assert dropped(imported) == {}
    found = sorted(
        rows(imported, "events", "video_id", "position", "click", "propensity", "policy", "surface")
    )
    assert found == [
        ("men-5", 0, True, 0.0125, "random", "men"), ("men-5", 1, False, 0.087125, "bts", "men"),
        ("men-6", 2, False, 0.0125, "random", "men"),
    ]  # fmt: skip
    assert utc("2019-11-24T00:00:17.004101") in {event["event_time"] for event in rows(imported)}
    assert rows(imported, "videos", "video_id", "item_feature_1") == [("men-5", "bts1"), ("men-6", "bts2")]
    assert len(rows(imported, "users")) == 3


@pytest.mark.parametrize("name", ["kuairand", "taobao_ecomm", "sequence_sets"])
def test_the_same_input_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    source, write = UPSTREAM[name]
    (tmp_path / "raw").mkdir()
    raw = write(tmp_path / "raw")
    for out in ("first", "second"):
        run_command("import", [f"source={source}", f"raw={raw}", f"out={tmp_path / out}"])
    first, second = (
        {
            file.relative_to(tmp_path / out): file.read_bytes()
            for file in (tmp_path / out).rglob("*")
            if file.is_file()
        }
        for out in ("first", "second")
    )
    assert first == second
    assert json.loads(first[Path("dataset.json")])["tasks"]
