"""Small tables with a known answer, shared by the evaluation tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Ranking = Mapping[Any, Sequence[Any]]
Gains = Mapping[Any, Mapping[Any, float]]


def run_table(lists: Ranking, **extra: Any) -> pa.Table:
    """``{request: [video, …]}`` best first → a run table; score falls with rank."""
    requests = [request for request, videos in lists.items() for _ in videos]
    videos = [video for found in lists.values() for video in found]
    ranks = [rank for found in lists.values() for rank in range(1, len(found) + 1)]
    table = {
        "request_id": pa.array(requests, pa.string()),
        "video_id": ids(videos),
        "rank": pa.array(ranks, pa.int32()),
        "score": pa.array([1.0 / rank for rank in ranks], pa.float64()),
    }
    return pa.table({**table, **extra})


def truth_table(gains: Gains, users: Mapping[Any, Any] | None = None, **extra: Any) -> pa.Table:
    """``{request: {video: gain}}`` → a truth table; the user of a request is itself unless given."""
    requests = [request for request, right in gains.items() for _ in right]
    table = {
        "request_id": pa.array(requests, pa.string()),
        "user_id": pa.array([str((users or {}).get(request, request)) for request in requests], pa.string()),
        "video_id": ids([video for right in gains.values() for video in right]),
        "gain": pa.array([gain for right in gains.values() for gain in right.values()], pa.float64()),
    }
    return pa.table({**table, **extra})


def ids(values: Sequence[Any]) -> pa.Array:
    """int64 where all are integers, else strings."""
    if all(isinstance(value, int) for value in values):
        return pa.array(values, pa.int64())
    return pa.array([str(value) for value in values], pa.string())


def write(table: pa.Table, path: Path) -> str:
    """Write a Parquet file and return its path as the command takes it."""
    pq.write_table(table, path)
    return str(path)
