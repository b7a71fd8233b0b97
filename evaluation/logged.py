"""The log of a policy: the contract's events with propensities, and what the target would have done."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from data.errors import ConfigError, ContractError
from evaluation.arrays import Floats, Ints, Words, sum_by
from evaluation.ids import id_words, mix
from evaluation.reward_model import TargetTable
from evaluation.tables import Kind, open_table, plain_ids, refuse_nulls

#: Columns a log may bring to replace the built-in reward model (documented in docs/evaluation.md).
BASELINES = ("baseline", "baseline_target", "baseline_to_go", "baseline_to_go_target")
MARGINALS = ("propensity_marginal", "target_propensity_marginal")
#: A target table may tell these contexts apart.
CONTEXTS = ("request_id", "surface", "market", "position")


@dataclass(frozen=True, slots=True)
class Logged:
    """The rows of a log, in (request, position) order; ids are dense integers.

    ``extra`` holds the optional float columns that are there; ``target_N`` is NaN until a target is set.
    """

    path: str
    user_N: Ints
    request_N: Ints | None
    place_N: Ints
    video_N: Ints
    reward_N: Floats
    propensity_N: Floats
    target_N: Floats
    extra: dict[str, Floats]
    table: pa.Table
    dropped: int


def open_log(path: str) -> ds.Dataset:
    """The log as a lazy dataset: a file, a folder of files, or a dataset directory with events."""
    place = Path(path)
    if place.is_dir():
        for events in (place / "events", place / "events.parquet"):
            if events.exists():
                place = events
                break
    return open_table("log", place, {"user_id": Kind.id})


def read_logged(path: str, reward: str, where: Mapping[str, str]) -> Logged:
    """Read the rows of ``path`` that equal ``where``; rows of unknown reward are left out and counted.

    Refused: no ``propensity`` or reward column, propensities outside (0, 1], a target probability
    outside [0, 1], NaN.
    """
    table = open_log(path)
    required = {"user_id": Kind.id, "video_id": Kind.id, "propensity": Kind.number}
    names = table.schema.names
    for name, kind in required.items():
        if name not in names or not kind.fits(table.schema.field(name).type):
            raise ContractError(f"log={path}: needs column {name} as {kind.value}")
    if reward not in names:
        raise ConfigError(
            f"off_policy.reward={reward}: the log has no such column; it has {', '.join(names)}"
        )
    rows = table.to_table(filter=_filter(table, where))
    known = rows.filter(rows[reward].is_valid())
    if not known.num_rows:
        raise ContractError(f"log={path}: no row with a known {reward} is left; loosen off_policy.where")
    refuse_nulls("log", table, known, list(required))
    if "request_id" in names and "position" in names:
        refuse_nulls("log", table, known, ["request_id", "position"])
        known = known.take(
            pa.array(np.lexsort((known["position"].to_numpy(), id_words(known["request_id"]))))
        )
    extra = {name: _floats(path, known, name) for name in (*BASELINES, *MARGINALS) if name in names}
    propensity_N = _floats(path, known, "propensity")
    if not ((propensity_N > 0) & (propensity_N <= 1)).all():
        raise ContractError(f"log={path}: propensity must lie in (0, 1]; a shown video had some chance")
    target_N = np.full(known.num_rows, np.nan)
    if "target_propensity" in names:
        target_N = _floats(path, known, "target_propensity")
        if not ((target_N >= 0) & (target_N <= 1)).all():
            raise ContractError(f"log={path}: target_propensity must lie in [0, 1]")
    request_N = (
        dense(known["request_id"]) if "request_id" in names and not known["request_id"].null_count else None
    )
    return Logged(
        path=path,
        user_N=dense(known["user_id"]),
        request_N=request_N,
        place_N=_places(request_N, known.num_rows),
        video_N=dense(known["video_id"]),
        reward_N=_floats(path, known, reward),
        propensity_N=propensity_N,
        target_N=target_N,
        extra=extra,
        table=known,
        dropped=rows.num_rows - known.num_rows,
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A target policy's whole distribution, with the context and video of each row of the log in it."""

    table: TargetTable
    context_N: Ints
    video_N: Ints


def target_from_table(logged: Logged, path: str) -> Target:
    """A target policy as a table: context columns, ``video_id``, ``probability``.

    Context columns are any of ``CONTEXTS`` that the table has. Probabilities of a context must add up
    to 1 and every context of the log must be there.
    """
    table = open_table("off_policy.target", path, {"video_id": Kind.id, "probability": Kind.number})
    rows = table.to_table()
    refuse_nulls("off_policy.target", table, rows, ["video_id", "probability"])
    columns = [name for name in CONTEXTS if name in rows.schema.names]
    missing = [name for name in columns if name not in logged.table.schema.names]
    if missing:
        raise ContractError(f"off_policy.target={path}: column {missing[0]} is not in the log; drop it")
    target = _joined(logged, rows, columns, rows["probability"].cast(pa.float64(), safe=False).to_numpy())
    total_C = sum_by(target.table.context_Z, target.table.probability_Z, target.table.contexts)
    total_C = total_C[np.unique(target.context_N)]
    if not np.allclose(total_C, 1.0, atol=1e-6):
        raise ContractError(
            f"off_policy.target={path}: probabilities of a context add up to {total_C.min():.6g}, not 1; "
            "give every context of the log all of its videos"
        )
    return target


def target_from_frequencies(logged: Logged, other: Logged) -> Target:
    """The target as the choice frequencies of its own log, per surface and position where there are any."""
    shared = set(logged.table.schema.names) & set(other.table.schema.names)
    columns = [name for name in ("surface", "position") if name in shared]
    context_N = np.unique(_keys(other.table, columns), return_inverse=True)[1]
    pair_N = context_N * (int(other.video_N.max()) + 1) + other.video_N
    _, first, count = np.unique(pair_N, return_index=True, return_counts=True)
    share = count / np.bincount(context_N)[context_N[first]]
    return _joined(logged, other.table.take(pa.array(first)), columns, share)


def dense(column: pa.ChunkedArray) -> Ints:
    """Ids as 0, 1, 2, … in order of their words."""
    code: Ints = np.unique(id_words(column), return_inverse=True)[1].astype(np.int64)
    return code


def _joined(logged: Logged, rows: pa.Table, columns: list[str], probability_Z: Floats) -> Target:
    """Dense contexts and videos over the log and the target's rows together."""
    size = logged.table.num_rows
    keys = np.r_[_keys(logged.table, columns), _keys(rows, columns)]
    words = np.r_[id_words(logged.table["video_id"]), id_words(rows["video_id"])]
    context = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    video = np.unique(words, return_inverse=True)[1].astype(np.int64)
    table = TargetTable(
        context_Z=context[size:],
        video_Z=video[size:],
        probability_Z=np.asarray(probability_Z, np.float64),
        contexts=int(context.max()) + 1,
        videos=int(video.max()) + 1,
    )
    return Target(table, context[:size], video[:size])


def _keys(table: pa.Table, columns: list[str]) -> Words:
    """One word per combination of the context columns."""
    word = np.zeros(table.num_rows, np.uint64)
    for name in columns:
        column = table[name]
        ids = column.cast(pa.int64()) if pa.types.is_integer(column.type) else column
        if ids.null_count:
            ids = ids.fill_null("" if not pa.types.is_int64(ids.type) else -1)
        word = mix(word * np.uint64(31) + id_words(plain_ids(ids)))
    return word


def _places(request_N: Ints | None, rows: int) -> Ints:
    if request_N is None:
        return np.zeros(rows, np.int64)
    starts = np.flatnonzero(np.r_[True, request_N[1:] != request_N[:-1]])
    return np.arange(rows) - np.repeat(starts, np.diff(np.r_[starts, rows]))


def _floats(path: str, table: pa.Table, name: str) -> Floats:
    column = table[name]
    if column.null_count:
        raise ContractError(f"log={path}: column {name} has nulls; fill or drop those rows")
    value: Floats = column.cast(pa.float64(), safe=False).to_numpy()
    if not np.isfinite(value).all():
        raise ContractError(f"log={path}: column {name} has NaN or infinity")
    return value


def _filter(table: ds.Dataset, where: Mapping[str, str]) -> ds.Expression | None:
    expression: ds.Expression | None = None
    for name, value in where.items():
        if name not in table.schema.names:
            raise ConfigError(f"off_policy.where.{name}: the log has no such column")
        kind = table.schema.field(name).type
        each = ds.field(name) == pc.cast(pa.scalar(str(value)), kind)
        expression = each if expression is None else expression & each
    return expression
