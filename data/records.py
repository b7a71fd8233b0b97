"""A dataset's log as one stream of records, users together and in order, in blocks of arrays.

A *record* is an impression or an action. The engine joins ids to rows and sorts by user and time; what
needs a user's whole story (ties, attribution, split) happens on the blocks, so that every engine gives
the same result.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset import Dataset
from data.engine import Session
from data.errors import ContractError
from data.hashing import mix, salt_of
from data.labels import Attribution, causes, label
from data.schema import LABEL_BIT, LABELS, SPLITS
from data.split import Split, SplitMode
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
_UNSET = -1


@dataclass(slots=True)
class Block:
    """R records of whole users, sorted by user, then in the order of a history.

    ``user`` rows; ``rank`` of the split; ``is_action``; ``own_true``/``own_known`` masks that the record
    carries itself (an action: its one bit); ``true``/``known`` after attribution (impressions only).
    -1 stands for unknown in ``watch_ms``, ``position`` and ``order_value_minor``, row 0 elsewhere.
    """

    user: I64
    time_ms: I64
    rank: I8
    is_action: npt.NDArray[np.bool_]
    video: I64
    own_true: I32
    own_known: I32
    watch_ms: I32
    surface: I32
    market: I32
    position: I32
    order_value_minor: I64
    request: I64
    true: I32
    known: I32
    attributed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[np.generic]) -> "Block":
        """The chosen records."""
        return Block(*(getattr(self, column.name)[rows] for column in fields(self)))

    def tie_groups(self) -> I64:
        """Position of the first record at the same moment (user, split rank and time), for each."""
        fresh = np.ones(len(self), bool)
        fresh[1:] = (
            (self.user[1:] != self.user[:-1])
            | (self.time_ms[1:] != self.time_ms[:-1])
            | (self.rank[1:] != self.rank[:-1])
        )
        return np.maximum.accumulate(np.where(fresh, np.arange(len(self)), 0))

    def user_bounds(self) -> I64:
        """Where each user begins, and the length at the end: int64[users + 1]."""
        begins = np.flatnonzero(np.concatenate([[True], self.user[1:] != self.user[:-1]]))
        return np.append(begins, len(self)) if len(self) else np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class Extent:
    """What a log holds, from one look over it: :func:`extent_of`.

    ``first_ms`` … ``last_ms``: times of its impressions and actions together. ``logged``: mask of the
    labels that occur as actions. ``given``: events name their split.
    """

    impressions: int
    actions: int
    first_ms: int
    last_ms: int
    last_impression_ms: int
    logged: int
    given: bool


@dataclass(frozen=True, slots=True)
class Log:
    """A dataset's log with the rules by which it is split and labelled.

    ``label_by_split``: an impression knows only outcomes from before its own split ends, as a model
    trained on that day would; otherwise whatever the log covers.
    """

    dataset: Dataset
    extent: Extent
    split: Split
    attribution: Attribution
    label_by_split: bool = False

    @property
    def end_ms(self) -> int:
        """The first moment that the log does not cover."""
        covered = self.extent.last_ms + 1
        return covered if self.split.end_ms is None else min(covered, self.split.end_ms)


@dataclass(frozen=True, slots=True)
class Rows:
    """The vocabularies that turn a log's ids into rows; ``order_seed`` shuffles the order of users."""

    users: Vocabulary
    catalogue: Vocabulary
    surfaces: Vocabulary
    markets: Vocabulary
    order_seed: int = 0

    def order_of_user(self) -> I64:
        """Place in the stream of every user row (row 0 included)."""
        hashed = mix(np.arange(len(self.users), dtype=np.int64), salt_of("user order", self.order_seed))
        order = np.argsort(hashed, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place


def extent_of(session: Session, dataset: Dataset) -> Extent:
    """Look over the log once; an empty one raises :class:`ContractError`."""
    events = events_of(session, dataset, None)
    row = session.table(
        events.aggregate(count=events.count(), first=events.event_time.min(), last=events.event_time.max())
    ).to_pylist()[0]
    if not row["count"]:
        raise ContractError(f"{dataset.path}/events: no impression in it; import a log that has some")
    first, last, count, logged = _ms(row["first"]), _ms(row["last"]), 0, 0
    last_impression = last
    actions = actions_of(session, dataset, None)
    if actions is not None:
        time = actions.action_time
        kinds = session.table(
            actions.group_by("action").aggregate(count=actions.count(), first=time.min(), last=time.max())
        ).to_pylist()
        for kind in kinds:
            logged |= LABEL_BIT.get(kind["action"], 0)
            count += kind["count"]
            first, last = min(first, _ms(kind["first"])), max(last, _ms(kind["last"]))
    return Extent(row["count"], count, first, last, last_impression, logged, "split" in events.columns)


def count_impressions(session: Session, log: Log) -> list[int]:
    """Impressions of train, validation and test."""
    events = events_of(session, log.dataset, log.split.end_ms)
    if log.split.mode is SplitMode.given:
        inside = [events.split == name for name in SPLITS]
    else:
        bounds = [
            _literal(bound) for bound in (log.split.validation_ms, log.split.test_ms) if bound is not None
        ]
        validated, tested = (events.event_time >= bound for bound in bounds)
        inside = [~validated, validated & ~tested, tested]
    counts = {name: condition.sum() for name, condition in zip(SPLITS, inside, strict=True)}
    return [count or 0 for count in session.table(events.aggregate(**counts)).to_pylist()[0].values()]


def distinct(session: Session, dataset: Dataset, name: str, *, train_of: Split | None = None) -> Vocabulary:
    """Vocabulary of a column over events and actions; of training events alone with ``train_of``."""
    events = events_of(session, dataset, None)
    tables = [events]
    if train_of is not None and name in events.columns:
        if train_of.mode is SplitMode.given:
            tables = [events.filter(events.split == SPLITS[0])]
        else:
            tables = [events_of(session, dataset, train_of.validation_ms)]
    elif train_of is None and dataset.has("actions"):
        tables.append(session.parquet(dataset.files("actions")))
    found = [session.table(table.select(name).distinct())[name] for table in tables if name in table.columns]
    return Vocabulary.build(pa.chunked_array([chunk for array in found for chunk in array.chunks] or [[]]))


def events_of(session: Session, dataset: Dataset, end_ms: int | None) -> ir.Table:
    """Impressions before ``end_ms``."""
    return _before(session.parquet(dataset.files("events")), "event_time", end_ms)


def actions_of(session: Session, dataset: Dataset, end_ms: int | None) -> ir.Table | None:
    """Actions before ``end_ms``; None where the dataset has no such table."""
    if not dataset.has("actions"):
        return None
    return _before(session.parquet(dataset.files("actions")), "action_time", end_ms)


def stream(session: Session, log: Log, rows: Rows, *, block_records: int) -> Iterator[Block]:
    """Every record of the log, sorted and labelled, in blocks of whole users.

    A block ends with the first user that brings it to ``block_records``: blocks do not depend on how
    the engine hands over its rows. Raises :class:`ContractError` for an event without a split.
    """
    expression = records(session, log, rows)
    user_of_place = np.argsort(rows.order_of_user())
    for part in _whole_users(session.batches(expression), block_records):
        yield _finish(_arrays(part, user_of_place, log), log)


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

    def finish(table: ir.Table) -> ir.Table:
        table = table.inner_join(users, "user_id").drop("user_id")
        table = table.left_join(videos, "video_id").drop("video_id", "video_id_right")
        table = table.mutate(video=table.video.fill_null(0))
        kept = {name: table[name].cast(kind) for name, kind in shared.items()}
        request = {"request_id": table.request_id} if by_request else {}
        return table.select(time=table.time, **kept, **request)

    everything = finish(_impressions(session, log, rows, events))
    if actions is not None:
        everything = everything.union(finish(_actions(actions)))
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


def _before(table: ir.Table, name: str, end_ms: int | None) -> ir.Table:
    if end_ms is None:
        return table
    return table.filter(table[name] < _literal(end_ms))


def _literal(time_ms: int) -> ir.TimestampScalar:
    moment = datetime.fromtimestamp(time_ms // 1000, UTC) + timedelta(milliseconds=time_ms % 1000)
    return ibis.literal(moment, "timestamp('UTC')")


def _ms(moment: datetime) -> int:
    """Spark gives moments without their zone, which is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


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


def _finish(block: Block, log: Log) -> Block:
    """Order ties, find causes, place actions in their split, and label."""
    block = _in_canonical_order(block)
    cause = causes(
        user=block.user, video=block.video, time_ms=block.time_ms, is_action=block.is_action,
        request=block.request if (block.request >= 0).any() else None,
    )  # fmt: skip
    if log.split.mode is SplitMode.given:
        block.rank = _ranks_of_actions(block, cause)
    labelled = label(
        time_ms=block.time_ms, true=block.own_true, known=block.own_known,
        order_value_minor=block.order_value_minor, is_action=block.is_action, cause=cause, video=block.video,
        attribution=log.attribution, logged=log.extent.logged, end_ms=_label_end_ms(block, log),
    )  # fmt: skip
    block = replace(
        block, true=labelled.true, known=labelled.known, order_value_minor=labelled.order_value_minor
    )
    block.attributed[block.is_action] = labelled.attributed
    if log.split.mode is SplitMode.given:
        block = block.take(_split_order(block, ordered=log.dataset.info.ordered))
    return block


def _user_number(block: Block) -> I64:
    return np.cumsum(np.concatenate([[0], block.user[1:] != block.user[:-1]]))


def _in_canonical_order(block: Block) -> Block:
    """Sort records of one user and millisecond; everything else is in order already."""
    user = _user_number(block)
    same = (user[1:] == user[:-1]) & (block.time_ms[1:] == block.time_ms[:-1])
    some = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
    if not len(some):
        return block
    order = np.arange(len(block))
    keys = [*_ties(block), block.time_ms, user]
    order[some] = some[np.lexsort([key[some] for key in keys])]
    return block.take(order)


def _ties(block: Block) -> list[npt.NDArray[np.generic]]:
    """Sort keys among records of one moment, the strongest last; those of a history's steps first."""
    return [
        block.request, block.order_value_minor, block.position, block.market,
        block.surface, block.watch_ms, block.own_known, block.own_true, block.video, block.is_action,
    ]  # fmt: skip


def _split_order(block: Block, *, ordered: bool) -> I64:
    """By user, split rank and time; a log without order gets a hashed one inside each moment."""
    keys = _ties(block)
    if not ordered:
        keys.append(mix(block.video ^ mix(block.user, salt_of("unordered")).astype(np.int64)))
    return np.lexsort([*keys, block.time_ms, block.rank, _user_number(block)])


def _ranks_of_actions(block: Block, cause: I64) -> I8:
    """An action belongs to the split of its impression, or a later one that the user had reached."""
    user, rank = _user_number(block), block.rank.copy()
    reached = np.maximum.accumulate(user * len(SPLITS) + np.where(block.is_action, 0, rank)) % len(SPLITS)
    own = np.where(cause >= 0, rank[cause], 0)
    rank[block.is_action] = np.maximum(own, reached[block.is_action])
    return rank


def _label_end_ms(block: Block, log: Log) -> I64 | int:
    split = log.split
    if not log.label_by_split or split.validation_ms is None or split.test_ms is None:
        return log.end_ms
    return np.array([split.validation_ms, split.test_ms, log.end_ms], np.int64)[block.rank]
