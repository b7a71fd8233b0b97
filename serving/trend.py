"""The trend of a bundle's videos: counted from the log, as far as the bundle's knowledge goes."""

import ibis
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.dataset import Dataset
from data.engine import Session
from data.prepared import Prepared
from data.split import Split
from data.trend import ALWAYS, DAY_S, Trend, published_days
from serving.popularity import events_before, knowledge_end_ms


def count_trend(
    session: Session, dataset: Dataset, prepared: Prepared, *, split: Split, rank: int
) -> NDArray[np.float32]:
    """Features ``[N + 1, K]`` of ``data.trend`` of the videos of ``prepared`` as the split of ``rank`` begins
    (3: after the last event).

    The same as a training target of that day sees. A log without events gives zeros.
    """
    catalogue, end_ms = prepared.catalogue, knowledge_end_ms(session, dataset, split, rank)
    rows, nothing = np.arange(len(catalogue)), np.zeros(0, np.int64)
    if end_ms is None:
        return Trend.build(nothing, nothing, nothing, np.full(len(catalogue), ALWAYS)).at(0, rows)
    events = events_before(session, dataset, split, rank)
    seconds = events.event_time.epoch_seconds() - ibis.literal(end_ms // 1000)
    day = (seconds / DAY_S).floor().cast("int64")
    counted = events.select("video_id", day=day).group_by("video_id", "day").aggregate(shown=ibis._.count())
    table = session.table(counted)
    day_E, shown_E = (table[name].cast(pa.int64()).to_numpy() for name in ("day", "shown"))
    published_N = published_days(prepared.video_raw["publish_time_ms"], end_ms)
    return Trend.build(catalogue.rows(table["video_id"]), day_E, shown_E, published_N).at(0, rows)
