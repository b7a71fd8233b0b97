"""Held-out requests: truth and seen by the contract, histories as in prepare."""

from pathlib import Path

import pytest

from data.contract import open_dataset
from data.errors import ConfigError
from data.held_out import HeldOutRules, held_out_requests, truth_of_split, truth_schema
from data.prepared import Prepared
from data.records import Rows
from data.schema import LABEL_BIT
from data.vocabulary import Vocabulary
from tests.data.logs import DAY_MS, at, crowded_log, prepare, sequences, write_dataset

HOUR = 3_600_000


def rows_of(prepared: Prepared) -> Rows:
    return Rows(prepared.users, prepared.catalogue, prepared.surfaces, prepared.markets)


@pytest.fixture(scope="module", params=["by time", "given"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    events, actions = crowded_log(11, span_ms=72, unit_ms=HOUR, users=200, videos=range(10, 20))
    if request.param == "given":
        for place, event in enumerate(events):
            event["split"] = ("train", "validation", "test")[place % 3]
    dataset = write_dataset(folder / "d", events, actions=actions)
    return open_dataset(dataset), prepare(dataset, folder / "p")


def by_sequences(prepared: Prepared, rank: int, label: str):
    """Per user with truth: (videos seen, steps before, truth), read off the prepared sequences."""
    found = {}
    for row in sequences(prepared):
        splits = row["example_split"]
        if rank not in splits:
            continue
        end = row["example_history_end"][splits.index(rank)]
        time = row["example_time_ms"][splits.index(rank)]
        if prepared.manifest["split"]["mode"] == "time":
            begin = prepared.manifest["split"][("", "validation_ms", "test_ms")[rank]]
            end = sum(step < begin for step in row["step_time_ms"])
        seen = set(row["step_video"][:end])
        truth = {
            video
            for video, split, true in zip(row["example_video"], splits, row["example_true"], strict=True)
            if split == rank and true & LABEL_BIT[label] and video not in seen
        }
        if truth:
            found[row["user_row"]] = (seen, end, truth, time, row)
    return found


@pytest.mark.parametrize(("split", "rank"), [("validation", 1), ("test", 2)])
@pytest.mark.parametrize("label", ["click", "purchase"])
def test_requests_are_those_of_the_prepared_data(world, split, rank, label):
    dataset, prepared = world
    expected = by_sequences(prepared, rank, label)
    rules, rows = HeldOutRules.of(prepared.manifest), rows_of(prepared)
    got = {}
    for batch in held_out_requests(dataset, split, gain=label, rules=rules, rows=rows, limit=3):
        truth = batch.truth.group_by("request_id").aggregate([("video_id", "list")]).to_pylist()
        videos = {row["request_id"]: set(row["video_id_list"]) for row in truth}
        for request, seen, name in zip(
            batch.requests, batch.seen, batch.request_ids.to_pylist(), strict=True
        ):
            assert name == f"{split}:{prepared.users.ids([request.user_row]).to_pylist()[0]}"
            truth_rows = prepared.catalogue.rows(list(videos[name])).tolist()
            got[request.user_row] = (request, seen, set(truth_rows))
    assert got.keys() == expected.keys()
    assert len(got) >= 3
    counts = prepared.manifest["counts"]["labels"][label][split]
    assert counts["truth_users"] == len(got)
    assert counts["truth_videos"] == sum(len(truth) for _, _, truth in got.values())
    for user, (request, seen, truth) in got.items():
        before, end, wanted, time, row = expected[user]
        assert truth == wanted
        assert seen.tolist() == sorted(before)
        assert request.time_ms == time
        begin = max(end - 3, 0)
        for name, column in (
            ("video_row", "step_video"), ("time_ms", "step_time_ms"), ("actions", "step_actions"),
            ("known", "step_known"), ("watch_ms", "step_watch_ms"), ("surface_row", "step_surface"),
        ):  # fmt: skip
            assert getattr(request.history, name).tolist() == row[column][begin:end]


def test_the_truth_table_keeps_its_contract(world):
    dataset, prepared = world
    truth = truth_of_split(
        dataset, "test", gain="click", rules=HeldOutRules.of(prepared.manifest), rows=rows_of(prepared)
    )
    assert truth.schema == truth_schema(prepared.users.type, prepared.catalogue.type)
    assert truth.group_by(["request_id", "video_id"]).aggregate([]).num_rows == truth.num_rows
    assert set(truth["gain"].to_pylist()) == {1.0}
    assert set(truth["click"].to_pylist()) == {True}
    assert None in truth["like"].to_pylist()  # never observed for some
    assert truth["comment"].null_count == truth.num_rows
    anything = truth_of_split(
        dataset, "test", gain="any", rules=HeldOutRules.of(prepared.manifest), rows=rows_of(prepared)
    )
    assert anything.num_rows > truth.num_rows


def test_everyone_of_a_split_without_a_gain(world):
    dataset, prepared = world
    present = {row["user_row"] for row in sequences(prepared) if 2 in row["example_split"]}
    rules, rows = HeldOutRules.of(prepared.manifest), rows_of(prepared)
    batches = list(held_out_requests(dataset, "test", gain=None, rules=rules, rows=rows, limit=2))
    assert {request.user_row for batch in batches for request in batch.requests} == present
    assert sum(batch.truth.num_rows for batch in batches) == 0
    some = list(held_out_requests(dataset, "test", gain="purchase", rules=rules, rows=rows, limit=2))
    assert sum(len(batch.requests) + batch.without_truth for batch in some) == len(present)


def test_strangers_to_the_model_stay_apart(tmp_path: Path):
    events = [
        {"user_id": user, "video_id": video, "event_time": at(day * DAY_MS + user), "click": True}
        for day, user, video in (
            (0, 1, 10),
            (0, 2, 20),
            (0, 3, 20),
            (1, 1, 30),
            (2, 1, 40),
            (2, 2, 50),
            (2, 3, 40),
        )
    ]
    dataset = write_dataset(tmp_path / "d", events)
    prepared = prepare(dataset, tmp_path / "p")
    model = Rows(Vocabulary.build([1]), Vocabulary.build([10, 20]), prepared.surfaces, prepared.markets)
    rules = HeldOutRules.of(prepared.manifest)
    (batch,) = held_out_requests(
        open_dataset(dataset), "test", gain="click", rules=rules, rows=model, limit=9
    )
    by_id = dict(
        zip(batch.request_ids.to_pylist(), zip(batch.requests, batch.seen, strict=True), strict=True)
    )
    assert set(by_id) == {"test:1", "test:2", "test:3"}
    assert [by_id[f"test:{user}"][0].user_row for user in (1, 2, 3)] == [1, 0, 0]
    # what the model's catalogue lacks is a step all the same, and a truth all the same
    assert by_id["test:1"][0].history.video_row.tolist() == [1, 0]
    assert [by_id[f"test:{user}"][1].tolist() for user in (1, 2, 3)] == [[1], [2], [2]]
    truth = dict(zip(batch.truth["request_id"].to_pylist(), batch.truth["video_id"].to_pylist(), strict=True))
    assert truth == {"test:1": 40, "test:2": 50, "test:3": 40}
    assert batch.truth["request_time"].to_pylist() == [
        at(2 * DAY_MS + int(name[-1])) for name in batch.truth["request_id"].to_pylist()
    ]


@pytest.mark.parametrize(
    ("split", "gain", "words"),
    [
        ("train", "click", "holds nothing out"),
        ("dev", "click", "split=dev"),
        ("test", "bought", "gain=bought"),
    ],
)
def test_what_cannot_be_held_out_is_refused(world, split, gain, words):
    dataset, prepared = world
    rules = HeldOutRules.of(prepared.manifest)
    with pytest.raises(ConfigError, match=words):
        next(held_out_requests(dataset, split, gain=gain, rules=rules, rows=rows_of(prepared), limit=1))
