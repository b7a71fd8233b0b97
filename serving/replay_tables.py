"""The Parquet tables that evaluation reads, as rows of Arrow: CONTRACTS section 4."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.bundle import Bundle
from serving.exact import Hits, Rows

#: Lower bounds of the ``history`` slice: how many videos the user had met before.
HISTORY_BOUNDS = (0, 1, 10, 50, 200, 1000)


class TableWriter:
    """One Parquet file that grows batch by batch; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows of the writer's schema."""
        self._writer.write_table(table.cast(self._schema))
        self.rows += table.num_rows

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def run_schema(bundle: Bundle) -> pa.Schema:
    """Schema of a run table."""
    return pa.schema(
        [
            ("request_id", pa.string()), ("video_id", bundle.catalogue.type), ("rank", pa.int32()),
            ("score", pa.float32()), ("stage", pa.string()),
        ]
    )  # fmt: skip


def run_rows(bundle: Bundle, request_ids: pa.Array, hits: Sequence[Hits], stage: str) -> pa.Table:
    """One ranked list per request as rows of a run table, ranks from 1."""
    lengths = np.array([len(answer.video_row) for answer in hits], np.int64)
    rows = np.concatenate([np.empty(0, np.int64), *(answer.video_row for answer in hits)])
    begin = np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns = [
        request_ids.take(pa.array(np.repeat(np.arange(len(hits)), lengths))),
        bundle.catalogue.ids(rows),
        pa.array(np.arange(len(rows)) - begin + 1, pa.int32()),
        np.concatenate([np.empty(0, np.float32), *(answer.score for answer in hits)]),
        pa.repeat(stage, len(rows)),
    ]
    return pa.table(columns, schema=run_schema(bundle))


def truth_schema(truth: pa.Schema, labels: Sequence[str]) -> pa.Schema:
    """``data.held_out``'s columns with ``labels`` alone, then the slice columns of :func:`sliced`."""
    kept = [truth.field(name) for name in _kept(truth, labels)]
    return pa.schema([*kept, ("is_new_video", pa.bool_()), ("history", pa.string())])


def sliced(
    bundle: Bundle, truth: pa.Table, request_ids: pa.Array, seen: Sequence[Rows], labels: Sequence[str]
) -> pa.Table:
    """Truth rows with slices: ``is_new_video`` (no impression in train), ``history`` (videos met before)."""
    met = np.array([len(rows) for rows in seen], np.int64)
    request = pc.index_in(truth["request_id"], value_set=request_ids).to_numpy()
    bucket = np.searchsorted(HISTORY_BOUNDS, met[request], side="right") - 1
    new = bundle.video_train_count[bundle.catalogue.rows(truth["video_id"])] == 0
    names = pa.array(_bucket_names()).take(pa.array(bucket))
    table = truth.select(_kept(truth.schema, labels))
    return table.append_column("is_new_video", pa.array(new)).append_column("history", names)


def _kept(truth: pa.Schema, labels: Sequence[str]) -> list[str]:
    return [field.name for field in truth if not pa.types.is_boolean(field.type) or field.name in labels]


def _bucket_names() -> list[str]:
    highs = [*(upper - 1 for upper in HISTORY_BOUNDS[1:]), None]
    return [
        f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        for low, high in zip(HISTORY_BOUNDS, highs, strict=True)
    ]
