"""Prepared sequence shards as flat arrays, cut into training windows.

A *window* is a stretch of one user's steps that fits the model; each training example belongs to
exactly one window, at the position that knows what was known at its moment and nothing more.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.storage import File, read_parquet

STEP_COLUMNS = ("step_video", "step_time_ms", "step_actions", "step_known", "step_watch_ms", "step_surface")
EXAMPLE_COLUMNS = (
    "example_video", "example_time_ms", "example_history_end", "example_true", "example_known",
    "example_watch_ms", "example_order_value_minor", "example_split", "example_surface", "example_market",
    "example_position",
)  # fmt: skip


@dataclass(slots=True)
class Sequences:
    """R user rows: flat step and example arrays with CSR offsets ``[R + 1]``; see ``data.prepared``."""

    user_row: np.ndarray
    step_offsets: np.ndarray
    steps: dict[str, np.ndarray]
    example_offsets: np.ndarray
    examples: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table) -> "Sequences":
        """Flatten a table of the sequence schema."""
        if table.num_rows == 0:
            raise ValueError("a sequence shard without rows")
        steps, step_offsets = _flatten(table, STEP_COLUMNS)
        examples, example_offsets = _flatten(table, EXAMPLE_COLUMNS)
        users = table["user_row"].to_numpy().astype(np.int64)
        return cls(users, step_offsets, steps, example_offsets, examples)

    @classmethod
    def read(cls, shard: File) -> "Sequences":
        """Read one Parquet shard."""
        return cls.of(read_parquet(shard))

    @property
    def num_rows(self) -> int:
        """Number of user rows."""
        return len(self.user_row)

    def example_rows(self) -> np.ndarray:
        """User-row index of every example, int64 ``[E]``."""
        return np.repeat(np.arange(self.num_rows), np.diff(self.example_offsets))


def _flatten(table: pa.Table, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    columns = {}
    offsets = np.zeros(table.num_rows + 1, np.int64)
    for name in names:
        lists = table[name].combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.chunk(0)
        offsets = np.asarray(lists.offsets, np.int64)
        columns[name] = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
        offsets = offsets - offsets[0]
    return columns, offsets


@dataclass(slots=True)
class Windows:
    """W windows over the steps of a shard, and the M training targets in them, grouped by window.

    ``start``/``end`` are positions in the flat step arrays; window w owns targets
    ``target_offsets[w]:target_offsets[w + 1]``, each with a ``position`` (steps of the window known
    before it: 0 = none), a catalogue row, a weight, the time at which it was shown, a contrast and what came
    of it.
    """

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    target_offsets: np.ndarray
    position: np.ndarray
    video: np.ndarray
    weight: np.ndarray
    time_ms: np.ndarray
    contrast: np.ndarray
    outcome: np.ndarray

    @property
    def length(self) -> np.ndarray:
        """Steps per window."""
        length: np.ndarray = self.end - self.start
        return length


def cut_windows(
    sequences: Sequences,
    row: np.ndarray,
    known: np.ndarray,
    video: np.ndarray,
    weight: np.ndarray,
    time_ms: np.ndarray,
    contrast: np.ndarray,
    outcome: np.ndarray,
    max_steps: int,
) -> Windows:
    """Cut windows for M targets, each given by its user row and the number of steps known before it.

    A history up to ``max_steps`` is one window. A longer one is cut into windows that overlap by half,
    so that every target but those at the very beginning sees at least ``max_steps // 2`` steps.
    """
    stride = max(max_steps // 2, 1)
    piece = np.maximum(-(-(known - max_steps) // stride), 0)
    order = np.lexsort((known, piece, row))
    row, known, video, weight, piece = row[order], known[order], video[order], weight[order], piece[order]
    time_ms, contrast, outcome = time_ms[order], contrast[order], outcome[order]
    fresh = np.ones(len(row), bool)
    fresh[1:] = (row[1:] != row[:-1]) | (piece[1:] != piece[:-1])
    first = np.flatnonzero(fresh)
    offsets = np.append(first, len(row))
    last_known = known[offsets[1:] - 1] if len(first) else known[:0]
    base = sequences.step_offsets[row[first]]
    begin = piece[first] * stride
    position = known - np.repeat(begin, np.diff(offsets))
    return Windows(
        row[first], base + begin, base + last_known, offsets, position, video, weight, time_ms, contrast,
        outcome,
    )  # fmt: skip
