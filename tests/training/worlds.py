"""A prepared directory whose answer is known: a checkerboard of tastes.

Videos and users have a taste, 0 or 1. A user is shown videos of both, mostly of the own taste, and clicks
exactly those. Every user's withheld click (validation) and the one after it (test) are of the own taste.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.features import BagFeature, EncodedTable, Encoder, FeatureSpec, Side, key_name
from data.prepared import SEQUENCES, Prepared, write_tables
from data.schema import LABEL_BIT, LABELS
from data.vocabulary import Vocabulary

CLICK = LABEL_BIT["click"]


def taste(rows):
    """Taste of video rows and of user rows: the parity."""
    return np.asarray(rows) % 2


def checkerboard(
    path: Path,
    *,
    users: int = 60,
    videos: int = 40,
    steps: int = 20,
    seed: int = 0,
    managed: Mapping[str, int] | None = None,
) -> Prepared:
    """Write a PREPARED directory: the last two impressions of every user are validation and test.

    ``managed`` says how many rows the model may hand out itself, for ``video_id`` or ``user_market``.
    """
    managed = managed or {}
    g = np.random.default_rng(seed)
    rows = [_user(user, videos, steps, g) for user in range(1, users + 1)]
    files = ["part-00000.parquet", "part-00001.parquet"]
    (path / "sequences").mkdir(parents=True)
    for name, part in zip(files, (rows[: users // 2], rows[users // 2 :]), strict=True):
        columns = [pa.array([row[field.name] for row in part]).cast(field.type) for field in SEQUENCES]
        pq.write_table(pa.table(columns, schema=SEQUENCES), path / "sequences" / name)
    train = np.concatenate([row["example_video"][row["example_split"] == 0] for row in rows])
    liked = np.concatenate([row["example_true"][row["example_split"] == 0] for row in rows]) > 0
    true = np.zeros((videos + 1, len(LABELS)), np.int64)
    true[:, LABELS.index("click")] = np.bincount(train[liked], minlength=videos + 1)
    catalogue, people = _ids(videos), _ids(users)
    write_tables(
        path,
        spec=FeatureSpec(
            bags=(
                _bag("video_id", Side.video, videos + 1, managed=managed.get("video_id", 0)),
                _bag("video_tags", Side.video, 6, multiple=True),
                _bag("user_market", Side.user, 13, managed=managed.get("user_market", 0)),
            )
        ),
        indexes={"catalogue": catalogue, "users": people, "surfaces": _ids(1), "markets": _ids(1)},
        vocabularies={},
        video_table=_keyed(_videos(videos, g), managed),
        user_table=_keyed(
            EncodedTable(
                users + 1, {"user_market": (np.r_[0, 1 + np.arange(users) // 2 % 12], np.arange(users + 2))}
            ),
            managed,
        ),
        video_train_count=np.bincount(train, minlength=videos + 1),
        video_train_true=true,
        video_raw={"duration_ms": np.full(videos + 1, -1), "publish_time_ms": np.full(videos + 1, -1)},
        manifest={
            "dataset": {"name": "checkerboard", "path": "DATASET", "ordered": True, "real_time": True},
            "split": {"mode": "given"},
            "tasks": ["click"],
            "seed": seed,
            "shards": [{"file": name} for name in files],
        },
    )
    return Prepared.open(path)


def _user(user: int, videos: int, steps: int, g: np.random.Generator) -> dict:
    own = np.arange(1, videos + 1)[taste(np.arange(1, videos + 1)) == taste(user)]
    other = np.setdiff1d(np.arange(1, videos + 1), own)
    clicks = round(0.75 * (steps - 2))
    liked = g.choice(own, clicks + 2, replace=False)
    shown = g.permutation(np.r_[liked[2:], g.choice(other, steps - 2 - clicks, replace=False)])
    video = np.r_[shown, liked[:2]]
    split = np.r_[np.zeros(steps - 2, np.int64), 1, 2]
    true = np.where(taste(video) == taste(user), CLICK, 0)
    time_ms = 10**12 + np.cumsum(g.integers(1, 10**6, steps))
    known, unknown, nothing = np.full(steps, CLICK), np.full(steps, -1), np.zeros(steps, np.int64)
    return {
        "user_row": user, "step_video": video, "step_time_ms": time_ms, "step_actions": true,
        "step_known": known, "step_watch_ms": unknown, "step_surface": nothing, "example_video": video,
        "example_time_ms": time_ms, "example_history_end": np.arange(steps), "example_true": true,
        "example_known": known, "example_watch_ms": unknown, "example_order_value_minor": unknown,
        "example_split": split, "example_surface": nothing, "example_market": nothing,
        "example_position": unknown,
    }  # fmt: skip


def _videos(videos: int, g: np.random.Generator) -> EncodedTable:
    """Ids, and 0 to 2 tags that say nothing about taste; row 0 is empty."""
    lengths = np.r_[0, g.integers(0, 3, videos)]
    offsets = np.r_[0, np.cumsum(lengths)]
    ids = (np.arange(1, videos + 1), np.r_[0, np.arange(videos + 1)])
    return EncodedTable(videos + 1, {"video_id": ids, "video_tags": (g.integers(1, 6, offsets[-1]), offsets)})


def _keyed(table: EncodedTable, managed: Mapping[str, int]) -> EncodedTable:
    """The table with keys of its managed features: numbers as large as hashes are."""
    for name in managed.keys() & table.bags.keys():
        values, offsets = table.bags[name]
        table.bags[key_name(name)] = (np.where(values > 0, values * 2**52 + 1, 0), offsets)
    return table


def _ids(count: int) -> Vocabulary:
    return Vocabulary.build(pa.array(np.arange(count) + 100))


def _bag(name: str, side: Side, rows: int, multiple: bool = False, managed: int = 0) -> BagFeature:
    column = name.partition("_")[2]
    return BagFeature(
        name=name, side=side, table=f"{side.value}s", column=column, encoder=Encoder.vocabulary, rows=rows,
        multiple=multiple, managed_rows=managed,
    )  # fmt: skip
