"""Served pages and accepted events as tables of the dataset contract, and one table more: ``served``.

Ids have one type per column, that of the bundle at the time the log was begun. Where that is int64, a
user id that is a text gets a negative number of its own (:func:`number_of`), and events about videos
whose id is a text are left out: no catalogue has such a video.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from data.schema import ID, LABEL_BIT, LABELS, TIME, Column
from serving.served import ServedPage, ServedSlot
from serving.state.protocol import EventRecord, Id

#: The slot in which an impression was served, and the page; None where the server did not serve it.
Lookup = Callable[[EventRecord], tuple[ServedPage, ServedSlot] | None]


def contract_schema(columns: Mapping[str, Column], ids: Mapping[str, pa.DataType]) -> pa.Schema:
    """Arrow schema of a table of the contract, without ``split``, with the id types given by column."""
    kinds = {name: ids[name] if column.type == ID else column.type for name, column in columns.items()}
    return pa.schema([(name, kind) for name, kind in kinds.items() if name != "split"])


def served_schema(user_id: pa.DataType, video_id: pa.DataType) -> pa.Schema:
    """One row per slot that was served."""
    return pa.schema(
        [
            ("request_id", pa.string()), ("user_id", user_id), ("video_id", video_id), ("served_time", TIME),
            ("position", pa.int32()), ("score", pa.float64()), ("retrieval_score", pa.float64()),
            ("rank", pa.int32()), ("source", pa.string()), ("propensity", pa.float64()),
            ("predicted_watch_ms", pa.float64()), ("campaign_id", pa.string()),
            ("displaced_video_id", video_id), ("cost_watch_ms", pa.float64()), ("cost_orders", pa.float64()),
            ("rules", pa.list_(pa.string())),
            ("probabilities", pa.map_(pa.string(), pa.float64())),
            ("bundle", pa.string()), ("policy", pa.string()), ("arms", pa.map_(pa.string(), pa.string())),
            ("surface", pa.string()), ("market", pa.string()), ("degraded", pa.list_(pa.string())),
        ]
    )  # fmt: skip


def arm_column(experiment: str) -> str:
    """The column of ``events`` that holds the user's arm in an experiment, for ``experiment.arm=…``."""
    return f"arm_{experiment}"


def with_arms(schema: pa.Schema, columns: Iterable[str]) -> pa.Schema:
    """A schema of events with columns of arms beside it; a row without a page knows none of them."""
    for name in columns:
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def arm_columns(events: Iterable[EventRecord], served: Lookup) -> set[str]:
    """The columns of arms that these events need."""
    pages = (found[0] for event in events if (found := served(event)) is not None)
    return {arm_column(experiment) for page in pages for experiment in page.arms}


def without_labels(events: pa.Table, kept: Collection[str]) -> pa.Table:
    """Events with the label columns ``kept`` alone: a column in which nothing was ever known has no place."""
    return events.drop_columns([label for label in LABELS if label not in kept])


def known_labels(events: pa.Table) -> list[str]:
    """The labels that at least one row knows."""
    names = set(events.column_names)
    return [label for label in LABELS if label in names and events[label].null_count < events.num_rows]


def events_table(events: Iterable[EventRecord], served: Lookup, schema: pa.Schema) -> pa.Table:
    """Impressions with the labels they carried, and what the served log knows of their slots."""
    rows = []
    for event in events:
        if event.kind != "impression" or not _fits(event.video_id, schema):
            continue
        row = _shared(event, schema, event_time=event.time_ms * 1000)
        row |= {"watch_ms": event.watch_ms, "position": event.position, "surface": event.surface}
        for label in LABELS:
            bit = LABEL_BIT[label]
            row[label] = bool(event.actions & bit) if event.known & bit else None
        found = served(event)
        if found is not None:
            page, slot = found
            row |= {"propensity": slot.propensity, "policy": page.policy, "position": slot.position}
            row["market"] = event.market or page.market
            row |= {arm_column(experiment): arm for experiment, arm in page.arms.items()}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema)


def actions_table(events: Iterable[EventRecord], schema: pa.Schema) -> pa.Table:
    """Outcomes that came as events of their own."""
    name_of = {bit: label for label, bit in LABEL_BIT.items()}
    rows = [
        _shared(event, schema, action_time=event.time_ms * 1000) | {"action": name_of[event.actions]}
        for event in events
        if event.kind == "action" and _fits(event.video_id, schema)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def served_table(pages: Iterable[ServedPage], schema: pa.Schema) -> pa.Table:
    """Every slot of every page."""
    rows = [
        {
            "request_id": page.request_id, "user_id": _id(page.user_id, schema.field("user_id").type),
            "video_id": slot.video_id, "served_time": page.time_ms * 1000, "position": slot.position,
            "score": slot.score, "retrieval_score": slot.retrieval_score, "rank": slot.rank,
            "source": slot.source, "propensity": slot.propensity, "campaign_id": slot.campaign_id,
            "predicted_watch_ms": slot.watch_ms, **_cost(slot),
            "rules": slot.rules, "probabilities": list(slot.probabilities.items()), "bundle": page.bundle,
            "policy": page.policy, "arms": list(page.arms.items()), "surface": page.surface,
            "market": page.market, "degraded": page.degraded,
        }
        for page in pages
        for slot in page.slots
        if _fits(slot.video_id, schema)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def _cost(slot: ServedSlot) -> dict[str, Any]:
    cost = slot.displaced
    if cost is None:
        return {}
    return {"displaced_video_id": cost.video_id, "cost_watch_ms": cost.watch_ms, "cost_orders": cost.orders}


def number_of(user_id: str) -> int:
    """A negative int64 for a user id that is a text, the same everywhere, hardly ever that of another."""
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return -1 - (int.from_bytes(digest, "big") >> 1)


def _shared(event: EventRecord, schema: pa.Schema, **times: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "user_id": _id(event.user_id, schema.field("user_id").type), "video_id": event.video_id,
        "request_id": event.request_id, "order_value_minor": event.order_value_minor,
        "currency": event.currency, "market": event.market, **times,
    }  # fmt: skip
    kind = schema.field("product_id").type
    fits = event.product_id is None or isinstance(event.product_id, int) == pa.types.is_int64(kind)
    row["product_id"] = event.product_id if fits else None
    return row


def _id(value: Id, kind: pa.DataType) -> Id:
    if pa.types.is_int64(kind):
        return value if isinstance(value, int) else number_of(value)
    return str(value)


def _fits(video_id: Id, schema: pa.Schema) -> bool:
    return isinstance(video_id, int) is bool(pa.types.is_int64(schema.field("video_id").type))
