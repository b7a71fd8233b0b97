"""What the dataset knows about videos, products and users: who made them, how known they were before.

Everything counted from events is counted *before* the evaluated requests, so that "popular" and "new"
mean what the system could have known.
"""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from data.dataset import Dataset
from data.errors import ContractError
from data.storage import read_schema
from evaluation.arrays import Floats, Ints
from evaluation.ids import Directory, id_words
from evaluation.tables import Kind, batches, check_columns
from evaluation.truth import Truth


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The dataset seen from one evaluation; ``V`` videos, ``U`` users of the truth.

    ``videos``/``users``/``products`` are the tables (None where the dataset has none). ``shown_V`` counts
    impressions before the requests; ``history_user`` and ``history_video`` are the (user of the truth,
    video row) pairs among them.
    """

    video_rows: Directory
    videos: pa.Table | None
    users: pa.Table | None
    user_rows: Directory | None
    products: pa.Table | None
    product_rows: Directory | None
    shown_V: Floats
    history_user: Ints
    history_video: Ints
    events: ds.Dataset
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of videos."""
        return len(self.video_rows)


def read_catalogue(path: str, truth: Truth) -> Catalogue:
    """Read a dataset directory (CONTRACTS section 1) as far as this evaluation needs it."""
    dataset = Dataset.open(path)
    _check(dataset)
    videos, users, products = (
        dataset.read(t) if dataset.has(t) else None for t in ("videos", "users", "products")
    )
    events = dataset.scan("events")
    video_ids = videos["video_id"] if videos is not None else _distinct_videos(events)
    video_rows = Directory(video_ids)
    truth_users = Directory(truth.user_ids)
    before, note = _before(events, truth)
    shown_V = np.zeros(len(video_rows))
    pairs: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for batch in batches("dataset", events, ["user_id", "video_id"], before):
        video_N = video_rows.rows(id_words(batch.column("video_id")))
        user_N = truth_users.rows(id_words(batch.column("user_id")))
        shown_V += np.bincount(video_N[video_N >= 0], minlength=len(shown_V))
        kept = (video_N >= 0) & (user_N >= 0)
        pairs.append((user_N[kept], video_N[kept]))
    return Catalogue(
        video_rows=video_rows,
        videos=videos,
        users=users,
        user_rows=Directory(users["user_id"]) if users is not None else None,
        products=products,
        product_rows=Directory(products["product_id"]) if products is not None else None,
        shown_V=shown_V,
        history_user=np.concatenate([user for user, _ in pairs]),
        history_video=np.concatenate([video for _, video in pairs]),
        events=events,
        notes=[note] if note else [],
    )


def row_per_video(catalogue: Catalogue, column: str) -> pa.ChunkedArray | None:
    """A column of the videos table, or None where it is missing."""
    if catalogue.videos is None or column not in catalogue.videos.schema.names:
        return None
    return catalogue.videos[column]


def codes(column: pa.ChunkedArray) -> tuple[Ints, int]:
    """Dense integer codes of any scalar column, −1 for null, and how many codes there are."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    code: Ints = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return code, len(encoded.dictionary)


def video_products(catalogue: Catalogue) -> tuple[Ints, Ints]:
    """(video row, product row) of every tag that names a known product; empty without products."""
    tags = row_per_video(catalogue, "product_ids")
    none = np.zeros(0, np.int64)
    if tags is None or catalogue.product_rows is None:
        return none, none
    lists = tags.combine_chunks()
    video_P: Ints = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    product_P = catalogue.product_rows.rows(id_words(pc.list_flatten(lists)))
    return video_P[product_P >= 0], product_P[product_P >= 0]


def merchant_weights(catalogue: Catalogue) -> tuple[Ints, Ints, Floats, int]:
    """(video row, merchant code, share) of every tag, shares of a video adding up to 1; and merchants."""
    none = np.zeros(0, np.int64)
    if catalogue.products is None or "merchant_id" not in catalogue.products.schema.names:
        return none, none, np.zeros(0), 0
    merchant_code, merchants = codes(catalogue.products["merchant_id"])
    video_P, product_P = video_products(catalogue)
    merchant_P = merchant_code[product_P]
    video_P, merchant_P = video_P[merchant_P >= 0], merchant_P[merchant_P >= 0]
    tags_V = np.bincount(video_P, minlength=catalogue.size)
    return video_P, merchant_P, 1.0 / tags_V[video_P], merchants


def size_classes(
    count_X: Floats, names: tuple[str, str, str] = ("large", "medium", "small")
) -> npt.NDArray[np.str_]:
    """The class of each by its place in the total: the first 50 % of it, the next 30 %, the last 20 %.

    Counted from the largest down; whoever has nothing is in the last class.
    ``size_classes([60, 30, 10])`` → large, medium, small.
    """
    order = np.argsort(-count_X, kind="stable")
    before_X = np.zeros(len(count_X))
    before_X[order] = np.cumsum(count_X[order]) - count_X[order]
    share_X = before_X / max(float(count_X.sum()), 1e-300)
    place_X = np.where(count_X <= 0, 2, np.searchsorted([0.5, 0.8], share_X, side="right"))
    return np.array(names)[place_X]


def _check(dataset: Dataset) -> None:
    wanted = {
        "events": {"user_id": Kind.id, "video_id": Kind.id, "event_time": Kind.time},
        "videos": {"video_id": Kind.id},
        "products": {"product_id": Kind.id},
        "users": {"user_id": Kind.id},
    }
    for table, required in wanted.items():
        for file in dataset.files(table):
            check_columns("dataset", file, read_schema(file), required)


def _distinct_videos(events: ds.Dataset) -> pa.ChunkedArray:
    found = [pc.unique(batch.column(0)) for batch in batches("dataset", events, ["video_id"])]
    return pa.chunked_array(found).unique()


def _before(events: ds.Dataset, truth: Truth) -> tuple[ds.Expression | None, str | None]:
    """The events that were there before the requests: by given split, else by request_time."""
    if "split" in events.schema.names and events.filter(ds.field("split").is_valid()).head(1).num_rows:
        prefix = str(truth.request_ids[0].as_py()).partition(":")[0]
        splits = ["train", "validation"] if prefix == "test" else ["train"]
        return ds.field("split").isin(splits), None
    if "request_time" not in truth.rows.schema.names:
        note = "the truth has no request_time: popularity and histories are counted over the whole dataset"
        return None, note
    kind = truth.rows.schema.field("request_time").type
    if not Kind.time.fits(kind):
        raise ContractError(
            f"truth={truth.path}: column request_time is {kind}, must be a timestamp; cast it"
        )
    first: datetime = pc.min(truth.rows["request_time"].cast(pa.timestamp("us", tz="UTC"))).as_py()
    return ds.field("event_time") < pa.scalar(first, pa.timestamp("us", tz="UTC")), None
