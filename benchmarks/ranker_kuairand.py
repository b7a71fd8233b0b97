"""KuaiRand: trained rankers and LightGBM, one model per task, on the same rows and the same inputs.

    python benchmarks/ranker_kuairand.py PREPARED OUT [RUN …] [lightgbm]

Everything is fitted on the training split and stopped on validation; the test split is read at the end,
twice: with each user's history up to the start of the test day (``frozen``: the candidates of one request
share one history) and up to each impression (``live``). Writes ``OUT/<model>-<history>.parquet`` for
``shopreel evaluate predictions=…`` and prints AUC / GAUC of every task, MAE and XAUC of watch
time, of whose distribution both the ranker and LightGBM predict the median.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ranker_features import AtSplitStart, label, open_features, tabulate

from data.prepared import Prepared
from data.ranking_loader import RankingLoader
from evaluation.classification import user_aucs
from evaluation.watch import xauc
from models.calibration import calibration_error
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker
from training.ranking_validation import auc

TASKS = ("click", "long_view", "like", "profile_view")
LOADING: dict[str, type[RankingLoader]] = {"frozen": AtSplitStart, "live": RankingLoader}
TRAIN_DAYS = 9
#: Not tuned beyond what is usual for 150,000 rows; rounds are chosen on validation.
SETTINGS = {
    "metric": "auc", "learning_rate": 0.08, "num_leaves": 31, "min_data_in_leaf": 100, "max_bin": 127,
    "feature_fraction": 0.3, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 10, "num_threads": 1,
    "verbose": -1, "seed": 1,
}  # fmt: skip
ROUNDS, PATIENCE = 400, 30


def main(prepared_path: str, out: str, *models: str) -> None:
    """Predict the test split by every model and write and print what each said."""
    prepared, target = Prepared.open(prepared_path), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    for model in models:
        if model == "lightgbm":
            lightgbm_predictions(prepared, target)
            continue
        for history, loading in LOADING.items():
            table = ranker_predictions(prepared, Path(model), loading)
            report(table, target / f"{Path(model).name}-{history}.parquet")


def ranker_predictions(prepared: Prepared, run: Path, loading: type[RankingLoader]) -> pa.Table:
    """Test impressions scored by the run's portable model."""
    parts = load_ranker(
        run / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table,
    )  # fmt: skip
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    loader = loading(prepared, parts.features, split=2, batch_size=4096, seed=0, shuffle=False)
    tables = []
    for batch in loader.epoch():
        said = scorer.predict(batch)
        labels = {"true": batch.true_B, "known": batch.known_B}
        scores = {task: said.probabilities[task] for task in TASKS}
        table = as_table(prepared, batch.requests.user_row, batch.video_B, scores, labels)
        watch = scorer.median_watch_ms(batch)
        if watch is not None:
            table = table.append_column("predicted_watch_ms", pa.array(watch))
            table = table.append_column("watch_ms", pa.array(batch.watch_ms_B, mask=batch.watch_ms_B < 0))
        tables.append(table)
    return pa.concat_tables(tables)


def lightgbm_predictions(prepared: Prepared, target: Path) -> None:
    """Test impressions scored by one boosted model per task and one of the log of watch time."""
    import lightgbm

    features = open_features(prepared)
    train, held = (tabulate(prepared, features, split, TRAIN_DAYS) for split in (0, 1))
    tests = {
        history: tabulate(prepared, features, 2, TRAIN_DAYS, loading) for history, loading in LOADING.items()
    }
    scores: dict[str, dict[str, np.ndarray]] = {history: {} for history in tests}
    for task in (*TASKS, "watch"):
        started, sets = time.monotonic(), []
        for table, _, _, columns in (train, held):
            wanted, known = label(columns, task) if task != "watch" else watch_target(columns)
            sets.append(lightgbm.Dataset(table[known], wanted[known], reference=sets[0] if sets else None))
        settings = SETTINGS | (
            {"objective": "regression_l1", "metric": "l1"} if task == "watch" else {"objective": "binary"}
        )
        model = lightgbm.train(
            settings, sets[0], ROUNDS, valid_sets=sets[1:],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )  # fmt: skip
        for history, test in tests.items():
            said = model.predict(test[0], num_iteration=model.best_iteration)
            scores[history][task] = np.asarray(said, np.float32)
        best = next(iter(model.best_score["valid_0"].items()))
        print(f"lightgbm {task}: {model.best_iteration} rounds, validation {best[0]} {best[1]:.4f}, "
              f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    for history, test in tests.items():
        columns = test[3]
        watch = scores[history].pop("watch")
        table = as_table(prepared, columns["user_row"], columns["video"], scores[history], columns)
        table = table.append_column("predicted_watch_ms", pa.array(watch))
        table = table.append_column("watch_ms", pa.array(columns["watch_ms"], mask=columns["watch_ms"] < 0))
        report(table, target / f"lightgbm-{history}.parquet")


def watch_target(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Watch time in ms, whose median the absolute error asks for, and whether it is known."""
    return columns["watch_ms"].astype(np.float64), columns["watch_ms"] >= 0


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


def report(table: pa.Table, file: Path) -> None:
    """Write a predictions table and print its metrics in one line."""
    pq.write_table(table, file)
    user = table["user_id"].to_numpy().astype(np.uint64)
    said = []
    for task in TASKS:
        known = table[f"label_{task}"].is_valid().to_numpy()
        true = table[f"label_{task}"].fill_null(False).to_numpy(zero_copy_only=False)[known]
        score = table[f"p_{task}"].to_numpy()[known].astype(np.float64)
        said.append(f"{task} {auc(score, true):.4f}/{gauc(user[known], score, true):.4f} "
                    f"ece {calibration_error(score, true):.4f}")  # fmt: skip
    if "watch_ms" in table.column_names:
        known = table["watch_ms"].is_valid().to_numpy()
        watched = table["watch_ms"].fill_null(0).to_numpy()[known].astype(np.float64)
        predicted = table["predicted_watch_ms"].to_numpy()[known].astype(np.float64)
        error = np.abs(predicted - watched).mean() / 1000
        said.append(f"watch mae {error:.2f} s xauc {xauc(predicted, watched):.4f}")
    print(f"{file.stem}: " + " · ".join(said), flush=True)


def gauc(user_N: np.ndarray, score_N: np.ndarray, true_N: np.ndarray) -> float:
    """Mean AUC over users who have both outcomes, weighted by their impressions."""
    _, rows_U, _, auc_U = user_aucs(user_N, score_N, true_N)
    both_U = np.isfinite(auc_U)
    return float(np.average(auc_U[both_U], weights=rows_U[both_U]))


if __name__ == "__main__":
    main(*sys.argv[1:])
