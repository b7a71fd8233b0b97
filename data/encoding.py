"""Rows of the videos and users tables as arrays that a model can gather: :func:`encode`.

The same pure function runs when data are prepared and when a new video is added to a served
bundle, so that a feature cannot mean two things.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.columns import categories, column, flatten, is_list, is_vector, numbers
from data.errors import ContractError
from data.features import (
    Bag,
    BagFeature,
    DenseFeature,
    EncodedTable,
    Encoder,
    FeatureSpec,
    Side,
    key_name,
    take_bags,
)  # fmt: skip
from data.hashing import hash_ids, hashed_rows, salt_of
from data.ngrams import ngram_hashes
from data.vocabulary import Vocabulary

#: How many keys there are, 0 included.
KEYS = 2**63 - 1
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def encode(
    spec: FeatureSpec,
    side: Side | str,
    table: pa.Table,
    products: pa.Table | None,
    vocabularies: Mapping[str, Vocabulary],
) -> EncodedTable:
    """Encode ``table`` (videos or users, M rows) as M + 1 rows; row 0 is the unknown one, all empty.

    A column of the spec that ``table`` lacks counts as null throughout. ``products`` are looked up
    for features pooled over ``product_ids`` (of vectors the mean); a product that is not among them
    contributes nothing.
    Raises :class:`ContractError` where a column has another type than the spec was built from.
    """
    part = spec.side(side)
    encoded = EncodedTable(table.num_rows + 1)
    links: Bag | None = None
    for bag in (*part.bags, *map(_keys_of, filter(lambda bag: bag.managed_rows, part.bags))):
        if bag.table == "products":
            links = links or product_links(table, products)
            tagged = (
                _drop_unknown(_encode_bag(bag, products, vocabularies))
                if products is not None
                else _no_bags()
            )
            values, offsets = _pool(tagged, links)
        else:
            values, offsets = _encode_bag(bag, table, vocabularies)
        encoded.bags[bag.name] = (values, np.concatenate([[0], offsets]))
    for dense in part.dense:
        if dense.table == "products":
            links = links or product_links(table, products)
            matrix = _mean(dense, products, links)
        else:
            matrix, _ = _encode_dense(dense, table)
        encoded.dense[dense.name] = np.concatenate([np.zeros((1, dense.width), np.float32), matrix])
    return encoded


def _keys_of(bag: BagFeature) -> BagFeature:
    """What encodes the keys of a managed feature: hashes in the space of all positive integers."""
    salt = bag.salt or salt_of("key", bag.name) >> 1
    return replace(bag, name=key_name(bag.name), encoder=Encoder.hash, rows=KEYS, salt=salt)


def product_links(videos: pa.Table, products: pa.Table | None) -> Bag:
    """Per video the positions of its products in the ``products`` table, unknown ones left out."""
    ids, offsets = flatten(column(videos, "product_ids"))
    if products is None:
        return np.zeros(0, np.int64), np.zeros(videos.num_rows + 1, np.int64)
    known = categories(column(products, "product_id"))
    found = pc.index_in(categories(ids).cast(known.type), value_set=known, skip_nulls=True)
    rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    rows, offsets = _drop_unknown((rows + 1, offsets))
    return rows - 1, offsets


def bucket_rows(values: npt.NDArray[np.float64], edges: tuple[float, ...]) -> I64:
    """1 + the number of ``edges`` at or below each value; 0 for NaN."""
    return np.where(np.isnan(values), 0, 1 + np.searchsorted(np.asarray(edges), values, side="right"))


def _encode_bag(bag: BagFeature, table: pa.Table, vocabularies: Mapping[str, Vocabulary]) -> Bag:
    array = column(table, bag.column)
    if bag.encoder is Encoder.ngrams:
        hashes, offsets = ngram_hashes(array, bag.salt)
        return hashed_rows(hashes, bag.rows), offsets
    if is_list(array.type) != bag.multiple and not pa.types.is_null(array.type):
        kind = "a list" if bag.multiple else "a single value"
        raise ContractError(f"{bag.table}.{bag.column} is {array.type}, but {bag.name} was built from {kind}")
    flat, offsets = flatten(array) if bag.multiple else (array, np.arange(len(array) + 1, dtype=np.int64))
    try:
        rows = _rows(bag, flat, table, vocabularies)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ContractError(
            f"{bag.table}.{bag.column} ({array.type}) cannot feed {bag.name}: {reason}"
        ) from None
    return _drop_unknown((rows, offsets)) if bag.multiple else (rows, offsets)


def _rows(bag: BagFeature, flat: pa.Array, table: pa.Table, vocabularies: Mapping[str, Vocabulary]) -> I64:
    match bag.encoder:
        case Encoder.vocabulary:
            return vocabularies[bag.name].rows(categories(flat))
        case Encoder.hash:
            values = categories(flat)
            known = pc.is_valid(values).to_numpy(zero_copy_only=False)
            return np.where(known, hashed_rows(hash_ids(values, bag.salt), bag.rows), 0)
        case Encoder.buckets:
            values = numbers(flat)
            if bag.edges_by is None:
                return bucket_rows(values, bag.edges[""])
            rows = np.zeros(len(values), np.int64)
            groups = categories(column(table, bag.edges_by)).cast(pa.string())
            for group, edges in bag.edges.items():
                own = pc.fill_null(pc.equal(groups, group), False).to_numpy(zero_copy_only=False)
                rows[own] = bucket_rows(values[own], edges)
            return rows
    raise AssertionError(bag.encoder)


def _encode_dense(dense: DenseFeature, table: pa.Table) -> tuple[F32, npt.NDArray[np.bool_]]:
    """A vector per row, zeros where it is null, and which rows have one."""
    array = column(table, dense.column)
    matrix = np.zeros((len(array), dense.width), np.float32)
    if pa.types.is_null(array.type):
        return matrix, np.zeros(len(array), bool)
    where = f"{dense.table}.{dense.column}"
    if not is_vector(array.type) or array.type.list_size != dense.width:
        raise ContractError(f"{where} is {array.type}, but {dense.name} was built from {dense.width} floats")
    known = pc.is_valid(array).to_numpy(zero_copy_only=False)
    flat = pc.list_flatten(array).cast(pa.float32(), safe=False)
    matrix[known] = flat.to_numpy(zero_copy_only=False).reshape(-1, dense.width)
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise ContractError(f"{where} row {broken[0]}: not a finite vector; give a null where it is unknown")
    return matrix, known


def _pool(tagged: Bag, links: Bag) -> Bag:
    """Bags of videos from the bags of the products that each links to."""
    product, offsets = links
    values, per_link = take_bags(tagged, product)
    return values, per_link[offsets]


def _mean(dense: DenseFeature, products: pa.Table | None, links: Bag) -> F32:
    """Per video the mean vector of those of its products that have one; zeros without any."""
    product, offsets = links
    total = np.zeros((len(offsets) - 1, dense.width), np.float32)
    if products is None:
        return total
    vectors, known = _encode_dense(dense, products)
    video = np.repeat(np.arange(len(total)), np.diff(offsets))
    video, product = video[known[product]], product[known[product]]
    np.add.at(total, video, vectors[product])
    total /= np.maximum(np.bincount(video, minlength=len(total)), 1)[:, None]
    return total


def _drop_unknown(bag: Bag) -> Bag:
    values, offsets = bag
    kept = np.concatenate([[0], np.cumsum(values > 0)])
    return values[values > 0], kept[offsets]


def _no_bags() -> Bag:
    return np.zeros(0, np.int64), np.zeros(1, np.int64)
