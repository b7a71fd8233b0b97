"""A dataset's log as one stream of records, users together and in order, in blocks of arrays.

A *record* is an impression or an action. The engine joins ids to rows and sorts by user and time; ties,
attribution and split are settled on the blocks (``data.blocks``).
"""

from collections.abc import Iterator

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.blocks import Block, finish
from data.engine import Session
from data.errors import ContractError
from data.log import Extent, Log, Rows, actions_of, count_impressions, distinct, events_of, extent_of
from data.schema import LABEL_BIT, LABELS, SPLITS
from data.split import SplitMode
from data.vocabulary import Vocabulary

__all__ = [
    "Block",
    "Extent",
    "Log",
    "Rows",
    "count_impressions",
    "distinct",
    "extent_of",
    "records",
    "stream",
]

I64 = npt.NDArray[np.int64]
_UNSET = -1


def stream(session: Session, log: Log, rows: Rows, *, block_records: int) -> Iterator[Block]:
    """Every record of the log, sorted and labelled, in blocks of whole users.

    A block ends with the first user that brings it to ``block_records``: blocks do not depend on how
    the engine hands over its rows. Raises :class:`ContractError` for an event without a split.
    """
    expression = records(session, log, rows)
    user_of_place = np.argsort(rows.order_of_user())
    for part in _whole_users(session.batches(expression), block_records):
        yield finish(_arrays(part, user_of_place, log), log)


def records(session: Session, log: Log, rows: Rows) -> ir.Table:
    """The Ibis expression: impressions and actions under one roof, ordered by user and time."""
    events = events_of(session, log.dataset, log.split.end_ms)
    actions = actions_of(session, log.dataset, log.split.end_ms)
    by_request = actions is not None and {"request_id"} <= set(events.columns) & set(actions.columns)
    place = pa.array(rows.order_of_user()[1:])
    users = session.lookup(pa.table({"user_id": rows.users.known, "place": place}))
    videos = session.lookup(_lookup("video", rows.catalogue))
    shared = {
        "place": "int64", "is_action": "int8", "rank": "int8", "video": "int64",
        "true": "int32", "known": "int32", "watch_ms": "int32", "surface": "int32", "market": "int32",
        "position": "int32", "order_value_minor": "int64",
    }  # fmt: skip

    def united(table: ir.Table) -> ir.Table:
        table = table.inner_join(users, "user_id").drop("user_id")
        table = table.left_join(videos, "video_id").drop("video_id", "video_id_right")
        table = table.mutate(video=table.video.fill_null(0))
        kept = {name: table[name].cast(kind) for name, kind in shared.items()}
        request = {"request_id": table.request_id} if by_request else {}
        return table.select(time=table.time, **kept, **request)

    everything = united(_impressions(session, log, rows, events))
    if actions is not None:
        everything = everything.union(united(_actions(actions)))
    return everything.order_by("place", "time")


def _impressions(session: Session, log: Log, rows: Rows, events: ir.Table) -> ir.Table:
    present = [name for name in LABELS if name in events.columns]
    columns = {
        "time": events.event_time,
        "is_action": ibis.literal(0, "int8"),
        "rank": _given_rank(events) if log.split.mode is SplitMode.given else ibis.literal(0, "int8"),
        "true": _mask({name: events[name].fill_null(False) for name in present}),
        "known": _mask({name: events[name].notnull() for name in present}),
        "watch_ms": _amount(events, "watch_ms").clip(upper=np.iinfo(np.int32).max),
        "position": _amount(events, "position"),
        "order_value_minor": _amount(events, "order_value_minor"),
        "request_id": events.request_id if "request_id" in events.columns else ibis.null("string"),
    }
    named = [name for name in ("surface", "market") if name in events.columns]
    table = events.select("user_id", "video_id", *named, **columns)
    for name, vocabulary in (("surface", rows.surfaces), ("market", rows.markets)):
        if name in events.columns and len(vocabulary) > 1:
            lookup = session.lookup(pa.table({name: vocabulary.known, "row": _rows_of(vocabulary)}))
            table = table.left_join(lookup, name).drop(f"{name}_right")
            table = table.mutate(**{name: table.row.fill_null(0)}).drop("row")
        else:
            table = table.mutate(**{name: ibis.literal(0, "int64")})
    return table.select("user_id", "video_id", *columns, "surface", "market")


def _actions(actions: ir.Table) -> ir.Table:
    zero, unset = ibis.literal(0, "int64"), ibis.literal(_UNSET, "int64")
    bit = actions.action.cases(*[(name, bit) for name, bit in LABEL_BIT.items()], else_=0).cast("int32")
    return actions.select(
        "user_id", "video_id", time=actions.action_time, is_action=ibis.literal(1, "int8"),
        rank=ibis.literal(0, "int8"), true=bit, known=bit, watch_ms=unset, surface=zero, market=zero,
        position=unset, order_value_minor=_amount(actions, "order_value_minor"),
        request_id=actions.request_id if "request_id" in actions.columns else ibis.null("string"),
    )  # fmt: skip


def _mask(flags: dict[str, ir.BooleanValue]) -> ir.IntegerValue:
    total = ibis.literal(0, "int32")
    for name, flag in flags.items():
        total = total + flag.cast("int32") * ibis.literal(LABEL_BIT[name], "int32")
    return total


def _amount(table: ir.Table, name: str) -> ir.IntegerValue:
    if name not in table.columns:
        return ibis.literal(_UNSET, "int64")
    return table[name].cast("int64").fill_null(_UNSET)


def _given_rank(events: ir.Table) -> ir.IntegerValue:
    return events.split.cases(*[(name, rank) for rank, name in enumerate(SPLITS)], else_=_UNSET)


def _lookup(name: str, vocabulary: Vocabulary) -> pa.Table:
    return pa.table({f"{name}_id": vocabulary.known, name: _rows_of(vocabulary)})


def _rows_of(vocabulary: Vocabulary) -> I64:
    return np.arange(1, len(vocabulary), dtype=np.int64)


def _whole_users(batches: Iterator[pa.RecordBatch], block_records: int) -> Iterator[pa.Table]:
    """Regroup sorted batches so that each table ends where a user ends."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]))
        count += batch.num_rows
        while count > block_records:
            table = pa.concat_tables(held)
            place = table["place"].to_numpy()
            end = int(np.searchsorted(place, place[block_records - 1], side="right"))
            if end == count:  # the user at the limit may go on in the next batch
                held = [table]
                break
            yield table.slice(0, end)
            held, count = [table.slice(end)], count - end
    if count:
        yield pa.concat_tables(held)


def _arrays(table: pa.Table, user_of_place: I64, log: Log) -> Block:
    def numbers(name: str) -> npt.NDArray[np.int64]:
        return np.asarray(table[name].to_numpy())

    size = table.num_rows
    time_us = table["time"].cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
    time_ms = time_us // 1000
    rank = numbers("rank").astype(np.int8)
    if log.split.mode is SplitMode.time:
        rank = log.split.ranks(time_ms)
    elif (rank < 0).any():
        raise ContractError(
            f"{log.dataset.path}/events: column split is null or none of {', '.join(SPLITS)} in some row; "
            "fill it, or drop the column for a split by time"
        )
    request = np.full(size, _UNSET, np.int64)
    if "request_id" in table.column_names:
        codes = table["request_id"].cast(pa.large_string()).combine_chunks().dictionary_encode()
        codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
        by_name = pc.sort_indices(codes.dictionary).to_numpy()  # equal numbers in every engine
        number = np.empty(len(by_name) + 1, np.int64)
        number[by_name], number[_UNSET] = np.arange(len(by_name)), _UNSET
        request = number[pc.fill_null(codes.indices, _UNSET).to_numpy(zero_copy_only=False)]
    true, known = numbers("true").astype(np.int32), numbers("known").astype(np.int32)
    return Block(
        user=user_of_place[numbers("place")], time_ms=time_ms, rank=rank,
        is_action=numbers("is_action") == 1, video=numbers("video").astype(np.int64), own_true=true,
        own_known=known, watch_ms=numbers("watch_ms").astype(np.int32),
        surface=numbers("surface").astype(np.int32), market=numbers("market").astype(np.int32),
        position=numbers("position").astype(np.int32),
        order_value_minor=numbers("order_value_minor").astype(np.int64), request=request,
        true=true, known=known, attributed=np.zeros(size, bool),
    )  # fmt: skip
