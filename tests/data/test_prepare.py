"""``shopreel prepare`` against a slow reference, with planted futures, and its refusals."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shopreel
from data.errors import ConfigError, ContractError
from data.prepared import Prepared
from data.schema import LABEL_BIT
from data.shards import sequence_rows
from tests.data.logs import DAY_MS, at, crowded_log, ms_of, names, prepare, sequences, write_dataset

VIDEOS = [{"video_id": 10}, {"video_id": 20}]  # 30 is shown but not in the catalogue
HOUR = 3_600_000
WINDOWS = {"click": 2 * HOUR, "purchase": 20 * HOUR}
SETTINGS = (
    "attribution.default_minutes=120", f"attribution.days.purchase={20 / 24}", "max_unknown_share=1",
    "split.validation=2026-01-02", "split.test=2026-01-03", "split.end=2026-01-04",
)  # fmt: skip


def reference(events, actions, *, rank_of, end_ms):
    """Per user the steps, and per impression what it may know; one record at a time, by the contract.

    ``rank_of(event)`` is the split. Times are cut to milliseconds, and what lies at or after ``end_ms`` does
    not exist.
    """
    row = {10: 1, 20: 2}
    logs = {}
    for event in events:
        when = ms_of(event["event_time"])
        if when < end_ms:
            own = {name for name in ("click", "like") if event[name]}
            seen = {name for name in ("click", "like") if event[name] is not None}
            logs.setdefault(event["user_id"], ([], []))[0].append(
                {
                    "rank": rank_of(event), "time": when, "video": row.get(event["video_id"], 0), "own": own,
                    "seen": seen,
                    "watch": -1 if event["watch_ms"] is None else min(event["watch_ms"], 2**31 - 1),
                    "request": event["request_id"], "true": set(own), "known": set(seen), "value": -1,
                }
            )  # fmt: skip
    for action in actions:
        when = ms_of(action["action_time"])
        if when < end_ms:
            logs.setdefault(action["user_id"], ([], []))[1].append(
                (when, row.get(action["video_id"], 0), action)
            )
    covered = 1 + max(
        [i["time"] for impressions, _ in logs.values() for i in impressions]
        + [when for _, done in logs.values() for when, *_ in done]
    )
    for impressions, done in logs.values():
        for i in impressions:
            i["known"] |= {
                name for name, window in WINDOWS.items() if i["video"] and i["time"] + window < covered
            }
        for when, video, action in done:
            before = [i for i in impressions if 0 < i["video"] == video and i["time"] <= when]
            same = [i for i in before if i["request"] == action["request_id"] is not None]
            # among impressions of one moment the one that sorts last; masks and requests break the tie
            cause = max(
                same or before,
                key=lambda i: (i["time"], bits(i["own"]), bits(i["seen"]), i["watch"]),
                default=None,
            )
            if cause and when - cause["time"] <= WINDOWS[action["action"]]:
                cause["true"].add(action["action"])
                if action["action"] == "purchase" and action["order_value_minor"] is not None:
                    cause["value"] = max(cause["value"], 0) + action["order_value_minor"]
    return logs


def bits(labels):
    return sum(LABEL_BIT[name] for name in labels)


def by_day(event):
    return min(ms_of(event["event_time"]) - ms_of(at(0)), 3 * DAY_MS) // DAY_MS


@pytest.fixture(scope="module")
def log():
    """Four days, an hour between moments, some of it past the end."""
    events, actions = crowded_log(3, span_ms=96, unit_ms=HOUR)
    doubled, late = crowded_log(4, span_ms=8, unit_ms=12 * HOUR)
    return events + doubled, actions + late


@pytest.fixture(scope="module")
def prepared(log, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepare")
    events, actions = log
    return prepare(
        write_dataset(folder / "d", events, actions=actions, videos=VIDEOS), folder / "p", *SETTINGS
    )


def test_steps_examples_and_labels_are_those_of_the_reference(log, prepared: Prepared):
    expected = reference(*log, rank_of=by_day, end_ms=ms_of(at(3 * DAY_MS)))
    rows = sequences(prepared)
    assert sorted(prepared.users.ids([row["user_row"] for row in rows]).to_pylist()) == sorted(expected)
    for row in rows:
        impressions, actions = expected[prepared.users.ids([row["user_row"]]).to_pylist()[0]]
        steps = [(i["time"], 0, i["video"], bits(i["own"]), bits(i["seen"]), i["watch"]) for i in impressions]
        for when, video, action in actions:
            steps.append((when, 1, video, LABEL_BIT[action["action"]], LABEL_BIT[action["action"]], -1))
        columns = ("step_time_ms", "step_video", "step_actions", "step_known", "step_watch_ms")
        got = list(zip(*(row[name] for name in columns), strict=True))
        assert got == [step[:1] + step[2:] for step in sorted(steps)]

        examples = zip(
            *(row[f"example_{name}"] for name in
              ("time_ms", "video", "true", "known", "watch_ms", "split", "order_value_minor")),
            strict=True,
        )  # fmt: skip
        wanted = [
            (i["time"], i["video"], bits(i["true"]), bits(i["known"]), i["watch"], i["rank"], i["value"])
            for i in impressions
        ]
        assert sorted(examples) == sorted(wanted)
        for when, end in zip(row["example_time_ms"], row["example_history_end"], strict=True):
            assert end == sum(time < when for time in row["step_time_ms"])


def test_nothing_planted_in_the_future_is_in_any_earlier_history(tmp_path: Path):
    # video 20 is shown at noon and bought in the evening: at dawn none of it may be known
    events = [
        {"user_id": 1, "video_id": 10, "event_time": at(hour * HOUR), "click": True}
        for hour in (5, 6, 18, 30, 54)
    ] + [{"user_id": 1, "video_id": 20, "event_time": at(12 * HOUR), "click": False}]
    bought = {"user_id": 1, "video_id": 20, "action": "purchase", "action_time": at(20 * HOUR)}
    dataset = write_dataset(tmp_path / "d", events, actions=[bought], videos=VIDEOS)
    row = sequences(prepare(dataset, tmp_path / "p"))[0]
    purchase = LABEL_BIT["purchase"]
    examples = list(zip(row["example_time_ms"], row["example_true"], row["example_history_end"], strict=True))
    known = {time: row["step_video"][:end] for time, _, end in examples}
    outcomes = {time: row["step_actions"][:end] for time, _, end in examples}
    hour_of = {time: (time - ms_of(at(0))) // HOUR for time in known}
    for time, videos in known.items():
        assert (2 in videos) == (hour_of[time] > 12)
        assert any(mask & purchase for mask in outcomes[time]) == (hour_of[time] > 20)
    # the purchase is the label of the impression at noon, and stands in no step at noon
    assert [names(true) for time, true, _ in examples if hour_of[time] == 12] == [{"purchase"}]
    assert [names(mask) for time, mask in zip(row["step_time_ms"], row["step_actions"], strict=True)
            if (time - ms_of(at(0))) // HOUR == 12] == [set()]  # fmt: skip


def test_given_splits_order_by_split_then_time(tmp_path: Path):
    # the test event lies before the last training event in time, and still comes after it
    events = [
        {"user_id": 1, "video_id": 10, "event_time": at(1), "split": "train", "click": True},
        {"user_id": 1, "video_id": 20, "event_time": at(3), "split": "train", "click": True},
        {"user_id": 1, "video_id": 30, "event_time": at(2), "split": "test", "click": True},
        {"user_id": 1, "video_id": 10, "event_time": at(2), "split": "validation", "click": True},
    ]
    actions = [
        {"user_id": 1, "video_id": 30, "action": "like", "action_time": at(4)},  # outcome of the test event
        {"user_id": 1, "video_id": 10, "action": "like", "action_time": at(1)},  # of the first training event
    ]
    dataset = write_dataset(tmp_path / "d", events, actions=actions)
    prepared = prepare(dataset, tmp_path / "p", "split.test=2026-01-03", "split.validation=2026-01-02")
    assert prepared.manifest["split"]["mode"] == "given"
    row = sequences(prepared)[0]
    assert row["step_video"] == [1, 1, 2, 1, 3, 3]
    assert [names(mask) for mask in row["step_actions"]] == [
        {"click"}, {"like"}, {"click"}, {"click"}, {"click"}, {"like"}
    ]  # fmt: skip
    assert list(zip(row["example_split"], row["example_history_end"], strict=True)) == [
        (0, 0),
        (0, 2),
        (1, 3),
        (2, 4),
    ]


def test_an_action_never_shows_in_the_history_of_a_split_before_it_happened(tmp_path: Path):
    # the training impression is acted on after the test event took place
    events = [
        {"user_id": 1, "video_id": 10, "event_time": at(1), "split": "train"},
        {"user_id": 1, "video_id": 20, "event_time": at(5), "split": "validation"},
        {"user_id": 1, "video_id": 20, "event_time": at(9), "split": "test"},
    ]
    actions = [{"user_id": 1, "video_id": 10, "action": "like", "action_time": at(7)},
               {"user_id": 1, "video_id": 10, "action": "share", "action_time": at(11)}]  # fmt: skip
    row = sequences(prepare(write_dataset(tmp_path / "d", events, actions=actions), tmp_path / "p"))[0]
    assert row["example_history_end"] == [0, 1, 3]
    assert [names(mask) for mask in row["step_actions"]] == [set(), set(), {"like"}, set(), {"share"}]
    assert names(row["example_true"][0]) == {"like", "share"}


def test_a_log_without_order_shows_no_training_impression_to_another(tmp_path: Path):
    events = [
        {"user_id": user, "video_id": video, "event_time": at(0), "split": split, "click": True}
        for user in (1, 2)
        for split, videos in (("train", range(40)), ("validation", range(40, 43)), ("test", range(43, 46)))
        for video in videos
    ]
    dataset = write_dataset(tmp_path / "d", events, info={"ordered": False})
    prepared = prepare(dataset, tmp_path / "p")
    first, second = sequences(prepared)
    for row in (first, second):
        assert row["example_history_end"] == [0] * 40 + [40] * 3 + [43] * 3
        assert sorted(row["step_video"][:40]) == list(range(1, 41))
        assert row["step_video"][:40] != list(range(1, 41))
    assert first["step_video"][:40] != second["step_video"][:40]
    bare = [{key: value for key, value in event.items() if key != "split"} for event in events]
    unsplit = write_dataset(tmp_path / "e", bare, info={"ordered": False})
    with pytest.raises(ConfigError, match="add a column split"):
        prepare(unsplit, tmp_path / "q")


def test_long_users_are_cut_into_chunks_with_context(tmp_path: Path):
    n = 2500
    events = [
        {
            "user_id": 1,
            "video_id": (10, 10, 20)[i % 3],
            "event_time": at(i // 3 * 300_000),
            "click": True,
            "watch_ms": i,
        }
        for i in range(n)
    ]
    actions = [{"user_id": 1, "video_id": 10, "action": "like", "action_time": at(7)}]
    prepared = prepare(write_dataset(tmp_path / "d", events, actions=actions, videos=VIDEOS), tmp_path / "p")
    rows = sequences(prepared)
    assert [len(row["step_video"]) for row in rows] == [1024, 1280, 256 + n + 1 - 2048]
    whole = rows[0]["step_time_ms"] + [time for row in rows[1:] for time in row["step_time_ms"][256:]]
    assert whole == sorted(whole)
    assert len(whole) == n + 1
    watch = [value for row in rows for value in row["example_watch_ms"]]
    assert watch == list(range(n))
    for before, row in pairwise(rows):
        assert row["step_watch_ms"][:256] == before["step_watch_ms"][-256:]
        for when, end in zip(row["example_time_ms"], row["example_history_end"], strict=True):
            assert end == sum(time < when for time in row["step_time_ms"])


def rows_of(prepared: Prepared) -> list[dict]:
    return sequences(prepared)


@pytest.mark.parametrize("how", ["other files and threads", "small blocks", "shards"])
def test_the_rows_do_not_depend_on_how_the_work_was_cut(log, prepared, tmp_path, monkeypatch, how):
    events, actions = log
    files, overrides = 1, list(SETTINGS)
    if how == "other files and threads":
        events, actions, files = events[::-1], actions[::-1], 5
        overrides.append("threads=3")
    elif how == "small blocks":
        monkeypatch.setattr("data.prepare.BLOCK_RECORDS", 50)
        monkeypatch.setattr("data.engine.BATCH_ROWS", 2048)
    else:
        monkeypatch.setattr("data.prepare.BLOCK_RECORDS", 50)
        overrides.append("shard_steps=100")
    dataset = write_dataset(tmp_path / "d", events, actions=actions, files=files, videos=VIDEOS[::-1])
    other = prepare(dataset, tmp_path / "p", *overrides)
    assert rows_of(other) == rows_of(prepared)
    assert (len(other.shards) > 3) == (how == "shards")
    parts = other.manifest["shards"]
    assert sum(part["rows"] for part in parts) == len(rows_of(other))
    assert sum(part["examples"] for part in parts) == sum(other.manifest["counts"]["impressions"].values())
    assert other.spec == prepared.spec
    assert (other.video_train_count == prepared.video_train_count).all()


def test_the_order_of_users_is_shuffled_by_the_seed(log, prepared: Prepared, tmp_path: Path):
    dataset = Path(prepared.manifest["dataset"]["path"])
    other = prepare(dataset, tmp_path / "p", *SETTINGS, "seed=1")
    order, mixed = ([row["user_row"] for row in rows_of(each)] for each in (prepared, other))
    assert sorted(order) == sorted(mixed)
    assert order != mixed
    assert order != sorted(order)
    assert other.hash != prepared.hash


def test_the_same_input_gives_the_same_hash_wherever_it_lies(prepared: Prepared, tmp_path: Path):
    shutil.copytree(prepared.manifest["dataset"]["path"], tmp_path / "moved")
    again = prepare(tmp_path / "moved", tmp_path / "p", *SETTINGS)
    assert again.hash == prepared.hash


def test_counts_and_manifest(log, prepared: Prepared):
    expected = reference(*log, rank_of=by_day, end_ms=ms_of(at(3 * DAY_MS)))
    everything = [i for impressions, _ in expected.values() for i in impressions]
    counts = prepared.manifest["counts"]
    assert list(counts["impressions"].values()) == [
        sum(i["rank"] == rank for i in everything) for rank in range(3)
    ]
    events, actions = log
    assert counts["left_out"] == len(events) + len(actions) - len(everything) - counts["actions"] > 0
    for rank, split in enumerate(("train", "validation", "test")):
        here = [i for i in everything if i["rank"] == rank]
        for label in ("click", "like", "purchase"):
            got = counts["labels"][label][split]
            assert got["true"] == sum(label in i["true"] for i in here)
            assert got["known"] == sum(label in i["known"] for i in here)
            assert got["known_true"] == sum(label in i["true"] & i["known"] for i in here)
            if rank:
                pairs = {
                    (user, i["video"])
                    for user, (impressions, done) in expected.items()
                    for i in impressions
                    if i["rank"] == rank and label in i["true"] and i["video"]
                    and all(e["video"] != i["video"] for e in impressions if e["rank"] < rank)
                    and all(v != i["video"] or when >= ms_of(at(rank * DAY_MS)) for when, v, _ in done)
                }  # fmt: skip
                assert got["truth_videos"] == len(pairs)
                assert got["truth_users"] == len({user for user, _ in pairs})
    train = [i for i in everything if i["rank"] == 0]
    assert prepared.video_train_count.tolist() == [sum(i["video"] == row for i in train) for row in range(3)]
    clicked = prepared.video_train_true[:, 0].tolist()
    assert clicked == [sum(i["video"] == row and "click" in i["true"] for i in train) for row in range(3)]
    assert prepared.tasks == ["click", "like", "purchase"]
    assert prepared.manifest["split"]["validation"] == "2026-01-02T00:00:00.000+00:00"


def test_labels_by_split_know_nothing_of_what_came_after(log, tmp_path: Path):
    events, actions = log
    dataset = write_dataset(tmp_path / "d", events, actions=actions, videos=VIDEOS)
    strict = prepare(dataset, tmp_path / "p", *SETTINGS, "attribution.horizon=split")
    for row in rows_of(strict):
        for when, split, known in zip(
            row["example_time_ms"], row["example_split"], row["example_known"], strict=True
        ):
            if known & LABEL_BIT["purchase"]:
                assert when + WINDOWS["purchase"] < ms_of(at((split + 1) * DAY_MS))


def test_every_label_can_have_its_own_window(tmp_path: Path):
    prepared = prepare(
        make(tmp_path), tmp_path / "p", "attribution.days.share=2", "attribution.days.purchase=null"
    )
    windows = prepared.manifest["settings"]["attribution_window_ms"]
    assert windows["share"] == 2 * DAY_MS
    assert windows["purchase"] == windows["click"] == HOUR // 2


def test_surfaces_markets_positions_and_raw_numbers(tmp_path: Path):
    events = [
        {"user_id": 1, "video_id": 10, "event_time": at(day * DAY_MS), "click": True, "surface": surface,
         "market": "de", "position": position}
        for day, surface, position in ((0, "feed", 3), (0, None, None), (1, "new", 0), (2, "feed", 1))
    ]  # fmt: skip
    videos = pa.table(
        {"video_id": [20, 10], "duration_ms": pa.array([None, 5], pa.int64()),
         "publish_time": pa.array([at(0), None], pa.timestamp("us", "UTC"))}
    )  # fmt: skip
    prepared = prepare(write_dataset(tmp_path / "d", events, videos=videos), tmp_path / "p")
    row = rows_of(prepared)[0]
    assert prepared.surfaces.known.to_pylist() == ["feed"]  # "new" first appears in validation
    assert sorted(row["example_surface"][:2]) == [0, 1]
    assert row["example_surface"][2:] == [0, 1]
    assert row["example_market"] == [1, 1, 1, 1]
    assert sorted(row["example_position"][:2]) == [-1, 3]
    assert prepared.video_raw["duration_ms"].tolist() == [-1, 5, -1]
    assert prepared.video_raw["publish_time_ms"].tolist() == [-1, -1, ms_of(at(0))]


def test_further_columns_of_the_log_get_in_nobody_s_way(tmp_path: Path):
    events = [
        {
            "user_id": 1,
            "video_id": 10,
            "event_time": at(day * DAY_MS),
            "click": True,
            "surface": "feed",
            "market": "de",
        }
        for day in range(3)
    ]
    names = ("row", "place", "video", "time", "rank", "true", "video_id_right", "is_action", "surface_right")
    more = [{**event, **dict.fromkeys(names, 77)} for event in events]
    plain = prepare(write_dataset(tmp_path / "d", events, actions=[]), tmp_path / "p")
    other = prepare(write_dataset(tmp_path / "e", more), tmp_path / "q")
    assert rows_of(other) == rows_of(plain)


def test_string_ids_and_users_without_events(tmp_path: Path):
    events = [
        {"user_id": user, "video_id": video, "event_time": at(day * DAY_MS), "click": True}
        for day, user, video in ((0, "ü", "v2"), (1, "a", "v1"), (2, "a", "v2"))
    ]
    users = [
        {"user_id": "a", "market": "de"},
        {"user_id": "silent", "market": "us"},
        {"user_id": "b", "market": None},
    ]
    prepared = prepare(write_dataset(tmp_path / "d", events, users=users), tmp_path / "p")
    assert prepared.users.known.to_pylist() == ["a", "b", "silent", "ü"]
    assert prepared.catalogue.known.to_pylist() == ["v1", "v2"]
    assert prepared.user_table.num_rows == 5
    # only v2 has a training event
    assert prepared.video_table.bags["video_id"][0].tolist() == [0, 1]


def make(folder: Path, **changes) -> Path:
    events = [
        {"user_id": 1, "video_id": 10, "event_time": at(day * DAY_MS), "click": True} for day in range(4)
    ]
    return write_dataset(folder / "d", changes.pop("events", events), videos=VIDEOS, **changes)


def test_columns_that_are_not_read_are_named(tmp_path: Path, capsys):
    events = [
        {"user_id": 1, "video_id": 10, "event_time": at(day * DAY_MS), "Click": True, "device": "phone"}
        for day in range(4)
    ]
    prepare(make(tmp_path, events=events), tmp_path / "p")
    said = " ".join(capsys.readouterr().out.split())
    assert "no such columns: events.Click (is it click?), events.device" in said
    assert "no label: no model can be trained; write one to events, such as click" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["split.test=2030-01-01"], r"leaves no impression to validation.*2026-01-01.*2026-01-04.*set split"),
        (["split.validation=2026-01-01", "split.test=2026-01-02"], "leaves no impression to train"),
        (["split.test=yesterday"], r"split\.test=yesterday"),
        (["attribution.days.buy=3"], r"attribution\.days\.buy"),
        (["attribution.days.purchase=0"], "not above 0"),
        (["shard_steps=0"], "shard_steps=0"),
        (["features.buckets=1"], r"features\.buckets=1"),
        (["temp_directory=nowhere"], "temp_directory=nowhere"),
        (["enigne=spark"], "did you mean engine"),
        (["dataset=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(tmp_path: Path, capsys, overrides, words):
    dataset = make(tmp_path)
    code = shopreel.main(["prepare", f"dataset={dataset}", f"out={tmp_path / 'p'}", *overrides])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("shopreel prepare: ")
    assert re.search(words, lines[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_an_existing_out_is_kept_unless_overwritten(tmp_path: Path):
    dataset = make(tmp_path)
    first = prepare(dataset, tmp_path / "p")
    with pytest.raises(ConfigError, match="overwrite=true"):
        prepare(dataset, tmp_path / "p")
    assert prepare(dataset, tmp_path / "p", "overwrite=true", "seed=5").hash != first.hash


def test_a_leaking_column_is_refused_by_name(tmp_path: Path):
    g = np.random.default_rng(0)
    liked = g.random(200) < 0.5
    events = [
        {
            "user_id": int(user),
            "video_id": int(video),
            "event_time": at(DAY_MS * (i % 3)),
            "like": bool(liked[video]),
        }
        for i, (user, video) in enumerate(g.integers(0, 200, (1200, 2)))
    ]
    videos = [
        {"video_id": i, "likes_so_far": float(liked[i]), "honest": float(g.normal() + liked[i])}
        for i in range(200)
    ]
    dataset = write_dataset(tmp_path / "d", events, videos=videos)
    with pytest.raises(
        ContractError, match=r"column likes_so_far: tells like.*exclude=\[videos\.likes_so_far\]"
    ):
        prepare(dataset, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    mended = prepare(dataset, tmp_path / "p", "features.exclude=[videos.likes_so_far]")
    assert "video_likes_so_far" not in mended.spec.names
    assert "video_honest" in mended.spec.names
    prepare(dataset, tmp_path / "q", "leak_check=false")


@pytest.mark.parametrize("damage", ["manifest", "vocabulary", "table", "shard", "size", "escape"])
def test_a_damaged_directory_is_refused_by_file(prepared: Prepared, tmp_path: Path, damage: str):
    root = tmp_path / "p"
    shutil.copytree(prepared.path, root)
    manifest = json.loads((root / "prepared.json").read_text())
    match damage:
        case "manifest":
            manifest["split"]["test_ms"] += 1
        case "escape":
            manifest["shards"][0]["file"] = "../../secret.parquet"
        case "vocabulary":
            shutil.copy(root / "vocabularies" / "users.parquet", root / "vocabularies" / "catalogue.parquet")
        case "table":
            (root / "videos.safetensors").write_bytes((root / "videos.safetensors").read_bytes()[:-1])
        case "shard":
            prepared_shard = root / "sequences" / manifest["shards"][0]["file"]
            prepared_shard.unlink()
        case "size":
            shutil.copy(root / "users.safetensors", root / "videos.safetensors")
    (root / "prepared.json").write_text(json.dumps(manifest))
    words = {
        "manifest": "was changed", "escape": "is no file name|was changed", "vocabulary": "catalogue.parquet",
        "table": "videos.safetensors", "shard": "part-00000.parquet", "size": "videos.safetensors",
    }[damage]  # fmt: skip
    with pytest.raises(ContractError, match=words):
        Prepared.open(root)


def test_the_tables_travel_without_the_sequences(prepared: Prepared, tmp_path: Path):
    prepared.save_tables(tmp_path / "run" / "prepared")
    copy = Prepared.open(tmp_path / "run" / "prepared")
    assert copy.hash == prepared.hash
    assert copy.shards == []
    with pytest.raises(ContractError, match="shopreel prepare"):
        Prepared.open(tmp_path / "nowhere")


def test_no_row_is_lost_between_block_and_parquet(prepared: Prepared):
    table = pq.read_table(prepared.shards[0])
    assert table.schema.names == sequence_rows.__globals__["SEQUENCES"].names
    for name in table.column_names[1:]:
        assert table[name].null_count == 0


def test_keys_of_managed_features(tmp_path):
    events, _ = crowded_log(5, users=60, span_ms=72, unit_ms=HOUR)
    videos = [{"video_id": 10, "category": "a"}, {"video_id": 20, "category": "b"}]
    videos += [{"video_id": 99, "category": "b"}]  # never shown
    dataset = write_dataset(tmp_path / "d", events, videos=videos)
    words = ("max_unknown_share=1", "split.end=2026-01-04", "leak_check=false")
    prepared = prepare(
        dataset, tmp_path / "p", *words, "features.managed=[videos.video_id]", "features.managed_rows=5"
    )
    plain = prepare(dataset, tmp_path / "q", *words)
    assert (prepared.spec["video_id"].managed_rows, prepared.spec["video_id"].rows) == (5, 3)
    keys, offsets = prepared.video_table.bags["video_id:key"]
    assert offsets.tolist() == [0, 0, 1, 2, 3]
    assert len({*keys.tolist(), 0}) == 4
    assert "managed_rows" not in json.dumps(plain.spec.to_json())
    assert plain.video_table.bags.keys() == prepared.video_table.bags.keys() - {"video_id:key"}
    with pytest.raises(ConfigError, match=r"features.managed: videos.category is no column of ids"):
        prepare(dataset, tmp_path / "r", *words, "features.managed=[videos.category]")
