"""Blocks of records → sequence shards: one row per user, long users cut into chunks with context."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data.columns import ranges
from data.prepared import SEQUENCES
from data.records import Block

I64 = npt.NDArray[np.int64]
#: New steps per row at most, and how many earlier ones come before them as context.
NEW_STEPS = 1024
CONTEXT_STEPS = 256


def sequence_rows(
    block: Block, *, new_steps: int = NEW_STEPS, context_steps: int = CONTEXT_STEPS
) -> pa.Table:
    """The rows of schema ``SEQUENCES`` for a block, users and steps in the block's order."""
    begin = block.user_bounds()
    chunks = -(-np.diff(begin) // new_steps)
    owner = np.repeat(np.arange(len(chunks)), chunks)
    number = ranges(np.zeros(len(chunks), np.int64), chunks)
    new_start = begin[owner] + number * new_steps
    new_end = np.minimum(new_start + new_steps, begin[owner + 1])
    start = np.maximum(new_start - context_steps, begin[owner])
    steps = ranges(start, new_end)
    step_offsets = np.concatenate([[0], np.cumsum(new_end - start)])

    examples = np.flatnonzero(~block.is_action)
    example_offsets = np.searchsorted(examples, np.append(new_start, len(block)))
    own_start = np.repeat(start, np.diff(example_offsets))
    history_end = np.maximum(block.tie_groups()[examples] - own_start, 0)
    columns = {
        "user_row": block.user[new_start],
        "step_video": block.video[steps],
        "step_time_ms": block.time_ms[steps],
        "step_actions": block.own_true[steps],
        "step_known": block.own_known[steps],
        "step_watch_ms": block.watch_ms[steps],
        "step_surface": block.surface[steps],
        "example_video": block.video[examples],
        "example_time_ms": block.time_ms[examples],
        "example_history_end": history_end.astype(np.int32),
        "example_true": block.true[examples],
        "example_known": block.known[examples],
        "example_watch_ms": block.watch_ms[examples],
        "example_order_value_minor": block.order_value_minor[examples],
        "example_split": block.rank[examples],
        "example_surface": block.surface[examples],
        "example_market": block.market[examples],
        "example_position": block.position[examples],
    }
    offsets = {"step": step_offsets, "example": example_offsets}
    return pa.table(
        [_column(field, columns[field.name], offsets) for field in SEQUENCES],
        schema=SEQUENCES,
    )


def _column(field: pa.Field, values: npt.NDArray[np.generic], offsets: dict[str, I64]) -> pa.Array:
    if not pa.types.is_list(field.type):
        return pa.array(values, field.type)
    place = pa.array(offsets[field.name.split("_")[0]].astype(np.int32))
    return pa.ListArray.from_arrays(place, pa.array(values, field.type.value_type), type=field.type)


class ShardWriter:
    """Writes blocks into ``directory`` as ``part-00000.parquet`` …; a context manager.

    A part is closed with the block that brings it to ``shard_steps``. ``parts`` lists file, rows, steps and
    examples of each, for the manifest.
    """

    def __init__(self, directory: Path, *, shard_steps: int) -> None:
        self._directory = directory
        self._shard_steps = shard_steps
        self._writer: pq.ParquetWriter | None = None
        self.parts: list[dict[str, Any]] = []
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, block: Block) -> None:
        """Append one block, which holds whole users."""
        rows = sequence_rows(block)
        if self._writer is None:
            name = f"part-{len(self.parts):05d}.parquet"
            self._writer = pq.ParquetWriter(
                self._directory / name,
                SEQUENCES,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,
            )
            self.parts.append({"file": name, "rows": 0, "steps": 0, "examples": 0})
        self._writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
        part = self.parts[-1]
        part["rows"] += rows.num_rows
        part["steps"] += len(rows["step_video"].combine_chunks().values)
        part["examples"] += int((~block.is_action).sum())
        if part["steps"] >= self._shard_steps:
            self._close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
