"""The tables of a trained model for a newer dataset: new videos and users encoded by the old feature spec."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data.columns import align, column
from data.dataset import Dataset
from data.encoding import encode
from data.engine import Session
from data.features import Side
from data.fingerprint import fingerprint
from data.prepared import Prepared, write_tables
from data.records import distinct
from data.vocabulary import Vocabulary
from serving.exact import Rows


def refreshed(session: Session, prepared: Prepared, dataset: Dataset, out: Path) -> Prepared:
    """Write the tables of ``prepared`` into ``out`` with the catalogue and the users of ``dataset``.

    Feature spec, its vocabularies, surfaces, markets and split stay those of training, so the model fits
    as before; a video that it was not trained on lives on its content. Training counts follow the ids.
    """
    catalogue = _ids(session, dataset, "videos", "video_id")
    users = _ids(session, dataset, "users", "user_id")
    videos = _aligned(dataset, "videos", "video_id", catalogue)
    profiles = _aligned(dataset, "users", "user_id", users)
    products = dataset.read("products") if dataset.has("products") else None
    old = prepared.catalogue.rows(catalogue.known)
    rows = np.concatenate([np.zeros(1, np.int64), old])
    manifest = {
        key: value
        for key, value in prepared.manifest.items()
        if key not in ("hash", "schema_version", "feature_spec", "vocabularies", "catalogue_size")
    }
    manifest["dataset"] = {
        **manifest["dataset"],
        "name": dataset.info.name,
        "fingerprint": fingerprint(dataset),
    }
    manifest["shards"] = []
    publish_time = column(videos, "publish_time")
    if pa.types.is_timestamp(publish_time.type):
        publish_time = publish_time.cast(pa.timestamp("ms", publish_time.type.tz), safe=False)
    write_tables(
        out, spec=prepared.spec,
        indexes={
            "catalogue": catalogue, "users": users,
            "surfaces": prepared.surfaces, "markets": prepared.markets,
        },
        vocabularies=prepared.vocabularies,
        video_table=encode(prepared.spec, Side.video, videos, products, prepared.vocabularies),
        user_table=encode(prepared.spec, Side.user, profiles, None, prepared.vocabularies),
        video_train_count=_followed(prepared.video_train_count, rows),
        video_train_true=_followed(prepared.video_train_true, rows),
        video_raw={
            "duration_ms": _amounts(column(videos, "duration_ms")), "publish_time_ms": _amounts(publish_time),
        },
        manifest=manifest,
    )  # fmt: skip
    return Prepared.open(out)


def _ids(session: Session, dataset: Dataset, table: str, key: str) -> Vocabulary:
    """As ``prepare`` has it: videos of the videos table where there is one, and every user who occurs."""
    if not dataset.has(table):
        return distinct(session, dataset, key)
    listed = Vocabulary.build(dataset.scan(table).to_table(columns=[key])[key])
    if table == "videos":
        return listed
    logged = distinct(session, dataset, key)
    return Vocabulary.build(pa.concat_arrays([listed.known, logged.known.cast(listed.type)]))


def _aligned(dataset: Dataset, table: str, key: str, ids: Vocabulary) -> pa.Table:
    return align(dataset.read(table), key, ids) if dataset.has(table) else pa.table({key: ids.known})


def _followed(counts: Rows, rows: Rows) -> Rows:
    """Counts of the old rows at the new ones, 0 for a video that the old catalogue lacks."""
    taken = counts[rows]
    taken[rows == 0] = 0
    return taken


def _amounts(array: pa.Array) -> Rows:
    values = array.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.concatenate([np.full(1, -1), values]).astype(np.int64)
