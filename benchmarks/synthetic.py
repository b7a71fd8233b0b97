"""A prepared directory of any size in seconds, for benchmarks of speed alone: nothing in it can be learnt.

Videos are drawn by a Zipf law, labels by coins. Every user has the same number of steps, over 28 days before
validation begins; all impressions are training.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.features import BagFeature, EncodedTable, Encoder, FeatureSpec, Side
from data.prepared import SEQUENCES, Prepared, write_tables
from data.schema import LABEL_BIT, LABELS
from data.vocabulary import Vocabulary

DAY_MS = 86_400_000
#: Validation begins here; the log has this many days before it.
END_MS, DAYS = 20_000 * DAY_MS, 28
KNOWN = ("click", "long_view", "like", "purchase")
CHANCE = (0.35, 0.2, 0.05, 0.02)
CREATORS, CATEGORIES, MARKETS = 50_000, 100, 12


def synthetic(
    path: Path,
    *,
    users: int,
    videos: int,
    steps: int,
    shards: int = 4,
    seed: int = 0,
    skew: float = 1.0,
    order_only: bool = False,
) -> Prepared:
    """Write and open a PREPARED directory of ``users`` × ``steps`` impressions of ``videos`` videos.

    ``order_only``: a log of clicks with an order, without times, impressions that came to nothing or anything
    known of a video but its id, as most public logs of sequences are.
    """
    g = np.random.default_rng(seed)
    (path / "sequences").mkdir(parents=True)
    popularity = 1.0 / np.arange(1, videos + 1) ** skew
    edges = np.cumsum(popularity / popularity.sum())
    files, seen = [], np.zeros(videos + 1, np.int64)
    true_count = np.zeros((videos + 1, len(LABELS)), np.int64)
    for number, rows in enumerate(np.array_split(np.arange(1, users + 1), shards)):
        video, true, columns = _shard(rows, videos, steps, edges, g, order_only)
        files.append(f"part-{number:05d}.parquet")
        pq.write_table(pa.table(columns, schema=SEQUENCES), path / "sequences" / files[-1])
        seen += np.bincount(video, minlength=videos + 1)
        for name in KNOWN:
            happened = video[(true & LABEL_BIT[name]) > 0]
            true_count[:, LABELS.index(name)] += np.bincount(happened, minlength=videos + 1)
    window = dict.fromkeys(LABELS, 0)
    bags = (
        _bag("video_id", Side.video, videos + 1),
        _bag("video_creator_id", Side.video, CREATORS + 1),
        _bag("video_category", Side.video, CATEGORIES + 1),
        _bag("user_market", Side.user, MARKETS + 1),
    )
    video_bags = {
        "video_id": _one(np.arange(1, videos + 1)),
        "video_creator_id": _one(g.integers(1, CREATORS + 1, videos)),
        "video_category": _one(g.integers(1, CATEGORIES + 1, videos)),
    }
    user_bags = {"user_market": _one(g.integers(1, MARKETS + 1, users))}
    if order_only:
        video_bags, user_bags = {"video_id": video_bags["video_id"]}, {}
    write_tables(
        path,
        spec=FeatureSpec(bags=bags[:1] if order_only else bags),
        indexes={"catalogue": _ids(videos), "users": _ids(users), "surfaces": _ids(3), "markets": _ids(1)},
        vocabularies={},
        video_table=EncodedTable(videos + 1, video_bags),
        user_table=EncodedTable(users + 1, user_bags),
        video_train_count=seen,
        video_train_true=true_count,
        video_raw={
            "duration_ms": np.r_[-1, g.integers(5_000, 60_000, videos)],
            "publish_time_ms": np.r_[-1, END_MS - g.integers(1, 400 * DAY_MS, videos)],
        },
        manifest={
            "dataset": {"name": "synthetic", "path": "DATASET", "ordered": True, "real_time": not order_only},
            "split": {"mode": "time", "validation_ms": END_MS},
            "settings": {"context_steps": 1024, "attribution_window_ms": window},
            "tasks": ["click"] if order_only else list(KNOWN),
            "seed": seed,
            "shards": [{"file": name} for name in files],
        },
    )
    return Prepared.open(path)


def _shard(
    rows: np.ndarray, videos: int, steps: int, edges: np.ndarray, g: np.random.Generator, order_only: bool
) -> tuple[np.ndarray, np.ndarray, list[pa.Array]]:
    count = len(rows) * steps
    video = np.minimum(1 + np.searchsorted(edges, g.random(count)), videos)
    time = np.sort(g.integers(END_MS - DAYS * DAY_MS, END_MS, (len(rows), steps)), axis=1).ravel()
    true = np.zeros(count, np.int64)
    for name, chance in zip(KNOWN, CHANCE, strict=True):
        true |= np.where(g.random(count) < chance, LABEL_BIT[name], 0)
    known = np.full(count, sum(LABEL_BIT[name] for name in KNOWN))
    watch, surface = g.integers(0, 60_000, count), g.integers(0, 3, count)
    nothing = np.full(count, -1)
    if order_only:
        true = known = np.full(count, LABEL_BIT["click"])
        watch, surface = nothing, np.zeros(count, np.int64)
    flat = {
        "step_video": video, "step_time_ms": time, "step_actions": true, "step_known": known,
        "step_watch_ms": watch, "step_surface": surface, "example_video": video, "example_time_ms": time,
        "example_history_end": np.tile(np.arange(steps), len(rows)), "example_true": true,
        "example_known": known, "example_watch_ms": watch, "example_order_value_minor": nothing,
        "example_split": np.zeros(count, np.int8), "example_surface": surface,
        "example_market": np.zeros(count, np.int64), "example_position": nothing,
    }  # fmt: skip
    offsets = pa.array(np.arange(0, count + 1, steps), pa.int32())
    columns = [pa.array(rows, pa.int64())]
    for field in list(SEQUENCES)[1:]:
        values = pa.array(flat[field.name]).cast(field.type.value_type)
        columns.append(pa.ListArray.from_arrays(offsets, values))
    return video, true, columns


def _one(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One value per row; row 0 is empty."""
    return values, np.r_[0, np.arange(len(values) + 1)]


def _ids(count: int) -> Vocabulary:
    return Vocabulary.build(pa.array(np.arange(count) + 100))


def _bag(name: str, side: Side, rows: int) -> BagFeature:
    column = name.partition("_")[2]
    return BagFeature(
        name=name, side=side, table=f"{side.value}s", column=column, encoder=Encoder.vocabulary, rows=rows,
        multiple=False,
    )  # fmt: skip
