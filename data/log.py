"""A dataset's log as a whole: how far it reaches, how it is split and labelled, which ids it has."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.dataset import Dataset
from data.engine import Session
from data.errors import ContractError
from data.hashing import mix, salt_of
from data.labels import Attribution
from data.schema import LABEL_BIT, SPLITS
from data.split import Split, SplitMode
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]


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
