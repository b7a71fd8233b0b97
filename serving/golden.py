"""Golden requests: a few real requests kept in the bundle with the answers they got when it was published.

Whoever loads a bundle plays them first. Another library version, processor or bug that changes an answer
is found before a user sees it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.errors import ContractError
from data.history import UserHistory, UserRequest
from models.bundle import read_arrow
from serving.pipeline import Pipeline, RankRequest

GOLDEN_FILE = "golden.arrow"
#: Absolute difference that a score may show on another machine.
TOLERANCE = 1e-4

_STEPS = {
    "video_row": pa.int64(), "time_ms": pa.int64(), "actions": pa.int32(), "known": pa.int32(),
    "watch_ms": pa.int32(), "surface_row": pa.int32(),
}  # fmt: skip
SCHEMA = pa.schema(
    [
        ("user_row", pa.int64()), ("time_ms", pa.int64()), ("surface_row", pa.int64()),
        *((f"step_{name}", pa.list_(kind)) for name, kind in _STEPS.items()),
        ("exclude_row", pa.list_(pa.int64())),
        ("expected_row", pa.list_(pa.int64())), ("expected_score", pa.list_(pa.float32())),
    ]
)  # fmt: skip


def record_golden(pipeline: Pipeline, requests: Sequence[RankRequest]) -> pa.Table:
    """The requests, which must be without rules and given candidates, and what the pipeline answers now."""
    rows = []
    for request, answer in zip(requests, pipeline.rank(requests), strict=True):
        user = request.user
        if answer.degraded:
            raise ContractError(
                f"golden requests: degraded by {', '.join(answer.degraded)}; see the log above"
            )
        rows.append(
            {
                "user_row": user.user_row, "time_ms": user.time_ms, "surface_row": user.surface_row,
                **{f"step_{name}": getattr(user.history, name) for name in _STEPS},
                "exclude_row": request.exclude_rows,
                "expected_row": answer.video_row, "expected_score": answer.score,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def check_golden(pipeline: Pipeline) -> int:
    """Play the bundle's golden requests and return their number.

    Raises :class:`ContractError` where an answer is degraded, a score differs by more than
    ``TOLERANCE``, be it of the video that stood at a rank or of the one that stands there now: only
    videos that close to one another may change places.
    """
    path = pipeline.bundle.path / GOLDEN_FILE
    table = read_arrow(path)
    if table.schema != SCHEMA:
        raise ContractError(f"{path}: not a table of golden requests; publish again")
    rows = table.to_pylist()
    requests = [_request(row) for row in rows]
    for number, (row, request, answer) in enumerate(
        zip(rows, requests, pipeline.rank(requests), strict=True)
    ):
        expected, score = np.array(row["expected_row"], np.int64), np.array(row["expected_score"], np.float32)
        if answer.degraded or len(answer.score) != len(score):
            why = (
                f"degraded by {', '.join(answer.degraded)}" if answer.degraded else "another number of videos"
            )
            raise ContractError(f"{path}: request {number} is answered differently ({why}); {_MEND}")
        now = np.stack([answer.score, pipeline.score(request.user, expected)])
        off = float(np.abs(now - score).max(initial=0.0))
        if not off <= TOLERANCE:
            raise ContractError(f"{path}: scores of request {number} are off by {off:.2g}; {_MEND}")
    return len(rows)


_MEND = (
    "this installation computes other numbers than the one that published: shopreel doctor, or publish here"
)


def _request(row: dict[str, Any]) -> RankRequest:
    steps = {name: np.array(row[f"step_{name}"], kind.to_pandas_dtype()) for name, kind in _STEPS.items()}
    user = UserRequest(row["user_row"], UserHistory(**steps), row["time_ms"], row["surface_row"])
    exclude = np.array(row["exclude_row"], np.int64)
    return RankRequest(user, k=len(row["expected_row"]), exclude_rows=exclude, rules=False)
