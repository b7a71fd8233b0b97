"""Metrics beyond accuracy: worked examples and brute force over a small catalogue."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.dataset import DatasetInfo, write_table, writing_dataset
from data.errors import ConfigError
from evaluation import beyond_accuracy as beyond
from evaluation.catalogue import Catalogue, read_catalogue, size_classes
from evaluation.dataset_slices import slice_columns
from evaluation.inputs import open_runs
from evaluation.protocol import describe_truth
from evaluation.truth import Truth, read_truth
from tests.evaluation.worlds import run_table, truth_table, write

START = datetime(2026, 3, 1, tzinfo=UTC)
EVENTS = [("u1", 1), ("u1", 2), ("u1", 3), ("u2", 1), ("u2", 1), ("u2", 4), ("u9", 1), ("u9", 1)]
CATEGORY = {1: "a", 2: "a", 3: "b", 4: "c", 5: None}
CREATOR = {1: "x", 2: "x", 3: "y", 4: "z", 5: "z"}
TAGS = {1: [10, 11], 2: [12], 3: [], 4: [12], 5: None}
MERCHANT = {10: "big", 11: "mid", 12: "tiny"}
LISTS = {"test:u1": [4, 2, 5], "test:u2": [3, 4], "test:u3": [5]}


@pytest.fixture
def world(tmp_path: Path) -> tuple[Truth, Catalogue, beyond.Shown]:
    with writing_dataset(
        tmp_path / "dataset", DatasetInfo(name="tiny", source="here", licence="none")
    ) as out:
        events = [*EVENTS, ("u1", 5), ("u2", 5)]
        times = [START + timedelta(hours=h) for h in range(len(EVENTS))] + [START + timedelta(days=9)] * 2
        table = {
            "user_id": [user for user, _ in events],
            "video_id": pa.array([video for _, video in events], pa.int64()),
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
        write_table(out, "events", pa.table(table))
        embedding = np.eye(5, 3) + 1.0
        videos = {
            "video_id": pa.array(list(CATEGORY), pa.int64()),
            "category": list(CATEGORY.values()),
            "creator_id": list(CREATOR.values()),
            "product_ids": pa.array(list(TAGS.values()), pa.list_(pa.int64())),
            "content_embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(embedding.ravel(), pa.float32()), 3
            ),
            "duration_ms": pa.array([1000, 2000, 3000, 4000, 5000], pa.int64()),
        }
        write_table(out, "videos", pa.table(videos))
        products = {
            "product_id": pa.array(list(MERCHANT), pa.int64()),
            "merchant_id": list(MERCHANT.values()),
        }
        write_table(out, "products", pa.table(products))
    gains = {"test:u1": {4: 1.0}, "test:u2": {3: 1.0}, "test:u3": {1: 1.0}}
    time = pa.array([START + timedelta(days=8)] * 3, pa.timestamp("us", tz="UTC"))
    users = {request: request.removeprefix("test:") for request in gains}
    truth = read_truth(write(truth_table(gains, users, request_time=time), tmp_path / "truth.parquet"))
    catalogue = read_catalogue(str(tmp_path / "dataset"), truth)
    [source] = open_runs("run", write(run_table(LISTS), tmp_path / "run.parquet"))
    return truth, catalogue, beyond.top_videos(source, truth, catalogue, 3)


World = tuple[Truth, Catalogue, beyond.Shown]


def test_only_what_was_before_the_requests_is_counted(world: World) -> None:
    _, catalogue, _ = world
    assert catalogue.shown_V.tolist() == [5, 1, 1, 1, 0]
    assert sorted(zip(catalogue.history_user, catalogue.history_video, strict=True)) == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 0), (1, 3),
    ]  # fmt: skip


def test_lists(world: World) -> None:
    truth, catalogue, shown = world
    share = (catalogue.shown_V + 1) / 13
    assert beyond.novelty(shown, catalogue)[0] == pytest.approx(-np.log2(share[[3, 1, 4]]).mean())
    assert beyond.repeat_rate(shown, catalogue) == pytest.approx([1 / 3, 1 / 2, 0])
    vectors = np.eye(5, 3)[[3, 1, 4]] + 1
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    diversity = beyond.intra_list_diversity(shown, catalogue)
    assert diversity is not None
    assert diversity[0] == pytest.approx(np.mean(pairs))
    assert np.isnan(diversity[2])
    p, q = np.array([2 / 3, 1 / 3]), np.array([1 / 2, 0])
    taste = beyond.taste_divergence(shown, catalogue, truth)
    assert taste is not None
    assert taste[0] == pytest.approx((p * np.log(p / (0.99 * q + 0.01 * p))).sum())
    assert np.isnan(taste[2])


def test_diversity_by_category_without_embeddings(world: World) -> None:
    _, catalogue, shown = world
    assert catalogue.videos is not None
    poor = Catalogue(
        catalogue.video_rows, catalogue.videos.drop_columns(["content_embedding"]), None, None, None, None,
        catalogue.shown_V, catalogue.history_user, catalogue.history_video, catalogue.events,
    )  # fmt: skip
    diversity = beyond.intra_list_diversity(shown, poor)
    assert diversity is not None
    assert diversity[:2] == pytest.approx([1.0, 1.0])
    assert np.isnan(diversity[2])


def test_exposure(world: World) -> None:
    _, catalogue, shown = world
    assert beyond.coverage(shown, catalogue) == 4 / 5
    found = beyond.exposure(shown, catalogue)
    assert found["creator_gini"] == pytest.approx(beyond.gini(np.array([1.0, 1.0, 4.0])))
    assert found["merchant_gini"] == pytest.approx(2 / 3)
    assert found["small_merchant_share"] == 0.0


def test_gini() -> None:
    assert beyond.gini(np.ones(7)) == pytest.approx(0)
    assert beyond.gini(np.r_[1.0, np.zeros(99)]) == pytest.approx(0.99)
    assert np.isnan(beyond.gini(np.zeros(3)))
    value = np.random.default_rng(0).exponential(size=50)
    brute = np.abs(value[:, None] - value[None]).sum() / (2 * 50**2 * value.mean())
    assert beyond.gini(value) == pytest.approx(brute)


def test_size_classes() -> None:
    assert size_classes(np.array([10.0, 60, 30, 0])).tolist() == ["small", "large", "medium", "small"]
    assert size_classes(np.zeros(2)).tolist() == ["small", "small"]


def test_slices_from_the_dataset(world: World) -> None:
    truth, catalogue, _ = world
    automatic = {column.name for column in slice_columns(truth, ["auto"], catalogue)}
    assert automatic == {"new_user", "video_popularity"}  # the others cut these three rows alike
    names = [
        "new_user",
        "video_popularity",
        "creator_size",
        "merchant_size",
        "video.category",
        "video.duration_ms",
    ]
    columns = {column.name: column for column in slice_columns(truth, names, catalogue)}
    named = {n: [c.labels[code] for code in c.code_X] for n, c in columns.items()}
    assert named["new_user"] == ["known", "known", "new"]
    assert named["video_popularity"] == ["tail", "middle", "head"]
    assert named["creator_size"] == ["small", "medium", "large"]
    assert named["merchant_size"] == ["medium", "no product", "large"]
    assert named["video.category"] == ["c", "b", "a"]
    assert len(set(named["video.duration_ms"])) == 3


def test_unknown_slice_column_is_refused(world: World) -> None:
    truth, catalogue, _ = world
    with pytest.raises(ConfigError, match=r"slices=colour: no such column; there are .*merchant_size"):
        slice_columns(truth, ["colour"], catalogue)
    with pytest.raises(ConfigError, match="dataset=DIR gives more"):
        slice_columns(truth, ["merchant_size"], None)


def test_right_videos_seen_before_are_reported(world: World) -> None:
    truth, catalogue, _ = world
    protocol = describe_truth(truth, catalogue)
    assert protocol.facts["right_videos_seen_before"] == 0
    seen = replace(catalogue, history_video=np.full(6, 3))
    [line] = [w for w in describe_truth(truth, seen).warnings if "overlap" in w]
    assert "1 of 3 right videos were shown to the user before" in line
