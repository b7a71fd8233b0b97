"""Served logs with experiment assignments, added up per user."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from data.errors import ConfigError, ContractError
from data.schema import LABELS
from evaluation.arrays import Bools, Floats, Ints, Words, sum_by
from evaluation.ids import id_words
from evaluation.logged import open_log
from evaluation.tables import Kind, batches

#: Amounts that are added up per user besides the labels.
AMOUNTS = ("watch_ms", "order_value_minor")


@dataclass(frozen=True, slots=True)
class UserTotals:
    """Per user ``U``: arm, and per metric the total during and before the experiment.

    ``arms`` names the arms, control first. ``known_UM`` counts the impressions whose label is known.
    ``slice_U`` holds per slice column the value most seen by each user. ``in_two_arms`` users were
    dropped.
    """

    arms: list[str]
    arm_U: Ints
    metrics: list[str]
    total_UM: Floats
    known_UM: Floats
    before_UM: Floats | None
    slices: dict[str, tuple[list[str], Ints]]
    in_two_arms: int


def read_totals(path: str, arm: str, control: str | None, start: str | None, slices: list[str]) -> UserTotals:
    """Stream the log at ``path`` into totals per user.

    ``arm`` is the column of the assignment; rows without one, and rows before ``start`` (ISO time, UTC
    where it names no zone), are the pre-period. Users seen in two arms are counted and left out.
    """
    table = open_log(path)
    names = table.schema.names
    if not Kind.text.fits(table.schema.field(arm).type):
        raise ContractError(f"log={path}: column {arm} must be a string, the arm's name; cast it")
    metrics = [name for name in (*LABELS, *AMOUNTS) if name in names]
    if not metrics:
        raise ContractError(f"log={path}: no label, watch_ms or order_value_minor to compare")
    begin = _time(start) if start is not None else None
    if begin is not None and "event_time" not in names:
        raise ConfigError(f"log={path}: experiment.start needs a column event_time")
    cut = [name for name in slices if name in names and Kind.text.fits(table.schema.field(name).type)]
    columns = ["user_id", arm, *metrics, *cut] + (["event_time"] if begin is not None else [])
    user, code, word_of_arm = _assignments(path, table, arm, begin)
    arms = _control_first(path, list(word_of_arm), control)
    total_UM, known_UM, before_UM = (np.zeros((len(user), len(metrics))) for _ in range(3))
    had_before = False
    counts = {name: {} for name in cut}  # type: dict[str, dict[str, Floats]]
    for batch in batches("log", table, columns):
        row_N = np.searchsorted(user, id_words(batch.column("user_id")))
        row_N = np.minimum(row_N, max(len(user) - 1, 0))
        mine_N = (
            user[row_N] == id_words(batch.column("user_id")) if len(user) else np.zeros(len(row_N), np.bool_)
        )
        during_N = _during(batch, arm, begin)
        had_before |= bool((~during_N & mine_N).any())
        for m, name in enumerate(metrics):
            column = batch.column(name)
            valid_N = column.is_valid().to_numpy(zero_copy_only=False)
            value_N = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy(zero_copy_only=False)
            for target, kept_N, weight_N in (
                (total_UM, during_N, value_N), (known_UM, during_N & valid_N, np.ones(len(row_N))),
                (before_UM, ~during_N, value_N),
            ):  # fmt: skip
                kept = kept_N & mine_N
                target[:, m] += sum_by(row_N[kept], weight_N[kept], len(user))
        for name in cut:
            _count(counts[name], batch.column(name), row_N, during_N & mine_N, len(user))
    labels = {name: _most_seen(found, len(user)) for name, found in counts.items()}
    order = np.array([arms.index(name) for name in word_of_arm])
    arm_U = order[np.maximum(code, 0)]
    single = code >= 0
    return UserTotals(
        arms=arms, arm_U=arm_U[single], metrics=metrics, total_UM=total_UM[single], known_UM=known_UM[single],
        before_UM=before_UM[single] if had_before else None,
        slices={name: (texts, value_U[single]) for name, (texts, value_U) in labels.items()},
        in_two_arms=int((~single).sum()),
    )  # fmt: skip


def _assignments(
    path: str, table: ds.Dataset, arm: str, begin: datetime | None
) -> tuple[Words, Ints, list[str]]:
    """Sorted user words with an assignment, each one's arm (−1 for two), and the arms' names."""
    pairs: list[tuple[Words, Ints]] = []
    names: list[str] = []
    columns = ["user_id", arm] + (["event_time"] if begin is not None else [])
    for batch in batches("log", table, columns):
        during_N = _during(batch, arm, begin)
        encoded = batch.column(arm).filter(pa.array(during_N)).cast(pa.string()).dictionary_encode()
        local = [str(name) for name in encoded.dictionary.to_pylist()]
        names += [name for name in local if name not in names]
        to_global = np.array([names.index(name) for name in local], np.int64)
        code_N = to_global[encoded.indices.to_numpy(zero_copy_only=False)] if local else np.zeros(0, np.int64)
        word_N = id_words(batch.column("user_id").filter(pa.array(during_N)))
        unique = np.unique(np.stack([word_N, code_N.astype(np.uint64)]), axis=1)
        pairs.append((unique[0], unique[1].astype(np.int64)))
    if not names:
        raise ContractError(f"log={path}: column {arm} names no arm in any row")
    both = np.unique(
        np.stack(
            [np.concatenate([w for w, _ in pairs]), np.concatenate([c for _, c in pairs]).astype(np.uint64)]
        ),
        axis=1,
    )
    user, first, count = np.unique(both[0], return_index=True, return_counts=True)
    return user, np.where(count == 1, both[1][first].astype(np.int64), -1), names


def _during(batch: pa.RecordBatch, arm: str, begin: datetime | None) -> Bools:
    during: Bools = batch.column(arm).is_valid().to_numpy(zero_copy_only=False)
    if begin is not None:
        late = pc.greater_equal(
            batch.column("event_time").cast(pa.timestamp("us", tz="UTC")), pa.scalar(begin)
        )
        during = during & late.to_numpy(zero_copy_only=False)
    return during


def _control_first(path: str, names: list[str], control: str | None) -> list[str]:
    chosen = control if control is not None else ("control" if "control" in names else None)
    if chosen is None or chosen not in names:
        raise ConfigError(f"log={path}: set experiment.control to one of the arms {', '.join(sorted(names))}")
    if len(names) < 2:
        raise ContractError(f"log={path}: only the arm {chosen} occurs; an experiment needs two")
    return [chosen, *sorted(name for name in names if name != chosen)]


def _count(found: dict[str, Floats], column: pa.Array, row_N: Ints, kept_N: Bools, users: int) -> None:
    texts = column.cast(pa.string()).fill_null("unknown")
    for text in texts.unique().to_pylist():
        here = kept_N & pc.equal(texts, text).to_numpy(zero_copy_only=False)
        found[text] = found.get(text, np.zeros(users)) + np.bincount(row_N[here], minlength=users)


def _most_seen(found: dict[str, Floats], users: int) -> tuple[list[str], Ints]:
    texts = sorted(found)
    return texts, np.argmax(np.stack([found[text] for text in texts]), axis=0) if texts else np.zeros(
        users, np.int64
    )


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"experiment.start={text} is not an ISO time such as 2026-03-01T00:00:00+00:00"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
