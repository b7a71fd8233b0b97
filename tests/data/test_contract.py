"""The contract checker: each breach is one line with file, column, row and mend; a good dataset passes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.contract import check_types, open_dataset, time_zone
from data.dataset import Dataset, read_info
from data.errors import ContractError
from data.schema import LABELS, TIME

NOW = datetime(2026, 5, 1, tzinfo=UTC)
US = 1_000_000
DAY_US = 86_400 * US
#: A moment inside the legal range.
IN = 1_775_000_000 * US


def times(*micros: int | None) -> pa.Array:
    return pa.array(micros, pa.int64()).cast(TIME)


def events(**columns: Any) -> pa.Table:
    """Three events of two users; ``columns`` replaces or adds columns, None takes one away."""
    start = int(datetime(2026, 4, 1, tzinfo=UTC).timestamp()) * US
    base: dict[str, Any] = {
        "user_id": pa.array([1, 1, 2]),
        "video_id": pa.array([10, 11, 10]),
        "event_time": times(start, start + US, start + DAY_US),
        "click": pa.array([True, False, None]),
    }
    base.update(columns)
    return pa.table({name: value for name, value in base.items() if value is not None})


def write(folder: Path, **tables: pa.Table) -> Path:
    """A dataset with events and videos unless ``tables`` says otherwise."""
    info = {"schema_version": 1, "name": "small", "source": "test", "licence": "CC0-1.0"}
    (folder / "dataset.json").write_text(json.dumps(info))
    tables = {"events": events(), "videos": pa.table({"video_id": [10, 11]}), **tables}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ContractError) as caught:
        open_dataset(folder, now=NOW, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_full_dataset_passes(tmp_path: Path) -> None:
    full = events(
        position=pa.array([0, 1, None], pa.int32()), propensity=[1.0, 1e-9, None], watch_ms=[0, 5, None],
        split=["train", "validation", "test"], product_id=["a", None, "b"], surface=["feed", None, "feed"],
    )  # fmt: skip
    videos = pa.table({
        "video_id": [10, 11], "tags": [["x"], None], "product_ids": [["a", "b"], []],
        "content_embedding": pa.array([[0.5, 1.0], None], pa.list_(pa.float32(), 2)),
        "publish_time": times(None, DAY_US * 9000),
        "colour": ["red", None],
    })  # fmt: skip
    actions = pa.table({
        "user_id": [1], "video_id": [10], "action": ["purchase"], "action_time": times(DAY_US * 20_000),
        "order_value_minor": [100], "currency": ["EUR"],
    })  # fmt: skip
    products = pa.table({"product_id": ["a", "b"], "price_minor": [0, None], "in_stock": [True, None]})
    users = pa.table({"user_id": [2, 1], "market": ["de", None]})
    folder = write(tmp_path, events=full, videos=videos, actions=actions, products=products, users=users)
    assert open_dataset(folder, now=NOW).path == folder


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"event_time": None}, "column event_time: missing (it has user_id, video_id, click); add it"),
        ({"user_id": pa.array([1, 1, 2], pa.int32())}, "user_id: is int32; cast it to int64 or string"),
        ({"event_time": pa.array([1, 2, 3])}, "is int64; cast it to timestamp[us, tz=UTC]"),
        ({"event_time": times(1, 2, 3).cast(pa.timestamp("us"))}, "is timestamp[us]; cast"),
        ({"click": pa.array([1, 0, None])}, "click: a label must be bool with null for unknown, but it is"),
        ({"click": pa.array([None] * 3, pa.bool_())}, "every label is null (unknown); drop the column"),
        ({"click": pa.nulls(3)}, "column click: wholly null; drop the column"),
        ({"user_id": pa.array([1, None, None])}, "row 1 (from 0): is null (so in 2 of 3 rows); fill it"),
        ({"event_time": times(IN, None, IN)}, "event_time, row 1 (from 0): is null; fill"),
        ({"event_time": times(1775000000, IN, IN)}, "row 0 (from 0): 1970-01-01 00:29:35+00 is"),
        ({"event_time": times(IN, IN, 2**62)}, "row 2 (from 0): 148108-07-06 14:00:27.387904+00"),
        ({"propensity": [1.0, 0.0, 0.5]}, "propensity, row 1 (from 0): 0.0 is outside (0, 1]; write"),
        ({"propensity": [1.0, 0.5, 1.0000001]}, "propensity, row 2 (from 0): 1.0000001 is outside (0, 1]"),
        ({"propensity": [1.0, 0.5, float("nan")]}, "propensity, row 2 (from 0): nan is outside (0, 1]"),
        ({"split": ["train", "valid", "test"]}, "row 1 (from 0): valid is none of train, validation, test"),
        ({"split": ["train", None, "test"]}, "split, row 1 (from 0): is null; fill it, or drop"),
        ({"watch_ms": [1, -1, 0]}, "row 1 (from 0): -1 is negative; write null where it is unknown"),
        ({"position": pa.array([0, 1, -3], pa.int32())}, "position, row 2 (from 0): -3 is negative"),
        ({"video_id": [10, 12, 10]}, "video 12 is not in videos, as in 1 of 3 events (33.33%,"),
        ({"video_id": ["10", "11", "10"]}, "column video_id: ids are int64 here and string in"),
    ],
)  # fmt: skip
def test_breaches_of_events(columns: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(write(tmp_path, events=events(**columns)))


@pytest.mark.parametrize(
    ("table", "rows", "expected"),
    [
        ("videos", {"video_id": [10, 11, 11]}, "column video_id, row 2 (from 0): duplicate id 11; keep one"),
        ("users", {"user_id": [1, 1, 2, 2]}, "row 1 (from 0): duplicate id 1 (2 ids repeat); keep one"),
        ("products", {"product_id": ["a", "a"]}, "row 1 (from 0): duplicate id a; keep one"),
        ("users", {"user_id": [1, None]}, "users.parquet, column user_id, row 1 (from 0): is null"),
        ("users", {"user_id": ["1", "2"]}, "users.parquet, column user_id: ids are string here and int64 in"),
        ("products", {"product_id": [1], "price_minor": [-5]}, "row 0 (from 0): -5 is negative"),
        ("videos", {"video_id": [10, 11], "tags": [[1], [2]]}, "is list<element: int64>; cast it to list<"),
        ("videos", {"video_id": [1, 2], "content_embedding": [[1.0], [2.0]]}, "to fixed_size_list<float>"),
        ("actions", {"user_id": [1], "video_id": [10], "action": ["buy"], "action_time": times(IN)},
         "actions.parquet, column action, row 0 (from 0): buy is none of click, long_view"),
        ("actions", {"user_id": [1], "video_id": [9], "action": ["like"], "action_time": times(IN)},
         "video 9 is not in videos, as in 1 of 1 actions"),
    ],
)  # fmt: skip
def test_breaches_of_other_tables(table: str, rows: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(write(tmp_path, **{table: pa.table(rows)}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("content_embedding", pa.float32()), ('audio "2"', pa.float16()), ("frames", pa.float64())],
)
def test_every_embedding_must_be_finite(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    embedding = pa.array([[1.0, 2.0], [1.0, float("inf")]], pa.list_(pa.float32(), 2)).cast(pa.list_(kind, 2))
    # the row of the file, whatever the order of ids
    folder = write(tmp_path, videos=pa.table({"video_id": [11, 10], name: embedding}))
    expected = f"videos.parquet, column {name}, row 1 (from 0): holds a value that is not finite"
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("ordered", "no", "field ordered: 'no' is not true or false"),
        ("real_time", 0, "field real_time: 0 is not true or false"),
        ("tasks", "click", "field tasks: 'click' is not a list of texts"),
        ("notes", [1], "field notes: [1] is not a list of texts"),
        ("time_zone", 8, "field time_zone: 8 is not a text"),
        ("extra", [], "field extra: [] is not an object"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(field: str, value: Any, expected: str, tmp_path: Path) -> None:
    info = json.loads((write(tmp_path) / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(info | {field: value}))
    assert expected in refusal(tmp_path)


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    assert "the log has no row" in refusal(write(tmp_path, events=events().slice(0, 0)))


def test_no_log_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "events.parquet").unlink()
    assert "no events/ and no events.parquet" in refusal(folder)


def test_without_a_description_the_mend_shows_one(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "dataset.json").unlink()
    assert '/dataset.json: no such file; write it, such as {"schema_version": 1, "name"' in refusal(folder)


def test_two_logs_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "events").mkdir()
    pq.write_table(events(), folder / "events" / "part-0.parquet")
    assert "has both events/ and events.parquet; remove one" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 3, 400, -8, -1])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    file = write(tmp_path) / "events.parquet"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(tmp_path)
    assert message.startswith(f"{file}: not a whole Parquet file (")
    assert message.endswith("copy or import it again")


def test_a_damaged_page_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, events=events(surface=["a" * 1000] * 3)) / "events.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    assert "a file is damaged" in refusal(tmp_path)


def test_the_row_is_named_in_its_own_file(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "events.parquet").unlink()
    (folder / "events").mkdir()
    pq.write_table(events(), folder / "events" / "part-0.parquet")
    pq.write_table(events(video_id=[10, 11, 77]), folder / "events" / "part-1.parquet")
    message = refusal(folder)
    assert f"{folder}/events/part-1.parquet, column video_id, row 2 (from 0): video 77" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda table: table.drop_columns("click"), "part-1.parquet, column click: missing, but"),
        (
            lambda table: table.append_column("like", table["click"]),
            "part-0.parquet, column like: missing, but",
        ),
        (
            lambda table: table.set_column(3, "click", pa.array([1, 2, 3])),
            "column click: int64 here and bool in",
        ),
    ],
)
def test_files_of_a_table_must_be_alike(
    change: Callable[[pa.Table], pa.Table], expected: str, tmp_path: Path
) -> None:
    folder = write(tmp_path)
    (folder / "events.parquet").unlink()
    (folder / "events").mkdir()
    pq.write_table(events(), folder / "events" / "part-0.parquet")
    pq.write_table(change(events()), folder / "events" / "part-1.parquet")
    assert expected in refusal(folder)


def test_the_share_of_unknown_videos_is_a_setting(tmp_path: Path) -> None:
    folder = write(tmp_path, events=events(video_id=[10, 12, 10]))
    assert open_dataset(folder, max_unknown_share=0.34, now=NOW)
    assert "allowed 33.00%" in refusal(folder, max_unknown_share=0.33)


def test_only_the_named_tables_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, events=events(watch_ms=[-1, 0, 0]), users=pa.table({"user_id": [1, 1]}))
    assert open_dataset(folder, tables=("videos",), now=NOW)
    assert "duplicate id" in refusal(folder, tables=("users",))
    check_types(Dataset(folder, read_info(folder)))


def test_without_videos_any_video_is_known(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "videos.parquet").unlink()
    assert open_dataset(folder, now=NOW)


def test_a_path_with_a_quote_is_no_sql(tmp_path: Path) -> None:
    folder = tmp_path / "it's; drop table"
    folder.mkdir()
    assert open_dataset(write(folder), now=NOW)


@pytest.mark.parametrize(
    ("name", "hours"), [("UTC", 0), ("+08:00", 8), ("-03:30", -3.5), ("Asia/Shanghai", 8)]
)
def test_time_zones(name: str, hours: float) -> None:
    offset = time_zone(name).utcoffset(datetime(2026, 1, 1))
    assert offset is not None
    assert offset.total_seconds() == hours * 3600


@pytest.mark.parametrize("name", ["", "+8", "+25:00", "Mars/Olympus", "../../etc/passwd", "+08:00:00"])
def test_a_wrong_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match=r"field time_zone: .* is no time zone; write UTC"):
        time_zone(name)


@settings(max_examples=20)
@given(
    labels=st.lists(st.sampled_from(LABELS), min_size=1, max_size=3, unique=True),
    values=st.lists(st.sampled_from([True, False, None]), min_size=3, max_size=3),
)
def test_a_label_column_passes_unless_wholly_unknown(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], values: list[bool | None]
) -> None:
    folder = write(
        tmp_path_factory.mktemp("labels"),
        events=events(**{"click": None, **{label: pa.array(values, pa.bool_()) for label in labels}}),
    )
    if any(value is not None for value in values):
        assert open_dataset(folder, now=NOW)
    else:
        assert "drop the column" in refusal(folder)
