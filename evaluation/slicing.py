"""Cutting the truth by any of its columns: a few named values each, numbers in buckets of equal size."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.schema import LABELS
from evaluation.arrays import Floats, Ints
from evaluation.truth import Truth

MAX_VALUES = 12
BUCKETS = 5
UNKNOWN = "unknown"
#: Columns of the truth that say what happened rather than to whom.
NOT_SLICES = {
    "request_id", "user_id", "video_id", "gain", "request_time", "watch_ms", "order_value_minor",
    "product_id", *LABELS,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class SliceColumn:
    """``code_X`` is the value of each row (right video, or request) as an index into ``labels``."""

    name: str
    labels: list[str]
    code_X: Ints


def truth_columns(truth: Truth) -> dict[str, pa.ChunkedArray]:
    """The truth's own slice columns: every scalar one that is no id, label or time."""
    return {
        field.name: truth.rows[field.name]
        for field in truth.rows.schema
        if field.name not in NOT_SLICES and not pa.types.is_nested(field.type)
    }


def cut(name: str, column: pa.ChunkedArray) -> SliceColumn:
    """Any scalar column as at most ``MAX_VALUES`` labels (and perhaps "other" and "unknown").

    Numbers with many values fall into ``BUCKETS`` quantile buckets, text keeps its most frequent values,
    timestamps become days.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_timestamp(kind):
        column, kind = pc.strftime(column, format="%Y-%m-%d"), pa.string()
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if number and (pa.types.is_floating(kind) or len(column.unique()) > MAX_VALUES):
        labels, code_T = _buckets(column.cast(pa.float64(), safe=False).to_numpy())
    else:
        labels, code_T = _values(column.cast(pa.string()), numeric=number)
    return SliceColumn(name, labels, code_T)


def _values(column: pa.ChunkedArray, *, numeric: bool) -> tuple[list[str], Ints]:
    counts = column.drop_null().value_counts()
    pairs = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)
    ranked = [str(value) for value, _ in sorted(pairs, key=lambda pair: (-pair[1], pair[0]))]
    kept = ranked if len(ranked) <= MAX_VALUES else ranked[: MAX_VALUES - 1]
    labels = sorted(kept, key=float) if numeric else kept
    code = pc.index_in(column, value_set=pa.array(labels, pa.string())).fill_null(-1)
    code_T = code.to_numpy().astype(np.int64)
    missing_T = column.is_null().to_numpy()
    for label, where_T in (("other", (code_T < 0) & ~missing_T), (UNKNOWN, missing_T)):
        if where_T.any():
            code_T[where_T] = len(labels)
            labels.append(label)
    return labels, code_T


def _buckets(value_T: Floats) -> tuple[list[str], Ints]:
    known_T = ~np.isnan(value_T)
    cuts = np.linspace(0, 1, BUCKETS + 1)[1:-1]
    edges = np.unique(np.quantile(value_T[known_T], cuts)) if known_T.any() else np.zeros(0)
    code_T = np.searchsorted(edges, value_T, side="right").astype(np.int64)
    bounds = [f"{edge:,.6g}" for edge in edges]
    labels = [f"< {bounds[0]}"] if bounds else ["all"]
    labels += [f"{low} – {high}" for low, high in pairwise(bounds)]
    labels += [f"≥ {bounds[-1]}"] if bounds else []
    code_T[~known_T] = len(labels)
    labels.append(UNKNOWN)
    used = np.unique(code_T)
    return [labels[code] for code in used], np.searchsorted(used, code_T)
