"""Ids as words: equal ids have equal words, different ids different ones, in any Arrow encoding."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from evaluation.ids import Directory, id_words, mix, segments

TEXTS = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from(["", "a", "aa", "b", "ab", "ba", "\0", "é", "é"]))
)


@given(TEXTS)
def test_words_tell_texts_apart(texts: list[str]) -> None:
    words = id_words(pa.array(texts, pa.string()))
    assert len(set(words.tolist())) == len(set(texts))
    by_text: dict[str, int] = {}
    for text, word in zip(texts, words.tolist(), strict=True):
        assert by_text.setdefault(text, word) == word


@given(TEXTS, st.integers(0, 5))
def test_words_do_not_depend_on_the_encoding(texts: list[str], begin: int) -> None:
    plain = pa.array(texts, pa.string())
    expected = id_words(plain)[begin:].tolist()
    assert id_words(plain[begin:]).tolist() == expected
    assert id_words(plain.cast(pa.large_string())[begin:]).tolist() == expected
    assert id_words(plain.dictionary_encode()[begin:]).tolist() == expected
    assert id_words(pa.chunked_array([plain[begin:], plain[:0]])).tolist() == expected


def test_a_million_names_do_not_collide() -> None:
    names = pa.array(np.char.add("test:", np.arange(1_000_000).astype(str)))
    assert len(np.unique(id_words(names))) == 1_000_000


def test_int64_ids_are_their_own_words() -> None:
    ids = [0, -1, 2**53 + 1, 2**63 - 1, -(2**63)]
    assert id_words(pa.array(ids)).view(np.int64).tolist() == ids
    assert len(np.unique(mix(id_words(pa.array(ids))))) == 5


def test_directory_knows_what_it_does_not_know() -> None:
    directory = Directory(pa.array(["b", "a", "ü"]))
    assert directory.rows(id_words(pa.array(["ü", "x", "b"]))).tolist() == [2, -1, 0]
    assert Directory(pa.array([], pa.string())).rows(id_words(pa.array(["x"]))).tolist() == [-1]


@given(st.lists(st.sampled_from(["a", "b", "ü"]), min_size=1, max_size=20))
def test_segments_are_runs_of_equal_ids(texts: list[str]) -> None:
    for column in (
        pa.array(texts),
        pa.array(texts).dictionary_encode(),
        pa.array([ord(text) for text in texts]),
    ):
        starts, ids = segments(column)
        whole = np.repeat(np.array(ids.to_pylist()), np.diff(np.r_[starts, len(texts)])).tolist()
        assert whole == (texts if isinstance(whole[0], str) else [ord(text) for text in texts])
        assert all(
            first != second for first, second in zip(ids.to_pylist(), ids.to_pylist()[1:], strict=False)
        )
