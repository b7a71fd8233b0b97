"""The one list of features from which batches *and* embedding tables derive.

Every feature is one of two encoded kinds. A *bag* is, per video or user, a list of rows of one
embedding table: an id, a category or a bucketed number is a bag of one, tags and title n-grams are
longer. A *dense* feature is a float32 vector of fixed width. Labels and counts of outcomes are
never features of a video or user here: they would carry the future into training.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data.columns import offsets_of, ranges
from data.errors import ContractError

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bag = tuple[I64, I64]  # values[nnz], offsets[N + 1]


class Side(Enum):
    """Whose feature it is: a tower reads one side only."""

    video = "video"
    user = "user"


class Encoder(Enum):
    """How a column becomes rows of an embedding table.

    ``vocabulary``: one row per value seen in training; ``hash``: a salted hash, for id spaces too
    large to list; ``buckets``: quantiles of a number; ``ngrams``: hashed words and word pairs of text.
    """

    vocabulary = "vocabulary"
    hash = "hash"
    buckets = "buckets"
    ngrams = "ngrams"


@dataclass(frozen=True, slots=True, kw_only=True)
class BagFeature:
    """A list of embedding-table rows per video or user.

    ``table``.``column`` is the source; a column of ``products`` is pooled over the video's
    ``product_ids``. ``rows`` counts the rows of the embedding table, row 0 (unknown) included.
    ``multiple``: bags may have any length; otherwise exactly one row per known video or user, 0 for
    a null or unknown value. ``edges`` (``buckets`` only): ascending bounds in the column's own unit
    per value of ``edges_by`` (a price means nothing without its currency), or under "" without one.
    ``managed_rows`` above 0: the encoded table also has the *key* of every id, seen in training or not, as
    bag :func:`key_name`, for a table of so many rows that a model hands out itself (``models.managed``).
    """

    name: str
    side: Side
    table: str
    column: str
    encoder: Encoder
    rows: int
    multiple: bool = False
    salt: int = 0
    edges: dict[str, tuple[float, ...]] = field(default_factory=dict)
    edges_by: str | None = None
    managed_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeature:
    """A float32 vector of ``width`` numbers per video or user; zeros where it is null.

    Of a column of ``products`` it is the mean over the video's ``product_ids`` that have one.
    """

    name: str
    side: Side
    table: str
    column: str
    width: int


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """All features in a fixed order. Two models agree on their inputs exactly when ``hash`` agrees."""

    bags: tuple[BagFeature, ...] = ()
    dense: tuple[DenseFeature, ...] = ()

    def side(self, side: Side | str) -> "FeatureSpec":
        """The features of one side, in the same order."""
        wanted = Side(side)
        return FeatureSpec(
            tuple(bag for bag in self.bags if bag.side is wanted),
            tuple(dense for dense in self.dense if dense.side is wanted),
        )

    def __getitem__(self, name: str) -> BagFeature | DenseFeature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    @property
    def names(self) -> list[str]:
        """Names of all features, bags first."""
        return [feature.name for feature in self.features]

    @property
    def features(self) -> list[BagFeature | DenseFeature]:
        """All features, bags first."""
        return [*self.bags, *self.dense]

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` gives back an equal spec."""
        return {"bags": [_plain(bag) for bag in self.bags], "dense": [_plain(item) for item in self.dense]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FeatureSpec":
        """Rebuild a spec; anything that is not one raises :class:`ContractError`."""
        try:
            bags = tuple(
                BagFeature(
                    **{
                        **bag,
                        "side": Side(bag["side"]),
                        "encoder": Encoder(bag["encoder"]),
                        "edges": {key: tuple(edges) for key, edges in bag.get("edges", {}).items()},
                    }
                )
                for bag in value["bags"]
            )
            dense = tuple(DenseFeature(**{**item, "side": Side(item["side"])}) for item in value["dense"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"feature_spec: not a feature list ({error}); prepare again") from None
        return cls(bags, dense)


@dataclass(slots=True)
class EncodedTable:
    """Encoded features of N videos or users, in compressed sparse rows.

    ``bags[name] = (values int64[nnz], offsets int64[N + 1])``: the bag of row r is
    ``values[offsets[r]:offsets[r + 1]]``. ``dense[name]``: float32[N, width].

    Two videos with tags {3, 5} and {} are ``bags["video_tags"] = ([3, 5], [0, 2, 2])``.
    """

    num_rows: int
    bags: dict[str, Bag] = field(default_factory=dict)
    dense: dict[str, F32] = field(default_factory=dict)

    def take(self, rows: npt.ArrayLike) -> "EncodedTable":
        """The table of ``rows`` int64[M] in their order; repeats are allowed."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.num_rows):
            raise IndexError(f"rows {wanted.min()} … {wanted.max()} of a table with {self.num_rows} rows")
        return EncodedTable(
            len(wanted),
            {name: take_bags(bag, wanted) for name, bag in self.bags.items()},
            {name: matrix[wanted] for name, matrix in self.dense.items()},
        )

    def save(self, path: str | Path) -> None:
        """Write safetensors."""
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for name, (values, offsets) in self.bags.items():
            tensors[f"bag.values.{name}"] = np.ascontiguousarray(values)
            tensors[f"bag.offsets.{name}"] = np.ascontiguousarray(offsets)
        for name, matrix in self.dense.items():
            tensors[f"dense.{name}"] = np.ascontiguousarray(matrix)
        save_file(tensors, path, metadata={"num_rows": str(self.num_rows)})

    @classmethod
    def load(cls, path: str | Path) -> "EncodedTable":
        """Read what :meth:`save` wrote; a damaged file raises :class:`ContractError`."""
        try:
            with safe_open(path, framework="numpy") as file:
                table = cls(int(file.metadata()["num_rows"]))
                for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
                    kind, _, name = key.partition(".")
                    if kind == "dense":
                        table.dense[name] = file.get_tensor(key)
                    elif name.startswith("offsets."):
                        name = name.removeprefix("offsets.")
                        table.bags[name] = (file.get_tensor(f"bag.values.{name}"), file.get_tensor(key))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ContractError(f"{path}: not an encoded table ({reason}); prepare again") from None
        table._check(str(path))
        return table

    def _check(self, where: str) -> None:
        for name, (values, offsets) in self.bags.items():
            whole = len(offsets) == self.num_rows + 1 and offsets[0] == 0 and offsets[-1] == len(values)
            if not whole or (np.diff(offsets) < 0).any():
                raise ContractError(
                    f"{where}: offsets of {name} do not fit {self.num_rows} rows; prepare again"
                )
        for name, matrix in self.dense.items():
            if matrix.ndim != 2 or len(matrix) != self.num_rows:
                raise ContractError(f"{where}: {name} does not have {self.num_rows} rows; prepare again")


def feature_name(table: str, column: str, taken: Sequence[str] = ()) -> str:
    """Name of a column's feature: ``video_tags``, ``product_brand``, ``user_market``.

    Letters, digits and underscores only, since names become files and module parameters; a name in
    ``taken`` gets a number.
    """
    prefix = table.removesuffix("s") + "_"
    word = re.sub(r"[^A-Za-z0-9_]", "_", column.removeprefix(prefix))
    name, number = prefix + word, 2
    while name in taken:
        name, number = f"{prefix}{word}_{number}", number + 1
    return name


def concat(tables: Sequence[EncodedTable]) -> EncodedTable:
    """Stack tables of the same features; at least one table."""
    first = tables[0]
    bags = {}
    for name in first.bags:
        lengths = [np.diff(table.bags[name][1]) for table in tables]
        values = np.concatenate([table.bags[name][0] for table in tables])
        bags[name] = (values, offsets_of(np.concatenate(lengths)))
    dense = {name: np.concatenate([table.dense[name] for table in tables]) for name in first.dense}
    return EncodedTable(sum(table.num_rows for table in tables), bags, dense)


def key_name(name: str) -> str:
    """The bag that holds the keys of a managed feature, positive hashes of 63 bits; 0 is an unknown id."""
    return f"{name}:key"


def take_bags(bag: Bag, rows: I64) -> Bag:
    """The bags of ``rows``, one after another: a gather in compressed sparse rows."""
    values, offsets = bag
    start, end = offsets[rows], offsets[rows + 1]
    return values[ranges(start, end)], offsets_of(end - start)


def _plain(feature: BagFeature | DenseFeature) -> dict[str, Any]:
    value = asdict(feature)
    value["side"] = feature.side.value
    if isinstance(feature, BagFeature):
        value["encoder"] = feature.encoder.value
        value["edges"] = {key: list(edges) for key, edges in feature.edges.items()}
        if not feature.managed_rows:  # specs from before there were such tables keep their hash
            del value["managed_rows"]
    return value
