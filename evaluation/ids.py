"""Ids as 64-bit words, so that joins and groupings of 100 M rows run on integers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.arrays import Ints, Words
from evaluation.tables import plain_ids

_LETTER = np.random.default_rng(0x5EED).integers(0, 2**64, 256, np.uint64)
_BASE = np.uint64(0xD6E8FEB86659FD93)


def id_words(column: pa.Array | pa.ChunkedArray) -> Words:
    """One word per id: an int64 is its own word, a string its 64-bit hash.

    Two strings of a million collide with a chance of 3e-8. No nulls.
    ``id_words([1, 2**53 + 1])`` → ``[1, 9007199254740993]``.
    """
    if isinstance(column, pa.Array) and pa.types.is_dictionary(column.type):
        index: Ints = column.indices.to_numpy(zero_copy_only=False)
        return id_words(column.dictionary)[index]
    ids = plain_ids(column)
    if pa.types.is_int64(ids.type):
        number: Words = ids.to_numpy(zero_copy_only=False).view(np.uint64)
        return number
    return _hash(ids)


class Directory:
    """Rows of a table by id: an id is not a row, and an unknown one has row −1."""

    def __init__(self, ids: pa.ChunkedArray | pa.Array) -> None:
        word_V = id_words(ids)
        self._order = np.argsort(word_V)
        self._sorted = word_V[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def rows(self, words: Words) -> Ints:
        """The row of each word, −1 where there is none."""
        if not len(self._order):
            return np.full(len(words), -1, np.int64)
        place = np.minimum(np.searchsorted(self._sorted, words), len(self._sorted) - 1)
        return np.where(self._sorted[place] == words, self._order[place], -1)


def is_text(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether the ids are strings; int64 and string ids never match each other."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return not pa.types.is_int64(kind)


def mix(word_N: Words, row_N: Ints | Words | None = None) -> Words:
    """Scatter words over all 64 bits (the finalizer of splitmix64), with a second key folded in."""
    word = word_N.copy() if row_N is None else word_N + row_N.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return word


def segments(column: pa.Array) -> tuple[Ints, pa.Array]:
    """Start of every run of equal ids and the id of each run. ``[a, a, b]`` → ``[0, 2]``, ``[a, b]``."""
    if pa.types.is_dictionary(column.type):
        code = column.indices.to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])
        return starts, column.dictionary.take(pa.array(code[starts])).cast(pa.large_string())
    ids = plain_ids(column)
    if pa.types.is_int64(ids.type):
        value = ids.to_numpy()
        starts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])
        return starts, pa.array(value[starts])
    encoded = pc.run_end_encode(ids)
    ends = encoded.run_ends.to_numpy()
    return np.r_[0, ends[:-1]].astype(np.int64), encoded.values


def _hash(texts: pa.Array) -> Words:
    """Σ letter[byte] · base^place modulo 2^64, scattered; vectorised over all bytes of the array."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts):
        return np.zeros(0, np.uint64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[first:last]
    length = np.diff(offsets)
    place = np.arange(last - first) - np.repeat(offsets[:-1] - first, length)
    power = np.cumprod(np.r_[np.uint64(1), np.full(int(length.max()), _BASE)])
    total = np.r_[np.uint64(0), np.cumsum(_LETTER[data] * power[place])]
    return mix(total[offsets[1:] - first] - total[offsets[:-1] - first] + length.astype(np.uint64))
