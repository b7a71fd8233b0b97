"""Hashes are part of what a model was trained on: equal everywhere, for ever."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data.hashing import hash_ids, hash_spans, hashed_rows, mix, salt_of, text_bytes

MASK = 2**64 - 1


def reference_mix(x: int, salt: int = 0) -> int:
    x = (x + salt * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def test_mix_is_splitmix64():
    # first three outputs of the reference splitmix64 seeded with 0, of which each step adds the increment
    step = 0x9E3779B97F4A7C15
    seeds = np.array([0, step, 2 * step & MASK], np.uint64)
    assert [hex(value) for value in mix(seeds).tolist()] == [
        "0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f",
    ]  # fmt: skip


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(0, MASK))
def test_mix_follows_its_definition(values, salt):
    got = mix(np.array(values, np.int64), salt).tolist()
    assert got == [reference_mix(value & MASK, salt) for value in values]


@given(st.lists(st.text(max_size=12), min_size=1), st.integers(0, MASK))
def test_a_span_hashes_by_its_bytes_and_not_by_its_place(words, salt):
    words = [word.encode("utf-8", "replace").decode() for word in words]
    alone = [int(hash_ids(pa.array([word]), salt)[0]) for word in words]
    together = hash_ids(pa.array(words), salt).tolist()
    assert together == alone
    text, offsets = text_bytes(pa.array(["§", *words, "§§"]))
    assert hash_spans(text, offsets[1:-2], offsets[2:-1], salt).tolist() == alone
    assert len(set(alone)) == len(set(words))


def test_overlapping_spans_and_slices():
    text = np.frombuffer(b"abcab", np.uint8)
    hashes = hash_spans(text, np.array([0, 3, 0, 1]), np.array([2, 5, 3, 1]))
    assert hashes[0] == hashes[1] != hashes[2]
    assert hash_ids(pa.array(["x", "ab", "y"]).slice(1, 1))[0] == hash_ids(pa.array(["ab"]))[0]
    assert hash_spans(np.array([0, 0], np.uint8), np.array([0]), np.array([1])) != hash_spans(
        np.array([0, 0], np.uint8), np.array([0]), np.array([2])
    )


def test_rows_leave_0_free_and_fill_the_table_evenly():
    rows = hashed_rows(hash_ids(pa.array(np.arange(100_000)), salt_of("test")), 101)
    counts = np.bincount(rows, minlength=101)
    assert counts[0] == 0
    assert counts[1:].min() > 850
    assert counts[1:].max() < 1150


def test_salts_are_independent_and_stable():
    ids = pa.array(np.arange(10_000))
    same = hashed_rows(hash_ids(ids, salt_of("a")), 101) == hashed_rows(hash_ids(ids, salt_of("b")), 101)
    assert 0.005 < same.mean() < 0.02
    assert salt_of("feature", "video_id") == 574000648267603940
