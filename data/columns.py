"""Arrow columns as numpy arrays, whatever list, string or number type they come in."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def column(table: pa.Table, name: str) -> pa.Array:
    """The column in one piece, dictionaries decoded; all null where ``table`` lacks it."""
    if name not in table.column_names:
        return pa.nulls(table.num_rows)
    chunked = table[name]
    array = (
        chunked.chunk(0) if chunked.num_chunks == 1 else pa.concat_arrays(chunked.chunks or [_none(chunked)])
    )
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def is_list(kind: pa.DataType) -> bool:
    """Whether values of ``kind`` are lists of any length, or of a fixed one."""
    types = pa.types
    variable = types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind)
    return bool(variable or types.is_large_list_view(kind) or types.is_fixed_size_list(kind))


def is_category(kind: pa.DataType) -> bool:
    """Whether values of ``kind`` name something: text, whole numbers, booleans."""
    if pa.types.is_dictionary(kind):
        return is_category(kind.value_type)
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or types.is_integer(kind) or types.is_boolean(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether values of ``kind`` are read as amounts: fractions, moments and days."""
    types = pa.types
    return bool(
        types.is_floating(kind) or types.is_decimal(kind) or types.is_timestamp(kind) or types.is_date(kind)
    )


def is_vector(kind: pa.DataType) -> bool:
    """Whether values of ``kind`` are embeddings: fixed-size lists of floating point numbers."""
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def flatten(array: pa.Array) -> tuple[pa.Array, I64]:
    """Elements of a list array and offsets int64[n + 1]; a null list is empty."""
    if pa.types.is_null(array.type):
        return pa.nulls(0), np.zeros(len(array) + 1, dtype=np.int64)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return pc.list_flatten(array), offsets_of(lengths.astype(np.int64))


def categories(array: pa.Array) -> pa.Array:
    """Names as int64 or string, so that they can have a vocabulary."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_null(array.type) or pa.types.is_boolean(array.type) or pa.types.is_integer(array.type):
        return array.cast(pa.int64(), safe=False)
    return array.cast(pa.string())


def numbers(array: pa.Array) -> F64:
    """Amounts as float64, NaN for null; moments in seconds since 1970."""
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("s", array.type.tz), safe=False).cast(pa.int64())
    values = array.cast(pa.float64(), safe=False)
    return np.asarray(pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False), dtype=np.float64)


def offsets_of(lengths: npt.NDArray[np.integer]) -> I64:
    """Offsets int64[n + 1] of n lists with these lengths."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(start: I64, end: I64) -> I64:
    """Concatenated ``arange(start[i], end[i])``: ``[2, 7], [4, 9] → [2, 3, 7, 8]``."""
    lengths = end - start
    position = np.arange(int(lengths.sum()), dtype=np.int64)
    return position + np.repeat(start - offsets_of(lengths)[:-1], lengths)


def align(table: pa.Table, key: str, rows: Vocabulary) -> pa.Table:
    """``table`` with one row per id of ``rows``, in their order; null where it has no such id."""
    place = np.zeros(len(rows), np.int64)
    place[rows.rows(column(table, key))] = np.arange(1, table.num_rows + 1)
    index = pa.array(place[1:] - 1, mask=place[1:] == 0)
    taken = table.take(index)
    return taken.set_column(taken.column_names.index(key), key, rows.known)


def _none(chunked: pa.ChunkedArray) -> pa.Array:
    return pa.array([], chunked.type)
