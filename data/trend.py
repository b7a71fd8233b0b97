"""How much each video was shown lately: the part of a video's vector that moves from day to day.

What a platform shows drifts faster than any model is trained. A training target sees the trend as it
stood when its day began, a published bundle as it stands when the bundle's knowledge ends.
Axes: N catalogue rows, R rows asked for, K half-lives.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.counters import DecayedCounts
from data.prepared import Prepared
from data.split import SplitMode
from data.storage import read_parquet

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
DAY_S = 86_400
#: Days after which an impression counts half; the last is near enough to "ever".
HALF_LIVES_DAYS = (1.0, 3.0, 10.0, 1000.0)
#: A log is cut into at most so many periods of whole days, each with one trend.
MAX_PERIODS = 32
#: Weight of the mean video's rate beside what a video's own impressions say of it.
SMOOTHING = 0.1
#: Decayed impressions of the whole log below which a half-life says nothing.
FORGOTTEN = 1e-30
NEVER = np.iinfo(np.int64).max
#: Day of videos of which nobody knows when they were published; far enough from others to decay to nothing.
ALWAYS = -(1 << 18)


@dataclass(frozen=True, slots=True)
class Trend:
    """Decayed impressions per video and in all, and the days on which each was published and first shown.

    ``first_days`` are those of ``first_day_N`` in order: how many videos were out by a day is a search.
    ``published_day_N`` is never after ``first_day_N``; a video of which no day is known was always there.
    Days are counted from an origin that the caller keeps: day 0 is the first that is not counted.
    """

    videos: list[DecayedCounts]
    totals: list[DecayedCounts]
    published_day_N: I64
    first_day_N: I64
    first_days: I64
    period_days: int

    @classmethod
    def build(cls, row: I64, day: I64, count: I64, published_day_N: I64) -> "Trend":
        """From impressions counted by catalogue row and day; row 0 is left out.

        ``published_day_N``: of every row of the catalogue, :data:`ALWAYS` where unknown.
        """
        kept = row > 0
        row, day, amount = row[kept], day[kept], count[kept].astype(np.float32)[:, None]
        first = np.full(len(published_day_N), NEVER, np.int64)
        np.minimum.at(first, row, day)
        span = max(int(-day.min()), 1) if len(day) else 1
        everything = np.ones_like(row)
        return cls(
            [DecayedCounts.build(row, day, amount, half_life) for half_life in HALF_LIVES_DAYS],
            [DecayedCounts.build(everything, day, amount, half_life) for half_life in HALF_LIVES_DAYS],
            np.minimum(published_day_N, first),
            first,
            np.sort(first[first < NEVER]),
            -(-span // MAX_PERIODS),
        )

    def period(self, day: I64) -> I64:
        """The day on which the period of each ``day`` begins; periods end where day 0 begins."""
        return day // self.period_days * self.period_days

    def at(self, day: int, rows: I64) -> F32:
        """Features ``[R, K]`` as ``day`` begins: log of impressions relative to the mean video's.

        Both relate to the time since the video was published, so that a new video, which could not have been
        shown, is expected to be shown like the mean one, and an old one that never was is not.
        Zeros where nothing had been shown before, or so long ago that its decayed count has no digits left.
        """
        shown = int(np.searchsorted(self.first_days, day))
        days, day_R = np.unique(np.minimum(self.published_day_N[rows], day), return_inverse=True)
        one_D = np.ones(len(days), np.int64)
        columns = []
        for videos, totals in zip(self.videos, self.totals, strict=True):
            total = float(totals.before(one_D[:1], np.array([day]))[0, 0])
            if total < FORGOTTEN:
                columns.append(np.zeros(len(rows)))
                continue
            before_D = totals.before(one_D, days)[:, 0] * np.exp2((days - day) / totals.half_life_days)
            chance_R = (1 - before_D / total)[day_R]
            share_R = videos.before(rows, np.full(len(rows), day))[:, 0].astype(np.float64) / total
            rate_R = (share_R * shown + SMOOTHING) * (1 + SMOOTHING) / (chance_R + SMOOTHING)
            columns.append(np.log(rate_R))
        return np.stack(columns, axis=1).astype(np.float32)

    def is_out(self, day: int | I64, rows: I64) -> npt.NDArray[np.bool_]:
        """Which ``rows`` had been shown by the end of the period that begins on ``day`` (or one a row)."""
        out: npt.NDArray[np.bool_] = self.first_day_N[rows] < day + self.period_days
        return out


def has_trend(prepared: Prepared) -> bool:
    """Whether days mean anything: real times, an order, and a split that cuts them for everybody."""
    dataset = prepared.manifest["dataset"]
    by_time = prepared.manifest["split"]["mode"] == SplitMode.time.value
    return bool(dataset["real_time"] and dataset["ordered"] and by_time)


def days_before(time_ms: I64, end_ms: int) -> I64:
    """Whole days relative to ``end_ms``: −1 is the day that ends there, 0 the one that begins there."""
    return (time_ms // 1000 - end_ms // 1000) // DAY_S


def published_days(publish_time_ms_N: I64, end_ms: int) -> I64:
    """:func:`days_before` ``end_ms`` of times of publication, :data:`ALWAYS` where they are unknown (-1)."""
    day_N = np.maximum(days_before(publish_time_ms_N, end_ms), ALWAYS)
    return np.where(publish_time_ms_N < 0, ALWAYS, day_N)


def training_end_ms(prepared: Prepared, splits: int = 1) -> int:
    """When the first of the splits after the ``splits`` that train begins, Unix time."""
    return int(prepared.manifest["split"][("validation_ms", "test_ms")[splits - 1]])


def training_trend(prepared: Prepared, splits: int = 1) -> Trend:
    """The trend of the first ``splits`` splits (2: with validation); day 0 is the first after them."""
    end_ms = training_end_ms(prepared, splits)
    parts = [np.zeros((0, 3), np.int64)]
    for shard in prepared.shards:
        columns = ["example_video", "example_time_ms", "example_split"]
        table = read_parquet(shard, columns)
        video, time_ms, split = (table[name].combine_chunks().flatten().to_numpy() for name in columns)
        kept = split < splits
        pairs = np.stack([video[kept], days_before(time_ms[kept], end_ms)], axis=1)
        distinct, count = np.unique(pairs, axis=0, return_counts=True)
        parts.append(np.concatenate([distinct, count[:, None]], axis=1))
    row, day, count = np.concatenate(parts).T
    return Trend.build(row, day, count, published_days(prepared.video_raw["publish_time_ms"], end_ms))
