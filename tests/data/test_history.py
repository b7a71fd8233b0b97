"""The server builds the history that prepare built: same events, same arrays."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from data.history import UserHistory, history_from_records
from data.schema import LABEL_BIT, LABELS
from data.vocabulary import Vocabulary
from tests.data.logs import DAY_MS, START, at, crowded_log, prepare, sequences, write_dataset

CATALOGUE, SURFACES = Vocabulary.build([10, 20, 30]), Vocabulary.build(["feed", "search"])
COLUMNS = ("video_row", "time_ms", "actions", "known", "watch_ms", "surface_row")
STEPS = ("step_video", "step_time_ms", "step_actions", "step_known", "step_watch_ms", "step_surface")


@pytest.mark.parametrize("order", ["as written", "reversed"])
def test_the_server_and_prepare_build_the_same_arrays(tmp_path, order):
    events, actions = crowded_log(7)
    late = [
        {"user_id": 1000, "video_id": 10, "event_time": at(DAY_MS * day), "surface": "search", "watch_ms": 1}
        for day in (1, 2)
    ]
    dataset = write_dataset(
        tmp_path / "d", [*events, *late], actions=actions, videos=[{"video_id": 10}, {"video_id": 20}]
    )
    prepared = prepare(dataset, tmp_path / "p", "max_unknown_share=1")
    rows = sequences(prepared)
    assert len(rows) == len({record["user_id"] for record in [*events, *actions]}) + 1
    for row in rows:
        user = prepared.users.ids([row["user_row"]]).to_pylist()[0]
        records = [record for record in [*events, *actions, *late] if record["user_id"] == user]
        history = history_from_records(
            records[::-1] if order == "reversed" else records, prepared.catalogue, prepared.surfaces
        )
        for name, column in zip(COLUMNS, STEPS, strict=True):
            assert getattr(history, name).tolist() == row[column], name


def test_records_of_the_server_spell_time_and_labels_in_several_ways():
    moment = datetime(2026, 1, 1, 8, 0, 0, 2500, tzinfo=timezone(timedelta(hours=8)))
    first = int((START - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 1000
    history = history_from_records(
        [
            {"video_id": 99, "time_ms": first + 3, "surface": "nowhere", "watch_ms": None},
            {"video_id": "20", "action": "purchase", "time_ms": first + 2, "watch_ms": 7, "surface": "feed"},
            {
                "video_id": 10,
                "event_time": moment,
                "click": True,
                "like": False,
                "hide": None,
                "surface": "search",
            },
        ],
        CATALOGUE,
        SURFACES,
    )
    assert history.time_ms.tolist() == [first + 2, first + 2, first + 3]
    assert history.video_row.tolist() == [1, 2, 0]
    assert history.actions.tolist() == [LABEL_BIT["click"], LABEL_BIT["purchase"], 0]
    assert history.known.tolist() == [LABEL_BIT["click"] | LABEL_BIT["like"], LABEL_BIT["purchase"], 0]
    assert history.watch_ms.tolist() == [-1, -1, -1]
    assert history.surface_row.tolist() == [2, 0, 0]


def test_every_label_has_its_bit():
    for name in LABELS:
        history = history_from_records([{"video_id": 10, "time_ms": 0, name: True}], CATALOGUE, SURFACES)
        assert history.actions.tolist() == history.known.tolist() == [LABEL_BIT[name]]


def test_last_and_before_and_the_user_never_seen():
    history = history_from_records(
        [{"video_id": 10, "time_ms": time} for time in (5, 7, 7, 9)], CATALOGUE, SURFACES
    )
    assert history.before(7).time_ms.tolist() == [5]
    assert history.before(8).last(2).time_ms.tolist() == [7, 7]
    assert len(history.last(0)) == len(history.before(5)) == 0
    assert len(history.last(99)) == 4
    assert len(UserHistory.empty()) == len(history_from_records([], CATALOGUE, SURFACES)) == 0
    assert UserHistory.empty().video_row.dtype == np.int64


def test_a_record_without_a_time_or_with_one_without_a_zone_is_refused():
    for record in ({"video_id": 10}, {"video_id": 10, "event_time": datetime(2026, 1, 1)}):
        with pytest.raises(ValueError, match="time"):
            history_from_records([record], CATALOGUE, SURFACES)
