"""Days begin where the dataset lives; what cannot be a split is refused with the mend."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from data.contract import time_zone
from data.errors import ConfigError, ShopreelError
from data.split import Split, SplitMode, choose_split, split_rank


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def choose(zone: str = "UTC", **settings: object) -> Split:
    asked = {"given": False, "validation": None, "test": None, "end": None, "ordered": True, "last_ms": 0}
    return choose_split(zone=time_zone(zone), **{**asked, **settings})  # type: ignore[arg-type]


def test_days_begin_in_the_time_zone_of_the_dataset():
    split = choose("+08:00", validation="2022-05-04", test="2022-05-05", end="2022-05-06")
    assert split.validation_ms == ms("2022-05-03T16:00+00:00")
    moments = ["2022-05-03T15:59:59.999+00:00", "2022-05-03T16:00+00:00", "2022-05-04T16:00+00:00"]
    assert split.ranks(np.array([ms(moment) for moment in moments])).tolist() == [0, 1, 2]
    assert split.end_ms == ms("2022-05-05T16:00+00:00")
    assert [split.begin_ms(rank) for rank in range(3)] == [None, split.validation_ms, split.test_ms]


def test_without_dates_the_last_day_is_test_and_the_day_before_validation():
    split = choose("+08:00", last_ms=ms("2022-05-05T16:30+00:00"))  # 6 May, half past midnight
    assert split.test_ms == ms("2022-05-06T00:00+08:00")
    assert split.validation_ms == ms("2022-05-05T00:00+08:00")
    assert split.end_ms is None
    cut = choose("+08:00", last_ms=ms("2022-05-05T16:30+00:00"), end="2022-05-06")
    assert cut.test_ms == ms("2022-05-05T00:00+08:00")


def test_a_day_may_have_23_hours():
    split = choose("Europe/Berlin", test="2026-03-30")  # the clock went forward on the 29th
    assert split.test_ms is not None
    assert split.validation_ms is not None
    assert split.test_ms - split.validation_ms == 23 * 3_600_000
    assert datetime.fromtimestamp(split.validation_ms / 1000, ZoneInfo("Europe/Berlin")).hour == 0


def test_moments_are_dates_too():
    split = choose(validation="2026-01-01T12:00", test="2026-01-01T18:00+02:00")
    assert split.validation_ms == ms("2026-01-01T12:00+00:00")
    assert split.test_ms == ms("2026-01-01T16:00+00:00")


def test_the_split_column_wins():
    split = choose(given=True, validation="2022-05-04", test="2022-05-05", end="2022-05-06")
    assert split.mode is SplitMode.given
    assert split.validation_ms is split.test_ms is None
    assert split.end_ms == ms("2022-05-06T00:00+00:00")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation": "4 May", "test": "2022-05-05"}, "split.validation=4 May.*write it as"),
        ({"validation": "2022-05-04", "test": "2022-13-05"}, r"split\.test=2022-13-05"),
        ({"validation": "2022-05-05", "test": "2022-05-05"}, "must follow one another"),
        ({"validation": "2022-05-06", "test": "2022-05-05"}, "must follow one another"),
        ({"test": "2022-05-05", "end": "2022-05-05"}, "must follow one another"),
        ({"validation": "2022-05-05"}, "give both"),
        ({"ordered": False}, "add a column split"),
    ],
)
def test_what_cannot_be_a_split_is_refused(settings: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        choose(**settings)


def test_a_manifest_reads_back_and_a_changed_one_is_refused():
    for split in (
        choose(test="2022-05-05", end="2022-05-07"),
        choose(given=True),
        choose(last_ms=ms("2022-05-05")),
    ):
        value = split.to_json()
        assert Split.from_json(value) == split
        for broken in ({**value, "end_ms": 7}, {**value, "mode": "random"}, {}, {**value, "hash": "0"}):
            with pytest.raises(ShopreelError, match="split"):
                Split.from_json(broken)
    assert choose(test="2022-05-05").to_json()["test"] == "2022-05-05T00:00:00.000+00:00"
    assert datetime.fromisoformat(choose(test="2022-05-05").to_json()["validation"]).tzinfo == UTC


def test_split_names():
    assert [split_rank(name) for name in ("train", "validation", "test")] == [0, 1, 2]
    with pytest.raises(ConfigError, match="split=dev"):
        split_rank("dev")
