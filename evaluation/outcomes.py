"""What the right videos that a run found were worth: watch time and order value per request."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from data.schema import LABELS
from evaluation.arrays import Floats, Words
from evaluation.bootstrap import Estimate, estimates
from evaluation.hits import Hits
from evaluation.ids import Directory, id_words, mix
from evaluation.tables import batches
from evaluation.truth import Truth
from evaluation.waterfall import rank_of_truth

#: Amounts in the order in which they are preferred as the second axis of a trade-off.
AMOUNTS = ("order_value_minor", "purchase", "add_to_cart", "product_click", "like", "click")


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Per run the mean watch time and the mean of another amount that its top ``k`` found, per request."""

    k: int
    amount: str
    watch_ms: dict[str, Estimate]
    other: dict[str, Estimate]


def tradeoff(
    runs: dict[str, Hits], truth: Truth, events: ds.Dataset | None, k: int, *, replicates: int, seed: int
) -> Tradeoff | None:
    """Watch time against the most valuable other amount; None where the tables know only one of them.

    Amounts are columns of the truth, else summed from ``events`` (of the dataset) per user and video.
    An unknown amount counts as 0: nobody watched or paid what was not logged.
    """
    amounts = _from_truth(truth)
    if events is not None and not {"watch_ms", "order_value_minor"} <= set(amounts):
        amounts = {**_from_events(truth, events), **amounts}
    other = next((name for name in AMOUNTS if name in amounts and amounts[name].any()), None)
    if "watch_ms" not in amounts or other is None:
        return None
    columns = []
    for hits in runs.values():
        shown_T = rank_of_truth(hits, truth) <= k
        for name in ("watch_ms", other):
            weight_T = np.where(shown_T, amounts[name], 0.0)
            columns.append(np.bincount(truth.request_T, weight_T, minlength=truth.requests))
    found = estimates(np.stack(columns, axis=1), truth.user_R, replicates=replicates, seed=seed)
    names = list(runs)
    return Tradeoff(
        k, other, dict(zip(names, found[::2], strict=True)), dict(zip(names, found[1::2], strict=True))
    )


def _from_truth(truth: Truth) -> dict[str, Floats]:
    names = [name for name in ("watch_ms", "order_value_minor", *LABELS) if name in truth.rows.schema.names]
    return {name: _numbers(truth.rows[name]) for name in names}


def _from_events(truth: Truth, events: ds.Dataset) -> dict[str, Floats]:
    """Sums over the events of each (user, video) of the truth from its request's time on."""
    names = [name for name in ("watch_ms", "order_value_minor", *LABELS) if name in events.schema.names]
    if "request_time" not in truth.rows.schema.names:
        return {}
    first = pc.min(truth.rows["request_time"].cast(pa.timestamp("us", tz="UTC")))
    pair_T = _pairs(id_words(truth.user_ids)[truth.user_R[truth.request_T]], id_words(truth.video_T))
    rows = Directory(pa.array(pair_T.view(np.int64)))
    total = {name: np.zeros(len(pair_T)) for name in names}
    for batch in batches("dataset", events, ["user_id", "video_id", *names], ds.field("event_time") >= first):
        at_N = rows.rows(_pairs(id_words(batch.column("user_id")), id_words(batch.column("video_id"))))
        kept = at_N >= 0
        for name in names:
            total[name] += np.bincount(at_N[kept], _numbers(batch.column(name))[kept], minlength=len(pair_T))
    return total


def _pairs(user_N: Words, video_N: Words) -> Words:
    return mix(video_N, mix(user_N).view(np.int64))


def _numbers(column: pa.Array | pa.ChunkedArray) -> Floats:
    filled = column.cast(pa.float64(), safe=False).fill_null(0.0)
    value: Floats = (
        filled.to_numpy() if isinstance(filled, pa.ChunkedArray) else filled.to_numpy(zero_copy_only=False)
    )
    return value
