"""The trend: what was shown lately, as each day began, and not a moment of what came after."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.trend import (
    ALWAYS,
    HALF_LIVES_DAYS,
    SMOOTHING,
    Trend,
    days_before,
    has_trend,
    published_days,
    training_trend,
)
from tests.data.logs import DAY_MS, at, prepare, write_dataset

VIDEOS = 6
UNKNOWN_N = np.full(VIDEOS, ALWAYS)


def by_definition(shown, day, published):
    """Σ count · 2^(−age/half-life) over days before ``day``, relative to the mean shown video's, over the
    share of all impressions, so decayed, that fell after the video had come out; smoothed and logged.
    """
    before = [(row, when, count) for row, when, count in shown if when < day and row > 0]
    if not before:
        return np.zeros((len(published), len(HALF_LIVES_DAYS)))
    out = [
        min([day_out, *(when for row, when, _ in before if row == n)]) for n, day_out in enumerate(published)
    ]
    columns = []
    for half_life in HALF_LIVES_DAYS:
        count_N, could_N, total = np.zeros(len(published)), np.zeros(len(published)), 0.0
        for row, when, count in before:
            decayed = count * 0.5 ** ((day - 1 - when) / half_life)
            total += decayed
            count_N[row] += decayed
            could_N[[n for n, day_out in enumerate(out) if day_out <= when]] += decayed
        mean = total / len({row for row, _, _ in before})
        expected_N = (could_N / total + SMOOTHING) / (1 + SMOOTHING)
        columns.append(np.log((count_N / mean + SMOOTHING) / expected_N))
    return np.stack(columns, axis=1)


@given(
    shown=st.lists(
        st.tuples(st.integers(0, VIDEOS - 1), st.integers(-40, 5), st.integers(1, 9)), max_size=30
    ),
    day=st.integers(-40, 6),
    published=st.lists(st.just(ALWAYS) | st.integers(-45, 8), min_size=VIDEOS, max_size=VIDEOS),
)
def test_features_are_those_of_the_definition(shown, day, published):
    row, when, count = np.array(shown, np.int64).reshape(-1, 3).T
    trend = Trend.build(row, when, count, np.array(published))
    got = trend.at(day, np.arange(VIDEOS))
    np.testing.assert_allclose(got, by_definition(shown, day, published), rtol=1e-4, atol=1e-4)


def test_a_new_video_is_expected_to_be_shown_like_the_mean_one_an_old_one_that_never_was_is_not():
    days = np.arange(-20, 0)
    published_N = np.array([ALWAYS, -30, -30, 0, ALWAYS])
    trend = Trend.build(np.ones_like(days), days, np.full_like(days, 7), published_N)
    mean, old, new, unknown = trend.at(0, np.arange(1, 5))
    np.testing.assert_allclose(new, mean, atol=1e-6)
    np.testing.assert_allclose(old, unknown, atol=1e-6)
    assert (old < mean - 2).all()


@given(
    days=st.lists(st.integers(-400, -1), min_size=1, max_size=30),
    late=st.lists(st.integers(0, 30), max_size=10),
)
def test_a_day_knows_nothing_of_itself_and_of_later_ones(days, late):
    def build(when):
        rows = np.arange(len(when)) % (VIDEOS - 1) + 1
        return Trend.build(rows, np.array(when, np.int64), np.ones(len(when), np.int64), UNKNOWN_N)

    rows = np.arange(VIDEOS)
    np.testing.assert_array_equal(build(days).at(0, rows), build(days + late).at(0, rows))


@given(st.lists(st.integers(-3000, -1), min_size=1, max_size=20))
def test_a_long_log_has_few_periods_that_end_where_day_zero_begins(days):
    day = np.array(days, np.int64)
    trend = Trend.build(np.ones_like(day), day, np.ones_like(day), UNKNOWN_N)
    begins = trend.period(np.arange(day.min(), 1))
    assert len(np.unique(begins[:-1])) <= 32
    assert begins[-1] == 0
    assert (begins <= np.arange(day.min(), 1)).all()


def test_a_video_is_out_from_the_period_of_its_first_impression_on():
    trend = Trend.build(np.array([1, 2, 2]), np.array([-3, -1, -2]), np.array([1, 1, 1]), UNKNOWN_N)
    rows = np.arange(4)
    assert trend.is_out(-3, rows).tolist() == [False, True, False, False]
    assert trend.is_out(-2, rows).tolist() == [False, True, True, False]


def test_days_are_counted_back_from_the_end():
    end = 1_700_000_000_000
    times = np.array([end - DAY_MS, end - 1000, end, end + DAY_MS])
    assert days_before(times, end).tolist() == [-1, -1, 0, 1]


def test_times_of_publication_that_are_unknown_or_absurd_lie_before_everything():
    end = 1_700_000_000_000
    times = np.array([-1, 0, end - 1, end, end + 2 * DAY_MS])
    assert published_days(times, end).tolist() == [ALWAYS, -19676, -1, 0, 2]
    assert published_days(np.array([0]), (-ALWAYS + 9) * DAY_MS).tolist() == [ALWAYS]


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
    unknown = [ALWAYS] * len(prepared.catalogue)
    expected = by_definition([(row_10, -2, 2), (row_20, -2, 1), (row_10, -1, 1)], 0, unknown)
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
