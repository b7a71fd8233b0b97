"""Salted 64-bit hashes of ids and of pieces of text: equal on every machine, engine and Python."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# An odd multiplier has an inverse modulo 2**64, which lets one prefix sum serve every substring.
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_MASK = (1 << 64) - 1


def mix(values: npt.NDArray[np.int64] | U64, salt: int = 0) -> U64:
    """Scatter 64-bit integers (the finaliser of splitmix64): a bijection for every ``salt``."""
    x = values.astype(np.uint64, copy=True)
    with np.errstate(over="ignore"):
        x += np.uint64((salt * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def salt_of(*words: object) -> int:
    """A 64-bit salt from words such as a feature's name and a seed."""
    digest = hashlib.blake2b("\x1f".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_spans(text: npt.NDArray[np.uint8], start: I64, end: I64, salt: int = 0) -> U64:
    """Hash of the bytes ``text[start[i]:end[i]]`` for every i; spans may overlap.

    A polynomial hash modulo 2**64, read off one prefix sum over ``text``, then :func:`mix`: the
    value depends on the bytes of the span alone, never on where it stands.
    """
    with np.errstate(over="ignore"):
        power = _powers(_BASE, len(text))
        prefix = np.zeros(len(text) + 1, dtype=np.uint64)
        np.cumsum((text.astype(np.uint64) + np.uint64(1)) * power, out=prefix[1:])
        value = (prefix[end] - prefix[start]) * _powers(_BASE_INVERSE, len(text) + 1)[start]
        value ^= mix((end - start).astype(np.uint64), salt)
    return mix(value, salt)


def hash_ids(ids: pa.Array, salt: int = 0) -> U64:
    """Hash of every int64 or string id; a null hashes as the empty string or as 0."""
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        text, offsets = text_bytes(ids)
        return hash_spans(text, offsets[:-1], offsets[1:], salt)
    return mix(ids.fill_null(0).to_numpy(zero_copy_only=False), salt)


def hashed_rows(hashes: U64, rows: int) -> I64:
    """Embedding-table row in 1 … ``rows`` − 1 of each hash; row 0 stays free for "unknown"."""
    return (hashes % np.uint64(rows - 1)).astype(np.int64) + 1


def text_bytes(array: pa.Array) -> tuple[npt.NDArray[np.uint8], I64]:
    """UTF-8 bytes of a string array and its offsets int64[n + 1]; a null is empty."""
    whole = array.fill_null("").cast(pa.large_string())
    _, offset_buffer, data = whole.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[whole.offset : whole.offset + len(whole) + 1]
    if data is None or not len(whole):
        return np.zeros(0, dtype=np.uint8), np.zeros(len(whole) + 1, dtype=np.int64)
    return np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def _powers(base: int, count: int) -> U64:
    power = np.full(max(count, 1), base, dtype=np.uint64)
    power[0] = 1
    return np.cumprod(power, dtype=np.uint64)[:count]
