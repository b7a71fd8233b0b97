"""What the rules of the feed know about videos and products, as arrays over catalogue rows.

Axes: N videos and P products, each with row 0 for the unknown one. A null says nothing and forbids
nothing: a video without markets may be shown everywhere, a product without ``in_stock`` can be bought.
An empty list of markets is a statement: nowhere.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.schema import TIME
from data.vocabulary import Vocabulary
from serving.exact import Mask, Rows
from serving.recency import UNKNOWN_TIME, Recency
from serving.schema import ProductTag

Codes = npt.NDArray[np.int32]
#: The code of a name that no row has.
NO_SUCH = -1


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of names as small numbers: ``code[row]`` of the vocabulary ``names``, 0 for null."""

    code: Codes
    names: Vocabulary

    def code_of(self, name: object) -> int:
        """The code of one name, ``NO_SUCH`` where no row has it."""
        return int(self.names.rows([name])[0]) or NO_SUCH

    def codes_of(self, names: Sequence[object]) -> Rows:
        """The codes of those names that some row has."""
        codes = self.names.rows(names)
        return codes[codes > 0]

    def names_of(self, codes: npt.ArrayLike) -> list[int | str]:
        """The distinct names of ``codes``, ascending; 0 has none."""
        distinct = np.unique(np.asarray(codes, np.int64))
        names: list[int | str] = self.names.ids(distinct[distinct > 0]).to_pylist()
        return names


@dataclass(frozen=True, slots=True)
class ListColumn:
    """A column of lists: those of row r are ``value[offset[r]:offset[r + 1]]``; ``null[r]`` where absent."""

    value: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    null: Mask

    def of(self, row: int) -> npt.NDArray[np.int64]:
        """The list of one row; empty where it is null."""
        return self.value[self.offset[row] : self.offset[row + 1]]

    def rows_with(self, code: int) -> Mask:
        """Bool per row: whether its list is null or holds ``code``."""
        holds = self.null.copy()
        rows = np.repeat(np.arange(len(self.null)), np.diff(self.offset))
        holds[rows[self.value == code]] = True
        return holds


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """Products by row. ``price_minor`` is -1 where unknown; ``in_stock`` is true where unknown."""

    ids: Vocabulary
    merchant: Coded
    brand: Coded
    price_minor: npt.NDArray[np.int64]
    currency: list[str | None]
    in_stock: Mask
    markets: ListColumn | None


@dataclass(slots=True)
class CatalogueFacts:
    """Videos by catalogue row, and the products they sell. Safe to read from several threads."""

    rows: int
    creator: Coded
    language: Coded
    publish_ms: npt.NDArray[np.int64]
    markets: ListColumn | None
    market_names: Vocabulary
    products: ProductFacts
    product_rows: ListColumn
    product_ids: pa.Array
    _market_code: dict[str | None, int] | None = None
    _by_market: dict[int, tuple[Mask, Mask]] = field(default_factory=dict)
    _recency: Recency | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, videos: pa.Table, products: pa.Table | None) -> "CatalogueFacts":
        """Read off a bundle's raw tables; row 0 of ``videos`` is the unknown video, all null.

        ``products`` has one row per product, in any order and without an unknown one. A column that
        is missing counts as null throughout.
        """
        names = _market_names(videos, products)
        listed = products.num_rows if products is not None else 0
        table = products if products is not None else pa.table({"product_id": pa.array([], pa.int64())})
        ids = Vocabulary.build(table["product_id"])
        order = np.argsort(ids.rows(table["product_id"]), kind="stable")
        unknown = pa.table({"product_id": pa.nulls(1, table["product_id"].type)})
        table = pa.concat_tables([unknown, table.take(order)], promote_options="default")
        assert len(ids) == table.num_rows == listed + 1
        price = pc.fill_null(_column(table, "price_minor", pa.int64()), -1)
        stock = pc.fill_null(_column(table, "in_stock", pa.bool_()), True)
        product_facts = ProductFacts(
            ids=ids,
            merchant=_coded(table, "merchant_id"),
            brand=_coded(table, "brand"),
            price_minor=price.to_numpy(zero_copy_only=False),
            currency=_column(table, "currency", pa.string()).to_pylist(),
            in_stock=stock.to_numpy(zero_copy_only=False),
            markets=_lists(table, "markets", names),
        )
        count = videos.num_rows
        tags = _column(videos, "product_ids", pa.list_(ids.type))
        moments = _column(videos, "publish_time", TIME).cast(TIME)
        published = pc.fill_null(moments.cast(pa.int64()), UNKNOWN_TIME * 1000)
        no_tags = ListColumn(np.zeros(0, np.int64), np.zeros(count + 1, np.int64), np.ones(count, bool))
        return cls(
            rows=count,
            creator=_coded(videos, "creator_id"),
            language=_coded(videos, "language"),
            publish_ms=published.to_numpy(zero_copy_only=False) // 1000,
            markets=_lists(videos, "markets", names),
            market_names=names,
            products=product_facts,
            product_rows=_lists(videos, "product_ids", ids) or no_tags,
            product_ids=tags.flatten(),
        )

    def warm_up(self) -> None:
        """Work out now what is otherwise worked out when it is first asked for, which takes seconds."""
        self.recency()
        for market in (None, *self.market_names.ids(range(1, len(self.market_names))).to_pylist()):
            self.eligible(market)

    def eligible(self, market: str | None) -> Mask:
        """bool[N]: may be shown in ``market``, and at least one of its products, if any, can be bought there.

        ``market`` None applies stock alone; a market that no list names leaves what has no list.
        """
        return self._masks(market)[0]

    def available(self, market: str | None) -> Mask:
        """bool[P]: in stock and sold in ``market``."""
        return self._masks(market)[1]

    def tags(self, row: int, market: str | None) -> list[ProductTag]:
        """The products of a video that can be bought in ``market``, in the video's order."""
        start, stop = int(self.product_rows.offset[row]), int(self.product_rows.offset[row + 1])
        if start == stop:
            return []
        available, facts = self.available(market), self.products
        tags = []
        for place in range(start, stop):
            product, product_id = int(self.product_rows.value[place]), self.product_ids[place].as_py()
            if available[product] and product_id is not None:
                price = int(facts.price_minor[product])
                price_minor = price if price >= 0 else None
                currency = facts.currency[product]
                tags.append(ProductTag(product_id=product_id, price_minor=price_minor, currency=currency))
        return tags

    def recency(self) -> Recency:
        """Which videos are new; sorted when first asked for."""
        with self._lock:
            if self._recency is None:
                self._recency = Recency(
                    self.publish_ms,
                    self.creator.code,
                    self.product_rows.offset,
                    self.products.merchant.code[self.product_rows.value],
                )
            return self._recency

    def _masks(self, market: str | None) -> tuple[Mask, Mask]:
        with self._lock:
            if self._market_code is None:  # asked for every product of a page
                names = self.market_names.ids(np.arange(len(self.market_names))).to_pylist()
                self._market_code = {name: code for code, name in enumerate(names)}
            code = self._market_code.get(market, NO_SUCH)
            found = self._by_market.get(code)
            if found is None:
                found = self._by_market[code] = self._make_masks(code)
        return found

    def _make_masks(self, code: int) -> tuple[Mask, Mask]:
        facts = self.products
        available = facts.in_stock.copy()
        if code and facts.markets is not None:
            available &= facts.markets.rows_with(code)
        counts = np.diff(self.product_rows.offset)
        buyable = np.zeros(self.rows, bool)
        tagged = np.repeat(np.arange(self.rows), counts)
        buyable[tagged[available[self.product_rows.value]]] = True
        eligible = buyable | (counts == 0)
        if code and self.markets is not None:
            eligible &= self.markets.rows_with(code)
        eligible[0] = False
        return eligible, available


def _market_names(videos: pa.Table, products: pa.Table | None) -> Vocabulary:
    names: set[str] = set()
    for table in (videos, products):
        if table is not None and "markets" in table.column_names:
            names.update(name for name in pc.unique(pc.list_flatten(table["markets"])).to_pylist() if name)
    return Vocabulary.build(pa.array(sorted(names), pa.string()))


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, kind)
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # nothing but empty chunks
        return pa.array([], column.type)
    return column


def _coded(table: pa.Table, name: str) -> Coded:
    column = _column(table, name, pa.string())
    names = Vocabulary.build(column)
    return Coded(names.rows(column).astype(np.int32), names)


def _lists(table: pa.Table, name: str, names: Vocabulary) -> ListColumn | None:
    """Codes of a list column; None where the table lacks it. Null entries count as unknown (0)."""
    if name not in table.column_names:
        return None
    column = _column(table, name, pa.null())
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    null = pc.is_null(column).to_numpy(zero_copy_only=False)
    return ListColumn(names.rows(column.flatten()), offset, null)
