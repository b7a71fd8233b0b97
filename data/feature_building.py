"""Which features a dataset has: read off the Arrow types of its tables, fitted on training rows only."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.columns import categories, column, flatten, is_category, is_list, is_number, is_vector, numbers
from data.encoding import product_links
from data.errors import ConfigError
from data.features import BagFeature, DenseFeature, Encoder, FeatureSpec, Side, feature_name
from data.hashing import salt_of
from data.schema import LABELS
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]

#: Columns that the contract types as numbers but that are amounts, not names.
_AMOUNTS = {("videos", "duration_ms"), ("products", "price_minor")}
#: Amounts that mean nothing without another column.
_AMOUNT_UNITS = {("products", "price_minor"): "currency"}
_TEXTS = {("videos", "title"), ("products", "title")}
#: No features: raw inputs of freshness and of hard rules, and the key of users (towers never see a user id).
_LEFT_OUT = {
    ("videos", "publish_time"),
    ("products", "in_stock"),
    ("products", "product_id"),
    ("users", "user_id"),
}


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """Sizes and choices of :func:`build_spec`; see ``configs/prepare.yaml`` for what they mean."""

    max_id_rows: int
    max_category_rows: int
    min_count: int
    buckets: int
    ngram_rows: int
    exclude: tuple[str, ...] = ()
    managed: tuple[str, ...] = ()
    managed_rows: int = 0


@dataclass(slots=True)
class BuiltFeatures:
    """``notes`` says in words which columns became no feature, and why."""

    spec: FeatureSpec
    vocabularies: dict[str, Vocabulary]
    notes: list[str] = field(default_factory=list)


def build_spec(
    videos: pa.Table,
    users: pa.Table,
    products: pa.Table | None,
    *,
    video_trained: npt.NDArray[np.bool_],
    user_trained: npt.NDArray[np.bool_],
    settings: FeatureSettings,
) -> BuiltFeatures:
    """Derive the feature list; vocabularies and quantiles come from training rows alone.

    ``video_trained`` bool[N] and ``user_trained`` bool[U]: whether the row of ``videos`` or ``users`` has
    an event in the training split. A product counts as trained when a trained video shows it.
    """
    built = BuiltFeatures(FeatureSpec(), {})
    _add_table(built, "videos", Side.video, videos, video_trained, settings)
    if products is not None and "product_ids" in videos.column_names:
        product, offsets = product_links(videos, products)
        shown = np.zeros(products.num_rows, bool)
        shown[product[np.repeat(video_trained, np.diff(offsets))]] = True
        _add_table(built, "products", Side.video, products, shown, settings)
    _add_table(built, "users", Side.user, users, user_trained, settings)
    found = {f"{bag.table}.{bag.column}" for bag in built.spec.bags if bag.managed_rows}
    for source in settings.managed:
        if source not in found or not _is_identity(source):
            raise ConfigError(
                f"features.managed: {source} is no column of ids that became a feature (table.column, named "
                "…_id or …_ids); correct it"
            )
    return built


def _add_table(
    built: BuiltFeatures,
    table: str,
    side: Side,
    rows: pa.Table,
    trained: npt.NDArray[np.bool_],
    settings: FeatureSettings,
) -> None:
    chosen = rows.filter(pa.array(trained))
    for name in rows.column_names:
        source = f"{table}.{name}"
        if (table, name) in _LEFT_OUT:
            continue
        if source in settings.exclude:
            built.notes.append(f"{source}: excluded")
            continue
        if name in LABELS:
            built.notes.append(f"{source}: named like a label, so no feature")
            continue
        feature = _feature(table, name, side, chosen, settings, built)
        if isinstance(feature, str):
            built.notes.append(f"{source}: {feature}")
        elif isinstance(feature, DenseFeature):
            built.spec = FeatureSpec(built.spec.bags, (*built.spec.dense, feature))
        else:
            built.spec = FeatureSpec((*built.spec.bags, feature), built.spec.dense)


def _feature(
    table: str, name: str, side: Side, trained: pa.Table, settings: FeatureSettings, built: BuiltFeatures
) -> BagFeature | DenseFeature | str:
    """The feature of one column, its vocabulary put into ``built``; or why it is none."""
    array = column(trained, name)
    if len(array) == array.null_count:
        return "no value among training rows"
    unique = feature_name(table, name, taken=built.spec.names)
    if is_vector(array.type):
        return DenseFeature(name=unique, side=side, table=table, column=name, width=array.type.list_size)
    base = BagFeature(name=unique, side=side, table=table, column=name, encoder=Encoder.vocabulary, rows=1)
    multiple = is_list(array.type)
    if (table, name) in _TEXTS and not multiple:
        rows = min(settings.ngram_rows, max(1024, 8 * trained.num_rows))
        return replace(base, encoder=Encoder.ngrams, rows=rows, salt=_salt(unique), multiple=True)
    if not multiple and (is_number(array.type) or (table, name) in _AMOUNTS):
        by = _AMOUNT_UNITS.get((table, name))
        by = by if by in trained.column_names else None
        amounts = numbers(array)
        edges = _edges(amounts, column(trained, by) if by else None, settings.buckets)
        if not any(edges.values()) and not np.isnan(amounts).any():
            return "one value throughout"
        rows = max(map(len, edges.values())) + 2
        return replace(base, encoder=Encoder.buckets, rows=rows, edges=edges, edges_by=by)
    if not is_category(array.type.value_type if multiple else array.type):
        return f"columns of type {array.type} are no features"
    values = categories(flatten(array)[0] if multiple else array)
    distinct = pc.count_distinct(values).as_py()
    if not multiple and distinct < 2 and values.null_count == 0 and name not in ("video_id", "creator_id"):
        return "one value throughout"
    if f"{table}.{name}" in settings.managed:
        base = replace(base, managed_rows=settings.managed_rows)
    limit = settings.max_id_rows if _is_identity(name) else settings.max_category_rows
    if distinct >= limit:
        return replace(base, encoder=Encoder.hash, rows=limit, salt=_salt(unique), multiple=multiple)
    vocabulary = Vocabulary.build(values, min_count=1 if _is_identity(name) else settings.min_count)
    if len(vocabulary) == 1:
        return f"no value occurs {settings.min_count} times among training rows"
    built.vocabularies[unique] = vocabulary
    return replace(base, rows=len(vocabulary), multiple=multiple)


def _edges(
    values: npt.NDArray[np.float64], groups: pa.Array | None, buckets: int
) -> dict[str, tuple[float, ...]]:
    if groups is None:
        return {"": _quantiles(values, buckets)}
    names = categories(groups).cast(pa.string()).to_numpy(zero_copy_only=False)
    counted = Counter(name for name in names.tolist() if name is not None)
    return {name: _quantiles(values[names == name], buckets) for name in sorted(counted)}


def _quantiles(values: npt.NDArray[np.float64], buckets: int) -> tuple[float, ...]:
    """At most ``buckets`` − 1 distinct inner bounds that split the finite values evenly."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    bounds = np.unique(np.quantile(finite, np.arange(1, buckets) / buckets, method="inverted_cdf"))
    return tuple(bounds[bounds > finite.min()].tolist())


def _is_identity(name: str) -> bool:
    return name.endswith(("_id", "_ids"))


def _salt(name: str) -> int:
    return salt_of("feature", name) >> 1  # fits JSON readers that know only signed 64-bit integers
