"""KuaiRand: the trained ranker and LightGBM, one model per task, on the same rows and the same inputs.

    python benchmarks/ranker_kuairand.py PREPARED RUN OUT [train_days]

Both are fitted on the training split and stopped on validation; the test split is read once, at the end.
Writes ``OUT/ranker.parquet`` and ``OUT/lightgbm.parquet`` for ``shopreel evaluate predictions=… baseline=…``.
"""

import sys
import time
from pathlib import Path

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ranker_features import AtSplitStart, label, open_features, tabulate

from data.prepared import Prepared
from data.ranking_loader import RankingLoader
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker

TASKS = ("click", "long_view", "like", "profile_view")
#: Not tuned beyond what is usual for 150,000 rows; rounds are chosen on validation.
SETTINGS = {
    "objective": "binary", "metric": "auc", "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 100,
    "feature_fraction": 0.5, "bagging_fraction": 0.8, "bagging_freq": 1, "num_threads": 1, "verbose": -1,
    "seed": 1,
}  # fmt: skip
ROUNDS, PATIENCE = 400, 30


def main(prepared_path: str, run: str, out: str, train_days: int = 9) -> None:
    """Predict the test split by both and write the tables."""
    prepared, target = Prepared.open(prepared_path), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    ranker_predictions(prepared, Path(run), target / "ranker.parquet", RankingLoader)
    ranker_predictions(prepared, Path(run), target / "ranker_at_split_start.parquet", AtSplitStart)
    lightgbm_predictions(prepared, target / "lightgbm.parquet", train_days)


def ranker_predictions(
    prepared: Prepared, run: Path, file: Path, loading: type[RankingLoader] = RankingLoader
) -> None:
    """Test impressions scored by the run's portable model."""
    parts = load_ranker(
        run / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        users=len(prepared.users),
    )  # fmt: skip
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    loader = loading(prepared, parts.features, split=2, batch_size=4096, seed=0, shuffle=False)
    started, tables = time.monotonic(), []
    for batch in loader.epoch():
        said = scorer.predict(batch)
        labels = {"true": batch.true_B, "known": batch.known_B}
        scores = {task: said.probabilities[task] for task in TASKS}
        table = as_table(prepared, batch.requests.user_row, batch.video_B, scores, labels)
        if said.watch_ms is not None:
            table = table.append_column("predicted_watch_ms", pa.array(said.watch_ms))
            table = table.append_column("watch_ms", pa.array(batch.watch_ms_B, mask=batch.watch_ms_B < 0))
        tables.append(table)
    pq.write_table(pa.concat_tables(tables), file)
    print(f"ranker: {sum(t.num_rows for t in tables):,} rows in {time.monotonic() - started:.0f} s")


def lightgbm_predictions(prepared: Prepared, file: Path, train_days: int) -> None:
    """Test impressions scored by one boosted model per task."""
    features = open_features(prepared)
    blocks = [tabulate(prepared, features, split, train_days) for split in range(3)]
    scores, started = {}, time.monotonic()
    for task in TASKS:
        sets = []
        for table, _, _, columns in blocks[:2]:
            true, known = label(columns, task)
            sets.append(lightgbm.Dataset(table[known], true[known], reference=sets[0] if sets else None))
        model = lightgbm.train(
            SETTINGS, sets[0], ROUNDS, valid_sets=sets[1:],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )  # fmt: skip
        scores[task] = model.predict(blocks[2][0], num_iteration=model.best_iteration).astype(np.float32)
        best = model.best_score["valid_0"]["auc"]
        print(f"lightgbm {task}: {model.best_iteration} rounds, validation auc {best:.4f}", flush=True)
    print(f"lightgbm: {time.monotonic() - started:.0f} s for {len(TASKS)} tasks")
    columns = blocks[2][3]
    pq.write_table(as_table(prepared, columns["user_row"], columns["video"], scores, columns), file)


def as_table(
    prepared: Prepared, user: np.ndarray, video: np.ndarray, scores: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
) -> pa.Table:  # fmt: skip
    """A predictions table; labels are null where unknown."""
    users = prepared.users.ids(user)
    columns = {
        "request_id": pa.array([f"test:{name}" for name in users.to_pylist()]),
        "user_id": users,
        "video_id": prepared.catalogue.ids(video),
    }
    for task, score in scores.items():
        true, known = label(labels, task)
        columns |= {f"p_{task}": pa.array(score), f"label_{task}": pa.array(true, mask=~known)}
    return pa.table(columns)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
