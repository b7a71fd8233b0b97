"""The truth table in memory: who asked, which videos were right, and how much each was worth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.errors import ContractError
from evaluation.arrays import Floats, Ints
from evaluation.tables import TRUTH, open_table, plain_ids, refuse_nulls


@dataclass(frozen=True, slots=True)
class Truth:
    """Requests ``R``, users ``U``, right videos ``T``; rows sorted by request in order of appearance.

    ``request_ids`` [R] and ``user_ids`` [U] are the ids behind the rows; ``user_R`` the user row of a
    request; ``request_T``, ``video_T`` and ``gain_T`` one entry per right video. ``rows`` is the whole
    table in that order (slice columns, labels).
    """

    path: str
    request_ids: pa.Array
    user_ids: pa.Array
    user_R: Ints
    request_T: Ints
    video_T: pa.Array
    gain_T: Floats
    rows: pa.Table

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.request_ids)

    @property
    def users(self) -> int:
        """Number of distinct users."""
        return len(self.user_ids)


def read_truth(path: str | Path) -> Truth:
    """Read and check a truth table (CONTRACTS section 4).

    Refused: missing or mistyped column, null, an empty table, a gain that is not a positive finite
    number, a video twice in one request, a request of two users.
    """
    table = open_table("truth", path, TRUTH)
    rows = table.to_table()
    refuse_nulls("truth", table, rows, list(TRUTH))
    if rows.num_rows == 0:
        raise ContractError(f"truth={path}: no rows; nothing can be measured")
    where = f"truth={path}"
    requests = plain_ids(rows["request_id"]).dictionary_encode()
    request_T = _indices(requests)
    order = np.argsort(request_T, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        rows, request_T = rows.take(pa.array(order)), request_T[order]
    users = plain_ids(rows["user_id"]).dictionary_encode()
    user_T = _indices(users)
    starts = np.flatnonzero(np.r_[True, request_T[1:] != request_T[:-1]])
    user_R = user_T[starts]
    _first(
        where,
        "request_id",
        requests.dictionary,
        request_T[user_T != user_R[request_T]],
        "has two users; split it",
    )
    gain_T = rows["gain"].cast(pa.float64(), safe=False).to_numpy()
    bad = ~(np.isfinite(gain_T) & (gain_T > 0))
    _first(
        where,
        "request_id",
        requests.dictionary,
        request_T[bad],
        "has a gain that is not above 0; drop the row",
    )
    video_T = plain_ids(rows["video_id"])
    codes = _indices(video_T.dictionary_encode())
    pairs = np.lexsort((codes, request_T))
    same = (np.diff(request_T[pairs]) == 0) & (np.diff(codes[pairs]) == 0)
    _first(
        where,
        "request_id",
        requests.dictionary,
        request_T[pairs][1:][same],
        "names a video twice; keep one row",
    )
    return Truth(
        path=str(path), request_ids=requests.dictionary, user_ids=users.dictionary, user_R=user_R,
        request_T=request_T, video_T=video_T, gain_T=gain_T, rows=rows,
    )  # fmt: skip


def _indices(encoded: pa.DictionaryArray) -> Ints:
    codes: Ints = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _first(where: str, column: str, ids: pa.Array, rows: Ints, what: str) -> None:
    if len(rows):
        raise ContractError(f"{where}: {column} {ids[int(rows[0])].as_py()!r} {what}")
