"""Fills an empty store from a log, so that known users get their own feed from the first request on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.atomic import read_json
from data.dataset import Dataset
from data.engine import Engine, open_engine
from data.held_out import HeldOutRules
from data.records import Block, Log, Rows, distinct, extent_of, stream
from models.bundle import locate
from serving.state import Store
from serving.state.protocol import Id, Step

_BLOCK_RECORDS = 200_000
Warmed = tuple[Id, Sequence[Step], Sequence[Id]]


def rules_of_bundle(bundles: str | Path) -> HeldOutRules:
    """By which rules the log of a bundle was split and labelled. Raises :class:`ContractError`."""
    return HeldOutRules.of(read_json(locate(bundles) / "prepared" / "prepared.json"))


def log_end_ms(dataset: Dataset, *, memory_limit_gb: float) -> int:
    """The first moment (Unix ms) that the log does not cover."""
    with open_engine(Engine.duckdb, memory_limit_gb=memory_limit_gb) as session:
        return extent_of(session, dataset).last_ms + 1


def warm_store(
    store: Store,
    dataset: Dataset,
    rules: HeldOutRules,
    *,
    until_ms: int | None,
    now_ms: int,
    history_steps: int,
    memory_limit_gb: float,
) -> int:
    """Load every user of the log: the last steps before ``until_ms`` (None: all) and all videos met.

    Steps are those that ``prepare`` makes. Videos count as seen from ``now_ms`` on. Returns the number of
    users. Only for a store that :meth:`Store.is_empty`.
    """
    with open_engine(Engine.duckdb, memory_limit_gb=memory_limit_gb) as session:
        extent = extent_of(session, dataset)
        log = Log(dataset, extent, rules.split, rules.attribution, rules.label_by_split)
        rows = Rows(
            users=distinct(session, dataset, "user_id"),
            catalogue=distinct(session, dataset, "video_id"),
            surfaces=distinct(session, dataset, "surface"),
            markets=distinct(session, dataset, "market"),
        )
        blocks = stream(session, log, rows, block_records=_BLOCK_RECORDS)
        return store.warm(_users(blocks, rows, until_ms, history_steps), now_ms)


def _users(blocks: Iterator[Block], rows: Rows, until_ms: int | None, history_steps: int) -> Iterator[Warmed]:
    for block in blocks:
        bounds = block.user_bounds()
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            own = block.take(np.arange(start, stop))
            if until_ms is not None:
                own = own.take(own.time_ms < until_ms)
            if len(own):
                yield _user(own, rows, history_steps)


def _user(own: Block, rows: Rows, history_steps: int) -> Warmed:
    (user_id,) = rows.users.ids(own.user[:1]).to_pylist()
    seen = rows.catalogue.ids(np.unique(own.video[own.video > 0])).to_pylist()
    last = own.take(np.arange(max(0, len(own) - history_steps), len(own)))
    steps = map(
        Step,
        rows.catalogue.ids(last.video).to_pylist(),
        last.time_ms.tolist(),
        last.own_true.tolist(),
        last.own_known.tolist(),
        last.watch_ms.tolist(),
        rows.surfaces.ids(last.surface).to_pylist(),
        last.is_action.tolist(),
    )
    return user_id, list(steps), seen
