"""Encoded features: what a column becomes, that training and serving agree, and what is refused."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.encoding import bucket_rows, encode
from data.errors import ContractError
from data.feature_building import BuiltFeatures, FeatureSettings, build_spec
from data.features import DenseFeature, EncodedTable, Encoder, FeatureSpec, Side, concat, feature_name
from data.hashing import hash_ids
from data.ngrams import WORDS, ngram_hashes, normalise

SETTINGS = FeatureSettings(
    max_id_rows=1000,
    max_category_rows=1000,
    min_count=1,
    buckets=4,
    ngram_rows=4096,
    exclude=("videos.secret",),
)
VIDEOS = pa.table(
    {
        "video_id": [10, 20, 30, 40],
        "creator_id": ["ann", "bob", None, "zoe"],
        "duration_ms": pa.array([1000, 2000, 3000, None], pa.int64()),
        "publish_time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 4, pa.timestamp("us", "UTC")),
        "tags": [["red", "shoe"], [], ["shoe", "shoe", None], ["only cold"]],
        "title": ["Red shoe", "", None, "red SHOE!"],
        "product_ids": [["p1", "p2"], ["p2"], None, ["p9", "nowhere"]],
        "content_embedding": pa.array([[1, 2], [3, 4], None, [5, 6]], pa.list_(pa.float32(), 2)),
        "live": [True, False, True, None],
        "score": [0.1, 0.2, 0.3, float("nan")],
        "secret": ["a", "b", "c", "d"],
        "like": ["many", "few", "few", "none"],
        "constant": ["x", "x", "x", "y"],
        "nothing": pa.nulls(4),
        "odd/../name": ["k", "l", "k", "k"],
        "blob": pa.array([b"1", b"2", b"3", b"4"]),
    }
)
PRODUCTS = pa.table(
    {
        "product_id": ["p1", "p2", "p9"],
        "merchant_id": [7, 8, 9],
        "price_minor": pa.array([100, 900, 50], pa.int64()),
        "currency": ["usd", "usd", "jpy"],
        "in_stock": [True, False, True],
    }
)
USERS = pa.table({"user_id": [1, 2], "market": ["us", "de"], "age": pa.array([20, 60], pa.int64())})
TRAINED = np.array([True, True, True, False])


@pytest.fixture(scope="module")
def built() -> BuiltFeatures:
    return build_spec(
        VIDEOS, USERS, PRODUCTS, video_trained=TRAINED, user_trained=np.ones(2, bool), settings=SETTINGS
    )


@pytest.fixture(scope="module")
def encoded(built: BuiltFeatures) -> EncodedTable:
    return encode(built.spec, "video", VIDEOS, PRODUCTS, built.vocabularies)


def build_alone(videos: pa.Table, settings: FeatureSettings) -> BuiltFeatures:
    """The spec of videos without products, all of them trained."""
    trained = np.ones(videos.num_rows, bool)
    return build_spec(
        videos, USERS, None, video_trained=trained, user_trained=np.ones(2, bool), settings=settings
    )


def bags(table: EncodedTable, name: str) -> list[list[int]]:
    values, offsets = table.bags[name]
    return [values[begin:end].tolist() for begin, end in pairwise(offsets)]


def test_which_columns_become_features_and_which_do_not(built: BuiltFeatures):
    assert built.spec.names == [
        "video_id", "video_creator_id", "video_duration_ms", "video_tags", "video_title", "video_product_ids",
        "video_live", "video_score", "video_odd____name",
        "product_merchant_id", "product_price_minor",
        "user_market", "user_age", "video_content_embedding",
    ]  # fmt: skip
    reasons = " ".join(built.notes)
    for column in (
        "secret: excluded",
        "like: named like a label",
        "constant: one value",
        "nothing: no value",
    ):
        assert f"videos.{column}" in reasons
    assert "products.currency: one value" in reasons
    assert "videos.blob: columns of type binary" in reasons
    assert built.spec.side("user").names == ["user_market", "user_age"]
    assert isinstance(built.spec["video_content_embedding"], DenseFeature)


def test_row_0_is_the_unknown_video_with_nothing_in_it(built: BuiltFeatures, encoded: EncodedTable):
    assert encoded.num_rows == 5
    assert all(bags(encoded, bag.name)[0] == [] for bag in built.spec.side("video").bags)
    assert encoded.dense["video_content_embedding"][0].tolist() == [0, 0]


def test_single_values_have_exactly_one_row_and_0_means_unknown(encoded: EncodedTable):
    # video 40 has no event in training: its id, its creator and its tag are unknown, its price is not
    assert bags(encoded, "video_id")[1:] == [[1], [2], [3], [0]]
    assert bags(encoded, "video_creator_id")[1:] == [[1], [2], [0], [0]]
    assert bags(encoded, "video_live")[1:] == [[2], [1], [2], [0]]


def test_lists_drop_what_is_unknown(encoded: EncodedTable):
    assert bags(encoded, "video_tags")[1:] == [[1, 2], [], [2, 2], []]
    assert bags(encoded, "video_product_ids")[1:] == [[1, 2], [2], [], []]


def test_products_are_pooled_into_the_video(built: BuiltFeatures, encoded: EncodedTable):
    assert bags(encoded, "product_merchant_id")[1:] == [[1, 2], [2], [], []]
    # a currency that no trained product has gives no price
    assert built.spec["product_price_minor"].edges == {"usd": (900.0,)}
    assert bags(encoded, "product_price_minor")[1:] == [[1, 2], [2], [], []]


def test_vectors_of_products_are_averaged_over_those_that_have_one(built: BuiltFeatures):
    # the videos have a vector of the same name and another width
    images = pa.array([[1, 0, 3], [3, 4, 1], None], pa.list_(pa.float32(), 3))
    products = PRODUCTS.append_column("content_embedding", images)
    built = build_spec(
        VIDEOS, USERS, products, video_trained=TRAINED, user_trained=np.ones(2, bool), settings=SETTINGS
    )
    encoded = encode(built.spec, "video", VIDEOS, products, built.vocabularies)
    means = [[0, 0, 0], [2, 2, 2], [3, 4, 1], [0, 0, 0], [0, 0, 0]]
    assert encoded.dense["product_content_embedding"].tolist() == means
    assert encoded.dense["video_content_embedding"].shape == (5, 2)
    without = encode(built.spec, "video", VIDEOS, None, built.vocabularies)
    assert not without.dense["product_content_embedding"].any()


def test_numbers_fall_into_quantile_buckets_of_training_rows(built: BuiltFeatures, encoded: EncodedTable):
    assert built.spec["video_duration_ms"].encoder is Encoder.buckets
    assert built.spec["video_duration_ms"].edges == {"": (2000.0, 3000.0)}
    assert bags(encoded, "video_duration_ms")[1:] == [[1], [2], [3], [0]]
    assert bags(encoded, "video_score")[1:] == [[1], [2], [3], [0]]


def test_titles_are_bags_of_words_and_pairs(encoded: EncodedTable):
    title = bags(encoded, "video_title")
    assert title[2] == title[3] == []
    assert len(title[1]) == 3  # red, shoe, red shoe
    assert title[1] == title[4]  # case and punctuation do not matter


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
def test_bucket_rows_never_leave_the_table(values):
    table = pa.table({"video_id": list(range(len(values))), "n": values})
    made = build_alone(table, SETTINGS)
    if "video_n" in made.spec.names:
        bag = made.spec["video_n"]
        probe = pa.table({"n": [*values, float("inf"), float("-inf"), None]})
        rows = encode(FeatureSpec((bag,)), "video", probe, None, {}).bags["video_n"][0]
        assert rows.min() >= 0
        assert rows.max() < bag.rows <= SETTINGS.buckets + 1
        assert rows[:-1].min() >= 1
        assert rows[-1] == 0
    assert bucket_rows(np.array([np.nan, 1.0]), ()).tolist() == [0, 1]


def test_a_new_video_encodes_as_it_would_have_in_training(built: BuiltFeatures, encoded: EncodedTable):
    for row in range(4):
        alone = encode(built.spec, Side.video, VIDEOS.slice(row, 1), PRODUCTS, built.vocabularies)
        for name in encoded.bags:
            assert bags(alone, name)[1] == bags(encoded, name)[row + 1]
        for name, matrix in encoded.dense.items():
            assert (alone.dense[name][1] == matrix[row + 1]).all()


def test_other_arrow_types_of_the_same_values_encode_alike(built: BuiltFeatures, encoded: EncodedTable):
    other = VIDEOS
    for name, kind in {
        "creator_id": pa.dictionary(pa.int32(), pa.string()), "tags": pa.large_list(pa.large_string()),
        "title": pa.large_string(), "duration_ms": pa.int32(), "video_id": pa.string(),
        "content_embedding": pa.list_(pa.float64(), 2), "score": pa.float32(),
    }.items():  # fmt: skip
        place = other.column_names.index(name)
        column = other[name].combine_chunks()
        changed = column.dictionary_encode() if name == "creator_id" else column.cast(kind)
        other = other.set_column(place, name, changed)
    again = encode(built.spec, "video", other, PRODUCTS, built.vocabularies)
    for name in encoded.bags:
        assert bags(again, name) == bags(encoded, name), name
    assert (again.dense["video_content_embedding"] == encoded.dense["video_content_embedding"]).all()


def test_missing_columns_count_as_null_and_wrong_types_are_refused(built: BuiltFeatures):
    bare = encode(built.spec, "video", pa.table({"video_id": [10]}), None, built.vocabularies)
    assert bags(bare, "video_id") == [[], [1]]
    assert bags(bare, "video_creator_id") == [[], [0]]
    assert bags(bare, "product_merchant_id") == bags(bare, "video_tags") == [[], []]
    for column, values in {
        "tags": ["red"], "creator_id": [["ann"]], "content_embedding": [[1.0, 2.0]], "duration_ms": ["long"],
    }.items():  # fmt: skip
        with pytest.raises(ContractError, match=rf"videos\.{column}"):
            encode(built.spec, "video", pa.table({column: values}), None, built.vocabularies)
    broken = pa.table({"content_embedding": pa.array([[1, 2], [float("inf"), 0]], pa.list_(pa.float32(), 2))})
    with pytest.raises(ContractError, match="row 1: not a finite vector"):
        encode(built.spec, "video", broken, None, built.vocabularies)


def test_id_spaces_too_large_to_list_are_hashed():
    table = pa.table({"video_id": np.arange(50), "kind": [str(i) for i in range(50)]})
    small = FeatureSettings(max_id_rows=16, max_category_rows=16, min_count=1, buckets=4, ngram_rows=64)
    made = build_alone(table, small)
    for name in ("video_id", "video_kind"):
        assert made.spec[name].encoder is Encoder.hash
        assert made.spec[name].rows == 16
        rows = encode(made.spec, "video", table, None, {}).bags[name][0]
        assert set(rows) == set(range(1, 16))


def test_a_category_seen_too_rarely_is_unknown():
    table = pa.table({"video_id": [1, 2, 3], "kind": ["a", "a", "b"]})
    twice = FeatureSettings(max_id_rows=16, max_category_rows=16, min_count=2, buckets=4, ngram_rows=64)
    made = build_alone(table, twice)
    encoded = encode(made.spec, "video", table, None, made.vocabularies)
    assert encoded.bags["video_kind"][0].tolist() == [1, 1, 0]
    assert encoded.bags["video_id"][0].tolist() == [1, 2, 3]  # ids are not categories
    unique = build_alone(table.append_column("text", [["x", "y", "z"]]), twice)
    assert "video_text" not in unique.spec.names
    assert "videos.text: no value occurs 2 times among training rows" in unique.notes


def test_spec_survives_json_and_its_hash_tells_differences(built: BuiltFeatures):
    assert FeatureSpec.from_json(built.spec.to_json()) == built.spec
    assert FeatureSpec.from_json(built.spec.to_json()).hash == built.spec.hash
    assert FeatureSpec(built.spec.bags[1:], built.spec.dense).hash != built.spec.hash
    for broken in ({}, {"bags": [{}], "dense": []}, {"bags": [], "dense": [{"name": "x"}]}):
        with pytest.raises(ContractError, match="feature_spec"):
            FeatureSpec.from_json(broken)


def test_names_are_safe_as_files_and_parameters_and_never_twice():
    assert feature_name("videos", "../../etc/passwd") == "video_______etc_passwd"
    assert feature_name("videos", "video_type") == feature_name("videos", "type") == "video_type"
    assert feature_name("videos", "type", taken=["video_type"]) == "video_type_2"


@given(st.data())
def test_take_gathers_rows(data):
    lists = data.draw(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=8))
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=12))
    offsets = np.cumsum([0, *map(len, lists)])
    table = EncodedTable(
        len(lists),
        {"b": (np.array([v for values in lists for v in values], np.int64), offsets)},
        {"d": np.arange(len(lists), dtype=np.float32)[:, None]},
    )
    taken = table.take(rows)
    assert taken.num_rows == len(rows)
    assert bags(taken, "b") == [lists[row] for row in rows]
    assert taken.dense["d"][:, 0].tolist() == rows
    both = concat([table, taken])
    assert bags(both, "b") == lists + [lists[row] for row in rows]
    with pytest.raises(IndexError):
        table.take([len(lists)])


def test_saved_and_loaded(encoded: EncodedTable, tmp_path: Path):
    encoded.save(tmp_path / "t.safetensors")
    loaded = EncodedTable.load(tmp_path / "t.safetensors")
    assert {name: bags(loaded, name) for name in loaded.bags} == {
        name: bags(encoded, name) for name in encoded.bags
    }
    assert all((loaded.dense[name] == matrix).all() for name, matrix in encoded.dense.items())
    EncodedTable(7).save(tmp_path / "none.safetensors")
    assert EncodedTable.load(tmp_path / "none.safetensors").num_rows == 7


@pytest.mark.parametrize("damage", ["truncate", "offsets", "rows"])
def test_a_damaged_table_is_refused_by_name(encoded: EncodedTable, tmp_path: Path, damage: str):
    file = tmp_path / "t.safetensors"
    values, offsets = np.array([1, 2]), np.array([0, 3, 2]) if damage == "offsets" else np.array([0, 1, 2])
    EncodedTable(3 if damage == "rows" else 2, {"b": (values, offsets)}).save(file)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ContractError, match=r"t\.safetensors"):
        EncodedTable.load(file)


def test_of_a_long_text_the_first_words_are_read():
    texts = pa.array(["short one", "red " * WORDS + "never read", None, "blue"])
    hashes, offsets = ngram_hashes(texts, 5)
    assert np.diff(offsets).tolist() == [3, 2 * WORDS - 1, 0, 1]
    expected, _ = ngram_hashes(pa.array(["red red"]), 5)
    assert set(hashes[3:-1].tolist()) == set(expected.tolist())


def test_words_of_any_script():
    texts = pa.array(["  Café-DÉCO!! ", "手机壳 case", "ＦＵＬＬ width", None, "!!!", "👟"])
    assert normalise(texts).to_pylist() == ["café déco", "手 机 壳 case", "full width", "", "", ""]
    hashes, offsets = ngram_hashes(texts, 5)
    assert np.diff(offsets).tolist() == [3, 7, 3, 0, 0, 0]
    words = pa.array(["café", "déco", "café déco", "手", "机", "壳", "case", "手 机", "机 壳", "壳 case"])
    assert hashes[:10].tolist() == hash_ids(words, 5).tolist()
