"""The Parquet tables that evaluation reads, written batch by batch as requests are replayed."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.schema import LABEL_BIT
from models.bundle import Bundle
from serving.exact import Hits
from serving.held_out import HeldOut

#: Lower bounds of the ``history`` slice: number of records before the split.
HISTORY_BUCKETS = (0, 1, 10, 50, 200, 1000)


class TableWriter:
    """One Parquet file that grows; a context manager. Its schema is that of the first batch."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._writer.write_table(table.cast(self._schema))
        self.rows += table.num_rows

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def run_schema(bundle: Bundle) -> pa.Schema:
    """Schema of a run table: CONTRACTS section 4."""
    return pa.schema(
        [
            ("request_id", pa.string()), ("video_id", bundle.catalogue.type), ("rank", pa.int32()),
            ("score", pa.float32()), ("stage", pa.string()),
        ]
    )  # fmt: skip


def run_rows(bundle: Bundle, request_ids: Sequence[str], hits: Sequence[Hits], stage: str) -> pa.Table:
    """Ranked lists as rows of a run table, ranks from 1."""
    lengths = [len(answer.video_row) for answer in hits]
    rows = np.concatenate([np.empty(0, np.int64), *(answer.video_row for answer in hits)])
    columns = [
        pa.array(request_ids, pa.string()).take(pa.array(np.repeat(np.arange(len(hits)), lengths))),
        bundle.catalogue.ids(rows),
        np.concatenate([np.empty(0, np.int32), *(np.arange(1, length + 1) for length in lengths)]).astype(
            np.int32
        ),
        np.concatenate([np.empty(0, np.float32), *(answer.score for answer in hits)]),
        pa.array([stage], pa.string()).take(pa.array(np.zeros(len(rows), np.int64))),
    ]
    return pa.table(columns, schema=run_schema(bundle))


def truth_schema(bundle: Bundle, labels: Sequence[str]) -> pa.Schema:
    """Schema of the truth table: ``labels`` as bool columns, then slice columns."""
    return pa.schema(
        [
            ("request_id", pa.string()), ("user_id", bundle.users.type),
            ("request_time", pa.timestamp("ms", "UTC")), ("video_id", bundle.catalogue.type),
            ("gain", pa.float32()), *((label, pa.bool_()) for label in labels),
            ("market", pa.string()), ("surface", pa.string()), ("is_new_video", pa.bool_()),
            ("history", pa.string()),
        ]
    )  # fmt: skip


def truth_rows(
    bundle: Bundle, request_ids: Sequence[str], held: Sequence[HeldOut], labels: Sequence[str]
) -> pa.Table:
    """The right videos of every request. Slices: the market of the request, the surface that showed the
    video, whether the video has no impression in train, and how long the user's history is.
    """
    truths = [one.truth for one in held]
    count = np.array([len(truth.video_row) for truth in truths], np.int64)
    video = np.concatenate([np.empty(0, np.int64), *(truth.video_row for truth in truths)])
    true = np.concatenate([np.empty(0, np.int32), *(truth.true for truth in truths)])
    known = np.concatenate([np.empty(0, np.int32), *(truth.known for truth in truths)])
    surface = np.concatenate([np.empty(0, np.int64), *(truth.surface_row for truth in truths)])

    def each(values: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.repeat(np.asarray(values, np.int64), count)

    bucket = np.searchsorted(HISTORY_BUCKETS, [one.steps for one in held], side="right") - 1
    columns = {
        "request_id": pa.array(request_ids, pa.string()).take(pa.array(each(range(len(held))))),
        "user_id": bundle.users.ids(each([one.user.user_row for one in held])),
        "request_time": pa.array(each([one.user.time_ms for one in held]), pa.timestamp("ms", "UTC")),
        "video_id": bundle.catalogue.ids(video),
        "gain": np.ones(len(video), np.float32),
        **{
            label: pa.array((true & LABEL_BIT[label]) != 0, mask=((true | known) & LABEL_BIT[label]) == 0)
            for label in labels
        },
        "market": bundle.markets.ids(each([one.market_row for one in held])).cast(pa.string()),
        "surface": bundle.surfaces.ids(surface).cast(pa.string()),
        "is_new_video": bundle.video_train_count[video] == 0,
        "history": pa.array(_bucket_names(), pa.string()).take(pa.array(np.repeat(bucket, count))),
    }
    return pa.table(columns, schema=truth_schema(bundle, labels))


def _bucket_names() -> list[str]:
    ends = [*(str(upper - 1) for upper in HISTORY_BUCKETS[1:]), ""]
    return [
        str(low) if str(low) == high else f"{low}-{high}" if high else f"{low}+"
        for low, high in zip(HISTORY_BUCKETS, ends, strict=True)
    ]
