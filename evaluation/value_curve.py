"""Watch time against order value as the weights of a value formula move from one to the other.

``value = predicted watch in s + λ · predicted order value`` orders the impressions of each request; the
better half of them is kept, and what its users really watched and bought is counted. No training and no new
log is needed, so the curve says which weights are worth an experiment; it cannot say what users would have
done with other videos than those of the log.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.arrays import Floats, Words, stack, sum_by
from evaluation.bootstrap import Estimate, sum_estimates, user_sums
from evaluation.ids import id_words
from evaluation.predictions import Predictions
from evaluation.spool import Spool
from evaluation.tables import batches

#: λ as multiples of what makes both parts of the formula equally large on average.
STEPS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, float("inf"))
_NEEDED = ["request_id", "user_id", "video_id", "predicted_watch_ms", "watch_ms",
           "predicted_order_value_minor", "order_value_minor"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ValuePoint:
    """One λ, in seconds that a mean order is worth (infinity: order value alone).

    ``watch`` and ``order_value`` are the shares of all watch time and of all order value that the better
    half of every request holds; an order of the impressions at random gives .5 of both.
    """

    seconds_per_order: float
    watch: Estimate
    order_value: Estimate


def value_curve(data: Predictions, *, replicates: int, seed: int) -> list[ValuePoint]:
    """The points from watch time alone to order value alone; empty where the table lacks either or any order.

    Order values count in mean orders of their market (column ``market``, where there is one), so that no
    currencies are added. Rows of unknown watch time or order value are left out.
    """
    if not (data.has_watch and data.has_money):
        return []
    mean_order, scale = _scales(data)
    if not mean_order or not np.isfinite(scale):
        return []
    tops: list[list[Floats]] = [[] for _ in range(2 * len(STEPS))]
    wholes: list[list[Floats]] = [[], []]
    users: list[Words] = []
    kinds = [np.uint64, np.uint64, *[np.float64] * 4]
    with Spool(data.table.count_rows(), kinds) as spool:
        for columns in _rows(data, mean_order):
            spool.append(*columns)
        for part in spool:
            order = np.lexsort((part[2], part[0]))
            request_N, user_N, _, said_watch_N, said_order_N, watch_N, order_N = (x[order] for x in part)
            new_N = np.r_[True, request_N[1:] != request_N[:-1]]
            row_N = np.cumsum(new_N) - 1
            length_R = np.bincount(row_N)
            begin_R = np.flatnonzero(new_N)
            users.append(user_N[new_N])
            for whole, amount_N in zip(wholes, (watch_N, order_N), strict=True):
                whole.append(sum_by(row_N, amount_N, len(length_R)))
            for place, step in enumerate(STEPS):
                value_N = said_order_N if np.isinf(step) else said_watch_N + step * scale * said_order_N
                best_N = np.lexsort((-value_N, row_N))
                kept_N = best_N[np.arange(len(row_N)) - begin_R[row_N] < (length_R[row_N] + 1) // 2]
                for offset, amount_N in enumerate((watch_N, order_N)):
                    tops[2 * place + offset].append(sum_by(row_N[kept_N], amount_N[kept_N], len(length_R)))
    user_R = np.unique(np.concatenate(users), return_inverse=True)[1].astype(np.int64)
    top_RM = stack([np.concatenate(parts) for parts in tops], len(user_R))
    whole_RM = stack([np.concatenate(parts) for parts in wholes] * len(STEPS), len(user_R))
    sums = user_sums(top_RM, user_R, seed, count_RM=whole_RM)
    found = sum_estimates(sums, replicates=replicates, seed=seed)
    return [
        ValuePoint(step * scale, watch, order)
        for step, watch, order in zip(STEPS, found[::2], found[1::2], strict=True)
    ]


def _known(data: Predictions) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
    """Batches of the rows that know watch time and order value, each with its rows' markets."""
    marked = "market" in data.columns()
    for batch in batches("predictions", data.table, [*_NEEDED, *["market"] * marked], None):
        known = batch.filter(pc.and_(batch["watch_ms"].is_valid(), batch["order_value_minor"].is_valid()))
        markets = known["market"].cast(pa.string()).fill_null("").to_pylist() if marked else []
        if known.num_rows:
            yield known, markets or [""] * known.num_rows


def _scales(data: Predictions) -> tuple[dict[str, float], float]:
    """Mean order by market, and seconds a mean order must be worth for both parts to be equally large."""
    paid: dict[str, list[float]] = {}
    watch = 0.0
    promised: dict[str, float] = {}
    for batch, markets in _known(data):
        names, place_N = np.unique(np.array(markets), return_inverse=True)
        order_N, said_N = (_numbers(batch, n) for n in ("order_value_minor", "predicted_order_value_minor"))
        watch += float(_numbers(batch, "predicted_watch_ms").sum()) / 1000.0
        total = sum_by(place_N, order_N, len(names))
        number = sum_by(place_N, (order_N > 0).astype(np.float64), len(names))
        said = sum_by(place_N, said_N, len(names))
        for name, add, count, more in zip(names.tolist(), total, number, said, strict=True):
            kept = paid.setdefault(name, [0.0, 0.0])
            kept[0] += float(add)
            kept[1] += float(count)
            promised[name] = promised.get(name, 0.0) + float(more)
    mean = {name: total / number for name, (total, number) in paid.items() if number}
    orders = sum(said / mean[name] for name, said in promised.items() if name in mean)
    return mean, watch / orders if orders else float("nan")


def _rows(data: Predictions, mean_order: dict[str, float]) -> Iterator[list[np.ndarray]]:
    """Request, user, video; predicted watch in s and order in mean orders; watched and ordered."""
    for batch, markets in _known(data):
        unit_N = np.array([mean_order.get(name, np.inf) for name in markets])
        yield [
            *(id_words(batch.column(name)) for name in ("request_id", "user_id", "video_id")),
            _numbers(batch, "predicted_watch_ms") / 1000.0,
            _numbers(batch, "predicted_order_value_minor") / unit_N,
            _numbers(batch, "watch_ms") / 1000.0,
            _numbers(batch, "order_value_minor") / unit_N,
        ]


def _numbers(batch: pa.RecordBatch, name: str) -> Floats:
    numbers: Floats = batch.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers
