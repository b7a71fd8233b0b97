"""KuaiRand: trained rankers and peers, on the same rows and the same inputs.

    python benchmarks/ranker_kuairand.py PREPARED OUT [RUN …] [lightgbm deepfm mmoe ple] [seed=1]

Everything is fitted on the training split and stopped on validation; the test split is read at the end,
twice: with each user's history up to the start of the test day (``frozen``: the candidates of one request
share one history) and up to each impression (``live``). Writes ``OUT/<model>-<history>.parquet`` for
``shopreel evaluate predictions=…`` and prints AUC / GAUC of every task, MAE and XAUC of watch
time, of whose distribution both the ranker and LightGBM predict the median. The mean of all runs' scores
is one more row where several runs are given.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ranker_features import AtSplitStart, label, open_features, tabulate
from ranker_peers import Scores, deepfm, lightgbm, multi_task

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
PEERS = ("lightgbm", "deepfm", "mmoe", "ple")


def main(prepared_path: str, out: str, *arguments: str) -> None:
    """Predict the test split by every model and write and print what each said."""
    prepared, target = Prepared.open(prepared_path), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    seed = next((int(word.removeprefix("seed=")) for word in arguments if word.startswith("seed=")), 1)
    models = [word for word in arguments if not word.startswith("seed=")]
    peer_predictions(prepared, target, [model for model in models if model in PEERS], seed)
    runs = [Path(model) for model in models if model not in PEERS]
    for history, loading in LOADING.items():
        tables = [ranker_predictions(prepared, run, loading) for run in runs]
        for run, table in zip(runs, tables, strict=True):
            report(table, target / f"{run.name}-{history}.parquet")
        if len(runs) > 1:
            report(mean_of(tables), target / f"mean of {len(runs)}-{history}.parquet")


def mean_of(tables: list[pa.Table]) -> pa.Table:
    """The first table with every probability the mean over all."""
    found = tables[0]
    for place, name in enumerate(found.column_names):
        if name.startswith("p_"):
            mean = np.mean([table[name].to_numpy() for table in tables], axis=0)
            found = found.set_column(place, name, pa.array(mean))
    return found


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


def peer_predictions(prepared: Prepared, target: Path, peers: list[str], seed: int) -> None:
    """Test impressions scored by peers on tables of the ranker's inputs."""
    if not peers:
        return
    features = open_features(prepared)
    train, held = (tabulate(prepared, features, split, TRAIN_DAYS) for split in (0, 1))
    tests = [tabulate(prepared, features, 2, TRAIN_DAYS, loading) for loading in LOADING.values()]
    for peer in peers:
        scores: list[Scores] = []
        match peer:
            case "lightgbm":
                scores = lightgbm(train, held, tests, [*TASKS, "watch"], seed)
            case "deepfm":
                scores = deepfm(train, held, tests, [*TASKS], seed)
            case _:
                scores = multi_task(peer, train, held, tests, [*TASKS], seed)
        for history, (_, _, _, columns), said in zip(LOADING, tests, scores, strict=True):
            watch = said.pop("watch", None)
            table = as_table(prepared, columns["user_row"], columns["video"], said, columns)
            if watch is not None:
                table = table.append_column("predicted_watch_ms", pa.array(watch))
                known = columns["watch_ms"] >= 0
                table = table.append_column("watch_ms", pa.array(columns["watch_ms"], mask=~known))
            report(table, target / f"{peer}-seed{seed}-{history}.parquet")


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
