"""Ids and rows are two types: a :class:`Vocabulary` is the only way from one to the other."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import ContractError
from data.schema import is_id

Ids: TypeAlias = pa.Array | pa.ChunkedArray | npt.NDArray[Any] | Sequence[Any]

#: Only these spellings of a number name an int64 id: "7" does, "07", "+7" and "7.0" do not.
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


class Vocabulary:
    """A fixed set of int64 or string ids, row 1 the smallest; row 0 is every unknown or null id.

    Rows follow the order of the ids (numbers by value, strings by their UTF-8 bytes), so that two
    engines, two machines and two runs always agree on them.
    """

    def __init__(self, ids: pa.Array) -> None:
        """``ids``: strictly ascending, without nulls. Use :meth:`build` for anything else."""
        if not is_id(ids.type):
            raise TypeError(f"ids are int64 or string, not {ids.type}")
        self._ids = ids if pa.types.is_int64(ids.type) else ids.cast(pa.string())
        self._sorted: npt.NDArray[np.int64] | None = None
        self._row_of: dict[str, int] | None = None
        if pa.types.is_int64(ids.type):
            self._sorted = ids.to_numpy(zero_copy_only=False)

    @classmethod
    def build(cls, ids: Ids, *, min_count: int = 1, counts: Ids | None = None) -> "Vocabulary":
        """Vocabulary of the distinct non-null ``ids`` that occur at least ``min_count`` times.

        ``counts``: how often each entry of ``ids`` stands for; one each where it is left out.
        """
        array = _to_arrow(ids)
        if pa.types.is_null(array.type):
            array = array.cast(pa.int64())
        table = pa.table(
            {"id": array, "count": pa.array(counts) if counts is not None else _ones(len(array))}
        )
        table = table.filter(pc.is_valid(table["id"])).group_by("id").aggregate([("count", "sum")])
        kept = table.filter(pc.greater_equal(table["count_sum"], min_count))["id"]
        return cls(_combine(kept.sort()))

    def __len__(self) -> int:
        """Number of rows, row 0 included."""
        return len(self._ids) + 1

    @property
    def type(self) -> pa.DataType:
        """``int64`` or ``string``."""
        return self._ids.type

    @property
    def known(self) -> pa.Array:
        """The ids of rows 1, 2, …, ascending."""
        return self._ids

    def rows(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Row of each id; 0 for a null, an unknown id, or one that cannot be of this type."""
        array = self._as_own_type(_to_arrow(ids))
        if self._sorted is None and len(array) * 8 < len(self._ids):
            return self._rows_by_dictionary(array)
        if self._sorted is not None and len(array) * 4 < len(self._ids):
            return self._rows_by_bisection(array)
        found = pc.index_in(array, value_set=self._ids, skip_nulls=True)
        rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        rows += 1
        return rows  # type: ignore[no-any-return]

    def ids(self, rows: npt.ArrayLike) -> pa.Array:
        """Id of each row; null for row 0. A row outside the vocabulary raises IndexError."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} … {wanted.max()} of a vocabulary with {len(self)} rows")
        index = pa.array(np.maximum(wanted - 1, 0), mask=wanted == 0)
        return self._ids.take(index)

    @property
    def hash(self) -> str:
        """SHA-256 over type and ids; equal exactly when both hold the same ids."""
        digest = hashlib.sha256(f"{self.type}:{len(self._ids)}:".encode())
        if self._sorted is not None:
            digest.update(self._sorted.tobytes())
            return digest.hexdigest()
        digest.update(pc.binary_length(self._ids).to_numpy(zero_copy_only=False).tobytes())
        for start in range(0, len(self._ids), 1 << 20):
            digest.update("".join(self._ids.slice(start, 1 << 20).to_pylist()).encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write Parquet columns ``id`` and ``row``."""
        rows = np.arange(1, len(self), dtype=np.int64)
        pq.write_table(pa.table({"id": self._ids, "row": rows}), path, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what :meth:`save` wrote; a damaged file raises :class:`ContractError`."""
        try:
            table = pq.read_table(path)
            ids, rows = _combine(table["id"]), table["row"].to_numpy()
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise ContractError(
                f"{path}: not a vocabulary ({str(error).splitlines()[0]}); prepare again"
            ) from None
        ascending = len(ids) < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py()
        if (
            not is_id(ids.type)
            or ids.null_count
            or not ascending
            or (rows != np.arange(1, len(ids) + 1)).any()
        ):
            raise ContractError(f"{path}: ids are not distinct and in order; prepare again")
        return cls(ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._ids.equals(other._ids)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} rows of {self.type})"

    def _as_own_type(self, array: pa.Array) -> pa.Array:
        own, kind = self._ids.type, array.type
        if kind == own or pa.types.is_null(kind):
            return array.cast(own)
        if pa.types.is_dictionary(kind):
            return self._as_own_type(array.cast(kind.value_type))
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return self._as_own_type(array.cast(pa.string()))
        if pa.types.is_uint64(kind):
            fits = pc.less_equal(array, pa.scalar(2**63 - 1, pa.uint64()))
            return self._as_own_type(pc.if_else(fits, array, None).cast(pa.int64()))
        if pa.types.is_integer(kind):
            return array.cast(pa.int64()).cast(own)
        if pa.types.is_string(kind):
            canonical = pc.match_substring_regex(array, _CANONICAL_INTEGER)
            return pc.if_else(canonical, array, None).cast(own)
        raise TypeError(f"ids are int64 or string, not {kind}")

    def _rows_by_bisection(self, array: pa.Array) -> npt.NDArray[np.int64]:
        assert self._sorted is not None
        wanted = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        place = np.searchsorted(self._sorted, wanted)
        found = self._sorted[np.minimum(place, len(self._sorted) - 1)] == wanted
        if array.null_count:
            found &= pc.is_valid(array).to_numpy(zero_copy_only=False)
        return np.where(found, place + 1, 0).astype(np.int64)

    def _rows_by_dictionary(self, array: pa.Array) -> npt.NDArray[np.int64]:
        if self._row_of is None:
            self._row_of = {text: row for row, text in enumerate(self._ids.to_pylist(), start=1)}
        get = self._row_of.get
        return np.fromiter((get(text, 0) for text in array.to_pylist()), np.int64, len(array))


def _to_arrow(ids: Ids) -> pa.Array:
    if isinstance(ids, pa.ChunkedArray):
        return _combine(ids)
    if isinstance(ids, pa.Array):
        return ids
    if isinstance(ids, np.ndarray) and ids.dtype != object:
        return pa.array(ids)
    values = [
        value if isinstance(value, int | str) and not isinstance(value, bool) else None for value in ids
    ]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: int | str | None) -> str | None:
    text = str(value)
    lone_surrogate = any("\ud800" <= letter <= "\udfff" for letter in text)
    return None if value is None or lone_surrogate else text


def _combine(array: pa.ChunkedArray) -> pa.Array:
    combined = array.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # nothing but empty chunks
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], array.type)
    return combined


def _ones(length: int) -> pa.Array:
    return pa.array(np.ones(length, dtype=np.int64))
