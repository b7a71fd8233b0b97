"""Slice columns that the dataset knows and the truth does not say: how new, how large, which category."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.errors import ConfigError
from evaluation.arrays import Ints, sum_by
from evaluation.catalogue import Catalogue, codes, merchant_weights, row_per_video, size_classes
from evaluation.ids import id_words
from evaluation.slicing import UNKNOWN, SliceColumn, cut, truth_columns
from evaluation.truth import Truth

#: Columns of the dataset that ``slices=auto`` takes where they are present.
AUTOMATIC = ("video.duration_ms", "video.category", "video.language", "user.market", "user.language")
NO_PRODUCT = "no product"


def slice_columns(truth: Truth, wanted: list[str], catalogue: Catalogue | None) -> list[SliceColumn]:
    """The columns named by ``wanted``, or with ``["auto"]`` every one that says something.

    A name is a column of the truth, ``video.<column>`` or ``user.<column>`` of the dataset, or one of
    ``new_video``, ``new_user``, ``video_popularity``, ``creator_size``, ``merchant_size`` (classes by
    impressions before the requests: the first 50 %, the next 30 %, the last 20 %). Under ``auto`` a
    column with a single value is left out; an unknown name raises :class:`ConfigError`.
    """
    own = truth_columns(truth)
    derived = _derived(truth, catalogue) if catalogue is not None else {}
    if wanted == ["auto"]:
        found = [cut(name, column) for name, column in {**own, **derived}.items() if name not in _QUIET]
        return _distinct([column for column in found if len(column.labels) > 1])
    result = []
    for name in wanted:
        column = own.get(name, derived.get(name))
        if column is None and catalogue is not None:
            column = _dataset_column(truth, catalogue, name)
        if column is None:
            have = ", ".join([*own, *derived]) or "none"
            hint = "" if catalogue is not None else "; dataset=DIR gives more"
            raise ConfigError(f"slices={name}: no such column; there are {have}{hint}")
        result.append(cut(name, column))
    return result


_QUIET = frozenset({"currency"})


def _distinct(columns: list[SliceColumn]) -> list[SliceColumn]:
    """Without the columns that cut exactly as an earlier one does (market and user.market)."""
    kept: list[SliceColumn] = []
    for column in columns:
        alike = [other for other in kept if len(other.labels) == len(column.labels)]
        pairs = [len(np.unique(column.code_X * len(o.labels) + o.code_X)) for o in alike]
        if len(column.labels) not in pairs:
            kept.append(column)
    return kept


def _derived(truth: Truth, catalogue: Catalogue) -> dict[str, pa.ChunkedArray]:
    video_T = catalogue.video_rows.rows(id_words(truth.video_T))
    user_T = truth.user_R[truth.request_T]
    history_U = np.bincount(catalogue.history_user, minlength=truth.users)
    found = {
        "new_video": _texts(np.where(catalogue.shown_V > 0, "shown before", "new"), video_T),
        "new_user": _texts(np.where(history_U > 0, "known", "new"), user_T),
        "video_popularity": _texts(size_classes(catalogue.shown_V, ("head", "middle", "tail")), video_T),
    }
    creators = row_per_video(catalogue, "creator_id")
    if creators is not None:
        creator_V, count = codes(creators)
        known_V = creator_V >= 0
        size_C = size_classes(sum_by(creator_V[known_V], catalogue.shown_V[known_V], count))
        found["creator_size"] = _texts(np.where(known_V, size_C[creator_V], UNKNOWN), video_T)
    video_P, merchant_P, share_P, merchants = merchant_weights(catalogue)
    if merchants:
        size_M = size_classes(sum_by(merchant_P, share_P * catalogue.shown_V[video_P], merchants))
        place_V = np.full(catalogue.size, 3)
        np.minimum.at(place_V, video_P, _place(size_M)[merchant_P])
        found["merchant_size"] = _texts(np.array(["large", "medium", "small", NO_PRODUCT])[place_V], video_T)
    for name in AUTOMATIC:
        column = _dataset_column(truth, catalogue, name)
        if column is not None:
            found[name] = column
    return found


def _place(size_M: npt.NDArray[np.str_]) -> Ints:
    """0 large, 1 medium, 2 small."""
    return np.searchsorted(np.array(["large", "medium", "small"]), size_M).astype(np.int64)


def _dataset_column(truth: Truth, catalogue: Catalogue, name: str) -> pa.ChunkedArray | None:
    table, _, column = name.partition(".")
    if table == "video" and catalogue.videos is not None and column in catalogue.videos.schema.names:
        source, row_T = catalogue.videos[column], catalogue.video_rows.rows(id_words(truth.video_T))
    elif table == "user" and catalogue.users is not None and column in catalogue.users.schema.names:
        assert catalogue.user_rows is not None
        row_U = catalogue.user_rows.rows(id_words(truth.user_ids))
        source, row_T = catalogue.users[column], row_U[truth.user_R[truth.request_T]]
    else:
        return None
    if pa.types.is_nested(source.type):
        return None
    return source.take(pa.array(row_T, mask=row_T < 0))


def _texts(text_X: npt.NDArray[np.str_], row_T: Ints) -> pa.ChunkedArray:
    texts = pa.chunked_array([pa.array(text_X)])
    return texts.take(pa.array(row_T, mask=row_T < 0))
