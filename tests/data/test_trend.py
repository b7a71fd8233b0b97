"""The trend: what was shown lately, as each day began, and not a moment of what came after."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.trend import HALF_LIVES_DAYS, SMOOTHING, Trend, days_before, has_trend, training_trend
from tests.data.logs import DAY_MS, at, prepare, write_dataset

VIDEOS = 6


def by_definition(shown, day, size):
    """Σ count · 2^(−age/half-life) over days before ``day``, relative to the mean shown video, logged."""
    before = [(row, when, count) for row, when, count in shown if when < day and row > 0]
    if not before:
        return np.zeros((size, len(HALF_LIVES_DAYS)))
    columns = []
    for half_life in HALF_LIVES_DAYS:
        count_N = np.zeros(size)
        for row, when, count in before:
            count_N[row] += count * 0.5 ** ((day - 1 - when) / half_life)
        mean = count_N.sum() / len({row for row, _, _ in before})
        columns.append(np.log(count_N / mean + SMOOTHING))
    return np.stack(columns, axis=1)


@given(
    shown=st.lists(
        st.tuples(st.integers(0, VIDEOS - 1), st.integers(-40, 5), st.integers(1, 9)), max_size=30
    ),
    day=st.integers(-40, 6),
)
def test_features_are_those_of_the_definition(shown, day):
    row, when, count = np.array(shown, np.int64).reshape(-1, 3).T
    trend = Trend.build(row, when, count, VIDEOS)
    got = trend.at(day, np.arange(VIDEOS))
    np.testing.assert_allclose(got, by_definition(shown, day, VIDEOS), rtol=1e-4, atol=1e-4)


@given(
    days=st.lists(st.integers(-400, -1), min_size=1, max_size=30),
    late=st.lists(st.integers(0, 30), max_size=10),
)
def test_a_day_knows_nothing_of_itself_and_of_later_ones(days, late):
    def build(when):
        rows = np.arange(len(when)) % (VIDEOS - 1) + 1
        return Trend.build(rows, np.array(when, np.int64), np.ones(len(when), np.int64), VIDEOS)

    rows = np.arange(VIDEOS)
    np.testing.assert_array_equal(build(days).at(0, rows), build(days + late).at(0, rows))


@given(st.lists(st.integers(-3000, -1), min_size=1, max_size=20))
def test_a_long_log_has_few_periods_that_end_where_day_zero_begins(days):
    day = np.array(days, np.int64)
    trend = Trend.build(np.ones_like(day), day, np.ones_like(day), 2)
    begins = trend.period(np.arange(day.min(), 1))
    assert len(np.unique(begins[:-1])) <= 32
    assert begins[-1] == 0
    assert (begins <= np.arange(day.min(), 1)).all()


def test_a_video_is_out_from_the_period_of_its_first_impression_on():
    trend = Trend.build(np.array([1, 2, 2]), np.array([-3, -1, -2]), np.array([1, 1, 1]), 4)
    rows = np.arange(4)
    assert trend.is_out(-3, rows).tolist() == [False, True, False, False]
    assert trend.is_out(-2, rows).tolist() == [False, True, True, False]


def test_days_are_counted_back_from_the_end():
    end = 1_700_000_000_000
    times = np.array([end - DAY_MS, end - 1000, end, end + DAY_MS])
    assert days_before(times, end).tolist() == [-1, -1, 0, 1]


def test_training_counts_the_impressions_of_the_training_split_alone(tmp_path):
    shown = [(1, 10, 0), (1, 20, 0), (2, 10, 0), (2, 10, 1), (1, 20, 2), (1, 30, 3), (2, 30, 3)]
    events = [
        {"user_id": user, "video_id": video, "event_time": at(day * DAY_MS + 5), "click": True}
        for user, video, day in shown
    ]
    prepared = prepare(
        write_dataset(tmp_path / "log", events), tmp_path / "prepared",
        "split.validation=2026-01-03", "split.test=2026-01-04",
    )  # fmt: skip
    assert has_trend(prepared)
    row_10, row_20 = prepared.catalogue.rows([10, 20])
    expected = by_definition([(row_10, -2, 2), (row_20, -2, 1), (row_10, -1, 1)], 0, len(prepared.catalogue))
    got = training_trend(prepared).at(0, np.arange(len(prepared.catalogue)))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_log_without_real_days_has_none(tmp_path):
    events = [
        {"user_id": user, "video_id": video, "event_time": at(1000 * video), "split": split, "click": True}
        for user in (1, 2)
        for video, split in ((1, "train"), (2, "validation"), (3, "test"))
    ]
    log = write_dataset(tmp_path / "log", events, info={"real_time": False})
    assert not has_trend(prepare(log, tmp_path / "prepared"))
