"""Taobao's shopping funnel: the ranker against one ranker per step and LightGBM per step, on an unseen day.

    python benchmarks/ranker_taobao.py DATASET WORK [train|report]

DATASET is what ``shopreel import source=taobao`` wrote. Its log has no impressions: here whatever a user
touched on a day is one example, a step is true where it happened that day and false where it did not, and
a history ends with the day before. ``train`` writes the datasets into WORK, prepares and trains; ``report``
prints AUC, normalised entropy and ECE on the last day.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from ranker_features import label, open_features, tabulate

import shopreel
from data.dataset import Dataset, read_info, write_table, writing_dataset
from data.prepared import Prepared
from data.ranking_loader import RankingLoader
from models.calibration import calibration_error, normalised_entropy
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker
from training.ranking_validation import auc

STEPS = ("product_click", "add_to_cart", "purchase")
SPLIT = ("split.validation=2019-06-16", "split.test=2019-06-17", "split.end=2019-06-18")
SEEDS = (1, 2, 3)
SHIFT_MS, DAY_MS = 8 * 3_600_000, 86_400_000
SETTINGS = {
    "objective": "binary", "metric": "auc", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 50,
    "feature_fraction": 0.5, "num_threads": 1, "verbose": -1,
}  # fmt: skip


def write_funnel(source: Path, out: Path, steps: tuple[str, ...]) -> None:
    """One example per user, product and day; labels other than ``steps`` are left unknown."""
    dataset = Dataset(source, read_info(source))
    rows = dataset.read("events")
    day_ms = (rows["event_time"].cast(pa.int64()).to_numpy() // 1000 + SHIFT_MS) // DAY_MS * DAY_MS - SHIFT_MS
    table = pa.table(
        {
            "user_id": rows["user_id"], "video_id": rows["video_id"], "product_id": rows["product_id"],
            "event_time": pa.array(day_ms * 1000).cast(pa.timestamp("us", "UTC")),
            **{step: rows[step].fill_null(False).cast(pa.int8()) for step in STEPS},
        }
    )  # fmt: skip
    keys = ["user_id", "video_id", "product_id", "event_time"]
    grouped = table.group_by(keys, use_threads=False).aggregate([(step, "max") for step in STEPS])
    columns = {key: grouped[key] for key in keys}
    columns |= {step: grouped[f"{step}_max"].cast(pa.bool_()) for step in steps}
    info = replace(dataset.info, real_time=True, name="taobao-funnel", tasks=list(steps))
    with writing_dataset(out, info, overwrite=True) as scratch:
        write_table(scratch, "events", pa.table(columns))
        for name in ("videos", "products", "users"):
            write_table(scratch, name, dataset.read(name))


def train(source: Path, work: Path) -> None:
    """Datasets, prepared data and runs: of all steps together and of each alone."""
    for name in ("together", *STEPS):
        steps = STEPS if name == "together" else (name,)
        write_funnel(source, work / name / "dataset", steps)
        shopreel.run_command(
            "prepare",
            [f"dataset={work / name}/dataset", f"out={work / name}/prepared", "overwrite=true", *SPLIT],
        )
        for seed in SEEDS:
            shopreel.run_command(
                "train",
                ["model=ranker", f"prepared={work / name}/prepared", f"out={work / name}/run{seed}",
                 "overwrite=true", f"seed={seed}", "threads=1", "model.batch_size=256"],
            )  # fmt: skip


def report(work: Path) -> None:
    """Test metrics of every model, the mean over seeds with the widest distance from it."""
    import lightgbm

    print(f"{'step':14} {'model':22} auc            ne             ece")
    tables = None
    for step in STEPS:
        for name in ("together", step):
            prepared = Prepared.open(work / name / "prepared")
            measured = [_ranker(prepared, work / name / f"run{seed}", step) for seed in SEEDS]
            _line(step, "ranker, all steps" if name == "together" else "ranker, this step alone", measured)
        prepared = Prepared.open(work / "together" / "prepared")
        if tables is None:
            tables = [tabulate(prepared, open_features(prepared), split, 0) for split in range(3)]
        sets = []
        for table, _, _, columns in tables[:2]:
            true, known = label(columns, step)
            sets.append(lightgbm.Dataset(table[known], true[known], reference=sets[0] if sets else None))
        true, known = label(tables[2][3], step)
        measured = []
        for seed in SEEDS:
            model = lightgbm.train(
                SETTINGS | {"seed": seed}, sets[0], 400, valid_sets=sets[1:],
                callbacks=[lightgbm.early_stopping(40, verbose=False)],
            )  # fmt: skip
            said = np.asarray(model.predict(tables[2][0], num_iteration=model.best_iteration))
            measured.append(_measures(said[known], true[known]))
        _line(step, "LightGBM", measured)


def _ranker(prepared: Prepared, run: Path, step: str) -> tuple[float, float, float]:
    parts = load_ranker(
        run / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table,
    )  # fmt: skip
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    loader = RankingLoader(prepared, parts.features, split=2, batch_size=4096, seed=0, shuffle=False)
    said, true = [], []
    for batch in loader.epoch():
        wanted, known = label({"true": batch.true_B, "known": batch.known_B}, step)
        said.append(scorer.predict(batch).probabilities[step][known])
        true.append(wanted[known])
    return _measures(np.concatenate(said).astype(np.float64), np.concatenate(true))


def _measures(said: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    return auc(said, true), normalised_entropy(said, true), calibration_error(said, true)


def _line(step: str, model: str, measured: list[tuple[float, float, float]]) -> None:
    mean = np.mean(measured, axis=0)
    spread = np.abs(np.array(measured) - mean).max(axis=0)
    numbers = "  ".join(f"{m:.4f} ± {s:.4f}" for m, s in zip(mean, spread, strict=True))
    print(f"{step:14} {model:22} {numbers}", flush=True)


if __name__ == "__main__":
    if sys.argv[3] == "train":
        train(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        report(Path(sys.argv[2]))
