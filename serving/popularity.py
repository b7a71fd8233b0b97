"""How often each video was liked before a split begins: the fallback of the server and a baseline of replay.

Axes: N catalogue rows (row 0 counts nothing).
"""

from collections.abc import Sequence
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.dataset import Dataset
from data.engine import Session
from data.schema import SPLITS
from data.split import Split, SplitMode
from data.vocabulary import Vocabulary
from models.bundle import EVERYWHERE, Popularity
from serving.exact import Hits, Rows

Counts = NDArray[np.int64]
DAY_MS = 86_400_000
#: A window that reaches back to the first event.
WHOLE_HISTORY = 0


def count_positives(
    session: Session,
    dataset: Dataset,
    catalogue: Vocabulary,
    *,
    split: Split,
    rank: int,
    labels: Sequence[str],
    days: Sequence[int],
) -> dict[int, dict[str, Counts]]:
    """Count what came true before the split of ``rank`` (1 validation, 2 test, 3 the end of the log).

    Returns int64[N + 1] by window (days that end there, 0 = all) and market, ``EVERYWHERE`` the sum.

    A positive is an impression with one of ``labels`` true, or an action named so; without ``labels``
    every impression. In a log whose times are not real every window is the whole history.
    """
    end_ms = knowledge_end_ms(session, dataset, split, rank)
    real = dataset.info.real_time and dataset.info.ordered and end_ms is not None
    positives = _events(session, dataset, split, rank, labels)
    actions = _actions(session, dataset, end_ms, labels)
    if actions is not None:
        positives = positives.union(actions)
    totals = {
        f"days_{window}": positives.count(where=positives.time >= _moment((end_ms or 0) - window * DAY_MS))
        if window and real
        else positives.count()
        for window in days
    }
    table = session.table(positives.group_by("video_id", "market").aggregate(**totals))
    row = catalogue.rows(table["video_id"])
    market = table["market"].combine_chunks().dictionary_encode()
    code = market.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    result: dict[int, dict[str, Counts]] = {}
    for window in days:
        count = table[f"days_{window}"].to_numpy()
        result[window] = {EVERYWHERE: _sum(row, count, len(catalogue))}
        for number, name in enumerate(market.dictionary.to_pylist()):
            if name:
                result[window][name] = _sum(row[code == number], count[code == number], len(catalogue))
    return result


def most_popular(counts: Counts) -> Popularity:
    """Videos with at least one positive, most first, equal counts by row."""
    rows = np.flatnonzero(counts)
    rows = rows[np.lexsort((rows, -counts[rows]))]
    return Popularity(rows, counts[rows])


def popular_hits(popularity: Popularity, seen_row: Rows, k: int) -> Hits:
    """The ``k`` most popular videos without the seen ones; the score is the count."""
    first = k + len(seen_row)
    kept = ~np.isin(popularity.video_row[:first], seen_row)
    rows, counts = popularity.video_row[:first][kept][:k], popularity.count[:first][kept][:k]
    return Hits(rows, counts.astype(np.float32))


def _sum(row: Rows, count: Counts, size: int) -> Counts:
    total = np.bincount(row, weights=count, minlength=size).astype(np.int64)
    total[0] = 0
    return total


def _events(session: Session, dataset: Dataset, split: Split, rank: int, labels: Sequence[str]) -> ir.Table:
    events = events_before(session, dataset, split, rank)
    if labels:
        present = [events[label].fill_null(False) for label in labels if label in events.columns]
        events = events.filter(ibis.or_(*present) if present else ibis.literal(False))
    market = events.market if "market" in events.columns else ibis.null("string")
    return events.select("video_id", market=market, time=events.event_time)


def _actions(
    session: Session, dataset: Dataset, end_ms: int | None, labels: Sequence[str]
) -> ir.Table | None:
    if not dataset.has("actions") or not labels or end_ms is None:
        return None
    actions = session.parquet(dataset.files("actions"))
    actions = actions.filter(actions.action.isin(list(labels)) & (actions.action_time < _moment(end_ms)))
    return actions.select("video_id", market=ibis.null("string"), time=actions.action_time)


def events_before(session: Session, dataset: Dataset, split: Split, rank: int) -> ir.Table:
    """Impressions before the split of ``rank``; all of them for rank 3."""
    events = session.parquet(dataset.files("events"))
    if rank == len(SPLITS):
        return events
    if split.mode is SplitMode.given:
        return events.filter(events.split.isin(SPLITS[:rank]))
    return events.filter(events.event_time < _moment(split.begin_ms(rank)))


def knowledge_end_ms(session: Session, dataset: Dataset, split: Split, rank: int) -> int | None:
    """Where what is known ends: the split's first moment, or after the last event; None without any event."""
    if split.mode is SplitMode.time and rank < len(SPLITS):
        return split.begin_ms(rank)
    events = events_before(session, dataset, split, rank)
    last = session.table(events.aggregate(last=events.event_time.max()))["last"]
    moment = last.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())[0].as_py()
    return None if moment is None else int(moment) + 1


def _moment(time_ms: int | None) -> Any:
    assert time_ms is not None
    return ibis.timestamp(pa.scalar(time_ms, pa.timestamp("ms", "UTC")).as_py())
