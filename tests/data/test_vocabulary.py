"""An id is not a row: one converter, unknown is explicit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ContractError
from data.vocabulary import Vocabulary

int64s = st.integers(-(2**63), 2**63 - 1)
ids = st.one_of(st.lists(int64s), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))


@given(ids, st.randoms(use_true_random=False))
def test_rows_are_the_order_of_ids_whatever_order_they_come_in(values, random):
    vocabulary = Vocabulary.build(values)
    known = sorted(set(values), key=lambda value: value.encode() if isinstance(value, str) else value)
    assert vocabulary.known.to_pylist() == known
    assert len(vocabulary) == len(known) + 1
    again = list(values)
    random.shuffle(again)
    assert Vocabulary.build(again) == vocabulary
    assert Vocabulary.build(again).hash == vocabulary.hash
    assert vocabulary.rows(values).tolist() == [known.index(value) + 1 for value in values]
    assert vocabulary.ids(vocabulary.rows(values)).to_pylist() == values


@given(st.sets(int64s, min_size=1), int64s)
def test_every_way_of_looking_up_agrees(values, stranger):
    vocabulary = Vocabulary.build(list(values))
    asked = [*values, stranger, None]
    expected = [vocabulary.known.to_pylist().index(value) + 1 if value in values else 0 for value in asked]
    assert vocabulary.rows(asked).tolist() == expected
    assert vocabulary.rows(pa.array(asked * 9)).tolist() == expected * 9
    assert vocabulary.rows(pa.chunked_array([asked, asked])).tolist() == expected * 2
    assert [int(vocabulary.rows([value])[0]) for value in asked] == expected
    words = Vocabulary.build([str(value) for value in values])
    order = {word: row for row, word in enumerate(words.known.to_pylist(), start=1)}
    assert [int(words.rows([str(value)])[0]) for value in values] == [order[str(value)] for value in values]


def test_null_and_unknown_are_row_0_and_row_0_is_null():
    vocabulary = Vocabulary.build([30, 10, None, 20, 10])
    assert vocabulary.rows([10, None, 99]).tolist() == [1, 0, 0]
    assert vocabulary.ids([0, 3]).to_pylist() == [None, 30]
    for row in (-1, 4):
        with pytest.raises(IndexError):
            vocabulary.ids([row])
    empty = Vocabulary.build([])
    assert len(empty) == 1
    assert empty.rows([1, "a"]).tolist() == [0, 0]


def test_ids_above_the_reach_of_floating_point_stay_apart():
    first = 2**53
    vocabulary = Vocabulary.build([first, first + 1])
    assert vocabulary.rows(np.array([first, first + 1])).tolist() == [1, 2]


def test_a_request_may_spell_an_id_as_text_but_only_in_one_way():
    vocabulary = Vocabulary.build([7, -3])
    spelled = ["7", "07", "7.0", " 7", "+7", "-3", "", "9" * 40, "\ud800", True, 7.0, [7], 2**80]
    assert vocabulary.rows(spelled).tolist() == [2, 0, 0, 0, 0, 1] + [0] * 7
    assert Vocabulary.build(["7"]).rows([7, 8, None]).tolist() == [1, 0, 0]
    assert Vocabulary.build(["?", "None"]).rows(["\ud800", None, 2**80]).tolist() == [0, 0, 0]


def test_rare_ids_are_left_out_by_their_counts():
    assert Vocabulary.build(["a", "b", "a"], min_count=2).known.to_pylist() == ["a"]
    assert Vocabulary.build(["a", "b"], counts=[1, 5], min_count=2).known.to_pylist() == ["b"]


@pytest.mark.parametrize("values", [[], [5, 1], ["b", "ä", "a"]])
def test_saved_and_loaded(tmp_path: Path, values):
    vocabulary = Vocabulary.build(values)
    vocabulary.save(tmp_path / "v.parquet")
    loaded = Vocabulary.load(tmp_path / "v.parquet")
    assert loaded == vocabulary
    assert loaded.hash == vocabulary.hash


def test_the_hash_tells_apart_what_differs():
    made = [[1, 2], [1, 3], ["1", "2"], ["12"], ["1", "2", ""], [], ["ab", "c"], ["a", "bc"]]
    assert len({Vocabulary.build(values).hash for values in made}) == len(made)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"id": [2, 1], "row": [1, 2]}),
        pa.table({"id": [1, 1], "row": [1, 2]}),
        pa.table({"id": [1, 2], "row": [1, 3]}),
        pa.table({"id": [1, None], "row": [1, 2]}),
        pa.table({"id": [1.0], "row": [1]}),
        pa.table({"name": ["a"], "row": [1]}),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, table: pa.Table):
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(ContractError, match=r"v\.parquet"):
        Vocabulary.load(tmp_path / "v.parquet")


def test_a_truncated_file_is_refused_by_name(tmp_path: Path):
    (tmp_path / "v.parquet").write_bytes(b"PAR1")
    with pytest.raises(ContractError, match=r"v\.parquet"):
        Vocabulary.load(tmp_path / "v.parquet")
