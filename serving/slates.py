"""Logged slates as requests: rank what was shown, knowing only what was known at that moment.

The request of a slate is its first impression; its candidates are the slate's own videos; the truth are
those of them with the gain. Nothing is masked: what was shown was allowed to be shown.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data.dataset import Dataset
from data.engine import Engine, Session, open_engine
from data.errors import ContractError
from data.held_out import HeldOutRules, gain_mask, truth_schema
from data.history import UserHistory, UserRequest
from data.records import Block, Log, distinct, extent_of, stream
from data.records import Rows as RowsOf
from data.schema import LABEL_BIT, SPLITS
from data.split import SplitMode, split_rank
from models.bundle import Bundle
from serving.exact import NO_ROWS, Rows
from serving.held_out import HeldOutBatch
from serving.pipeline import RankRequest

BLOCK_RECORDS = 500_000
_KEY = ("user", "time_ms", "video")


def slate_requests(
    bundle: Bundle, dataset: Dataset, split: str, *, gain: str, rules: bool, memory_limit_gb: float
) -> Iterator[HeldOutBatch]:
    """Every logged slate of the split with a video that has ``gain``, named by its ``request_id``.

    Raises :class:`ContractError` for a log without ``request_id``.
    """
    if "request_id" not in dataset.scan("events").schema.names:
        raise ContractError(f"{dataset.path}/events: no column request_id, so no slates; use requests=user")
    held_out = HeldOutRules.of(bundle.prepared)
    rank = split_rank(split)
    with open_engine(Engine.duckdb, memory_limit_gb=memory_limit_gb) as session:
        extent = extent_of(session, dataset)
        log = Log(dataset, extent, held_out.split, held_out.attribution, held_out.label_by_split)
        own = RowsOf(
            distinct(session, dataset, "user_id"), distinct(session, dataset, "video_id"),
            bundle.surfaces, bundle.markets,
        )  # fmt: skip
        slates = _shown(session, log, own, rank)
        for block in stream(session, log, own, block_records=BLOCK_RECORDS):
            yield _batch(block, slates, rank, gain_mask(gain), bundle, own, rules)


def _shown(session: Session, log: Log, own: RowsOf, rank: int) -> pa.Table:
    """user, time_ms, video and request_id of the split's impressions that were part of a slate."""
    events = session.parquet(log.dataset.files("events"))
    if log.split.mode is SplitMode.given:
        events = events.filter(events.split == SPLITS[rank])
    table = session.table(
        events.filter(events.request_id.notnull()).select("user_id", "video_id", "event_time", "request_id")
    )
    time_ms = table["event_time"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() // 1000
    columns = {
        "user": own.users.rows(table["user_id"]),
        "time_ms": time_ms,
        "video": own.catalogue.rows(table["video_id"]),
    }
    keyed = pa.table({**columns, "request_id": table["request_id"]})
    return keyed.group_by(list(_KEY)).aggregate([("request_id", "min")])


def _batch(
    block: Block, slates: pa.Table, rank: int, gain: int, bundle: Bundle, own: RowsOf, rules: bool
) -> HeldOutBatch:
    """The slates of one block, by user and time, that have a truth."""
    inside = np.flatnonzero((block.rank == rank) & ~block.is_action)
    shown = pa.table({name: getattr(block, name)[inside] for name in _KEY}).append_column(
        "place", pa.array(inside)
    )
    shown = shown.join(slates, keys=list(_KEY), join_type="inner").sort_by("place")
    place, name = shown["place"].to_numpy(), shown["request_id_min"].combine_chunks().dictionary_encode()
    video_row = bundle.catalogue.rows(own.catalogue.ids(block.video))
    user_row = bundle.users.rows(own.users.ids(block.user))
    bounds = block.user_bounds()
    requests: list[RankRequest] = []
    names, truths = [], []
    without = 0
    for code, positions in _slates_of(block.user[place], name.indices.to_numpy(), place):
        right = positions[(block.true[positions] & gain) != 0]
        if not len(right):
            without += 1
            continue
        first = int(positions[0])
        begin = int(bounds[np.searchsorted(bounds, first, side="right") - 1])
        moment = int(block.time_ms[first])
        known = begin + np.flatnonzero(
            (block.rank[begin:first] < rank) | (block.time_ms[begin:first] < moment)
        )
        steps = known[-bundle.encoder.model.shape.max_steps :]
        history = UserHistory(
            video_row[steps], block.time_ms[steps], block.own_true[steps], block.own_known[steps],
            block.watch_ms[steps], block.surface[steps],
        )  # fmt: skip
        candidates = np.unique(video_row[positions])
        requests.append(
            RankRequest(
                UserRequest(int(user_row[first]), history, moment, int(block.surface[first])),
                k=len(candidates), market=own.markets.ids([block.market[first]])[0].as_py(), rules=rules,
                allowed_rows=candidates,
            )
        )  # fmt: skip
        names.append(name.dictionary[code].as_py())
        truths.append((positions, right, moment))
    request_ids = pa.array(names, pa.string())
    truth = _truth(block, truths, request_ids, own)
    return HeldOutBatch(requests, request_ids, [NO_ROWS] * len(requests), truth, without)


def _slates_of(user: Rows, code: Rows, place: Rows) -> Iterator[tuple[int, Rows]]:
    """Positions of each slate in the order of its first impression. One request_id of two users is two."""
    order = np.lexsort((place, code, user))
    fresh = (np.diff(user[order]) != 0) | (np.diff(code[order]) != 0)
    groups = np.split(order, np.flatnonzero(fresh) + 1) if len(order) else []
    for group in sorted(groups, key=lambda group: int(place[group[0]])):
        yield int(code[group[0]]), place[group]


def _truth(
    block: Block, truths: list[tuple[Rows, Rows, int]], request_ids: pa.Array, own: RowsOf
) -> pa.Table:
    """One row per request and right video; labels of all its impressions in the slate together."""
    request, first, true, known, moments = [], [], [], [], []
    for number, (positions, right, moment) in enumerate(truths):
        for place in right[np.sort(np.unique(block.video[right], return_index=True)[1])].tolist():
            same = positions[block.video[positions] == block.video[place]]
            request.append(number)
            first.append(place)
            moments.append(moment)
            true.append(int(np.bitwise_or.reduce(block.true[same])))
            known.append(int(np.bitwise_or.reduce(block.known[same])))
    kept = np.array(first, np.int64)
    true_mask, known_mask = np.array(true, np.int32), np.array(known, np.int32)
    schema = truth_schema(own.users.type, own.catalogue.type)
    return pa.table(
        [
            request_ids.take(pa.array(request, pa.int64())), own.users.ids(block.user[kept]),
            pa.array(np.array(moments, np.int64) * 1000, pa.timestamp("us", "UTC")),
            own.catalogue.ids(block.video[kept]), pa.array(np.ones(len(kept))),
            *[
                pa.array((true_mask & bit) > 0, mask=((true_mask | known_mask) & bit) == 0)
                for bit in LABEL_BIT.values()
            ],
            own.surfaces.ids(block.surface[kept]).cast(pa.string()),
            own.markets.ids(block.market[kept]).cast(pa.string()),
        ],
        schema=schema,
    )  # fmt: skip
