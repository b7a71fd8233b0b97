"""The trend of a bundle's videos: counted from the log, as far as the bundle's knowledge goes."""

import ibis
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.dataset import Dataset
from data.engine import Session
from data.split import Split
from data.trend import DAY_S, Trend
from data.vocabulary import Vocabulary
from serving.popularity import events_before, knowledge_end_ms


def count_trend(
    session: Session, dataset: Dataset, catalogue: Vocabulary, *, split: Split, rank: int
) -> NDArray[np.float32]:
    """Features ``[N + 1, K]`` of ``data.trend`` as the split of ``rank`` begins (3: after the last event).

    The same as a training target of that day sees. A log without events gives zeros.
    """
    rows, end_ms = np.arange(len(catalogue)), knowledge_end_ms(session, dataset, split, rank)
    nothing = np.zeros(0, np.int64)
    if end_ms is None:
        return Trend.build(nothing, nothing, nothing, len(catalogue)).at(0, rows)
    events = events_before(session, dataset, split, rank)
    seconds = events.event_time.epoch_seconds() - ibis.literal(end_ms // 1000)
    day = (seconds / DAY_S).floor().cast("int64")
    counted = events.select("video_id", day=day).group_by("video_id", "day").aggregate(shown=ibis._.count())
    table = session.table(counted)
    day_E, shown_E = (table[name].cast(pa.int64()).to_numpy() for name in ("day", "shown"))
    return Trend.build(catalogue.rows(table["video_id"]), day_E, shown_E, len(catalogue)).at(0, rows)
