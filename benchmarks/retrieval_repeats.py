"""Recall of products that a user had met before the test day, and of new ones, towers beside counting models.

    python benchmarks/retrieval_repeats.py BUNDLE DATASET BASELINE_RUN … [k=50]

Every user of the test split asks once, as it begins. *New* are videos that the user had never acted on;
their recall is that of lists without what was met before, as the feed's are. *Met* are the others; their
recall is that of lists with nothing left out, beside which stands a list of what was met last. *Unknown* are
those among the new that the training split never showed to anybody.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.history import UserRequest
from models.baselines import Baseline
from models.bundle import Bundle
from serving.held_out import open_log, user_requests
from serving.trained_baseline import top

BATCH = 256
NOTHING = np.zeros(0, np.int64)
Scorer = Callable[[list[UserRequest]], np.ndarray]


def truths(bundle: Bundle, dataset: str) -> dict[int, np.ndarray]:
    """Catalogue rows acted on in the test split by user row."""
    begin, end = bundle.prepared["split"]["test_ms"], bundle.prepared["split"]["end_ms"]
    events = open_log(dataset).scan("events").to_table(["user_id", "video_id", "event_time"])
    time_ms = events["event_time"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
    kept = pc.greater_equal(time_ms, begin)
    if end is not None:
        kept = pc.and_(kept, pc.less(time_ms, end))
    events = events.filter(kept)
    user = bundle.users.rows(events["user_id"].combine_chunks())
    video = bundle.catalogue.rows(events["video_id"].combine_chunks())
    pairs = np.unique(np.stack([user, video], axis=1)[video > 0], axis=0)
    cuts = np.flatnonzero(np.diff(pairs[:, 0])) + 1
    return {int(part[0, 0]): part[:, 1] for part in np.split(pairs, cuts) if len(part)}


def last_met(users: list[UserRequest], size: int) -> np.ndarray:
    """Scores ``[U, N + 1]``: the later a video was met the higher."""
    score_UN = np.full((len(users), size), -np.inf, np.float32)
    for place, user in enumerate(users):
        score_UN[place, user.history.video_row] = np.arange(len(user.history.video_row))
    return score_UN


def main(bundle_path: str, dataset: str, *words: str) -> None:
    """Ask, count, print a table."""
    k = next((int(word.partition("=")[2]) for word in words if word.startswith("k=")), 50)
    bundle = Bundle.open(bundle_path)
    vectors = np.asarray(bundle.video_vectors)
    rankers: dict[str, Scorer] = {"towers": lambda users: bundle.encoder.encode(users) @ vectors.T}
    for run in (word for word in words if "=" not in word):
        model = Baseline.load(Path(run) / "model")

        def count(users: list[UserRequest], model: Baseline = model) -> np.ndarray:
            return model.scores([model.engaged(user.history) for user in users])

        rankers[model.kind.value] = count
    rankers["met last"] = lambda users: last_met(users, len(vectors))
    truth = truths(bundle, dataset)
    recall: dict[str, dict[str, list[float]]] = {
        name: {"new": [], "unknown": [], "met": []} for name in rankers
    }
    batches = user_requests(
        bundle, open_log(dataset), "test", gain=None, k=k, rules=False, memory_limit_gb=2.0,
        history_steps=1_000_000,
    )  # fmt: skip
    asked = [request for batch in batches for request in batch.requests]
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        said = {name: score([request.user for request in part]) for name, score in rankers.items()}
        for place, request in enumerate(part):
            right = truth.get(int(request.user.user_row), NOTHING)
            seen = np.asarray(request.exclude_rows)
            new, met = np.setdiff1d(right, seen), np.intersect1d(right, seen)
            unknown = new[bundle.video_train_count[new] == 0]
            for name, score_UN in said.items():
                shown = top(score_UN[place].astype(np.float32), seen, k).video_row
                whole = top(score_UN[place].astype(np.float32), NOTHING, k).video_row
                for kind, rows, ranked in (
                    ("new", new, shown),
                    ("unknown", unknown, shown),
                    ("met", met, whole),
                ):
                    if len(rows):
                        recall[name][kind].append(float(np.isin(rows, ranked).mean()))
    users = {kind: len(values) for kind, values in recall["towers"].items()}
    print(f"recall@{k}; users with such a right video: {users}")
    for name, kinds in recall.items():
        print(
            f"{name:12}"
            + "".join(f"  {kind} {np.mean(values):.4f}" for kind, values in kinds.items() if values)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
