"""Peers of the ranker on tables of its own inputs: LightGBM, DeepCTR-Torch and torch-rechub, as they ship.

Each takes the tables that ``ranker_features.tabulate`` makes and gives back scores per task for every test
table. LightGBM and DeepFM train one model per task, MMoE and PLE one for all; every one is stopped on
validation. The libraries are no requirement of the project: install those you want to compare with.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ranker_features import label

from training.ranking_validation import auc

#: Columns, their names, which are categories, labels: see ``ranker_features.tabulate``.
Tabulated = tuple[np.ndarray, list[str], list[int], dict[str, np.ndarray]]
Scores = dict[str, np.ndarray]
#: LightGBM: not tuned beyond what is usual for 150,000 rows; rounds are chosen on validation.
BOOSTING = {
    "metric": "auc", "learning_rate": 0.08, "num_leaves": 31, "min_data_in_leaf": 100, "max_bin": 127,
    "feature_fraction": 0.3, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 10, "num_threads": 1,
    "verbose": -1,
}  # fmt: skip
ROUNDS, PATIENCE = 400, 30
#: Of the networks: embedding width, batch, epochs at most, and epochs without a better validation AUC.
DIM, BATCH, EPOCHS, WAIT = 8, 1024, 5, 1


@dataclass(frozen=True, slots=True)
class NetworkInputs:
    """Categories int64 [N, C] below ``sizes``, and statistics float32 [N, F] of mean 0 and variance 1."""

    names: list[str]
    sizes: list[int]
    split: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def network_inputs(train: Tabulated, others: list[Tabulated]) -> NetworkInputs:
    """How a table becomes categories and scaled statistics; scales are of the training rows."""
    table, names, categories, _ = train
    numbers = [place for place in range(len(names)) if place not in set(categories)]
    mean, scale = table[:, numbers].mean(0), table[:, numbers].std(0).clip(1e-3)
    sizes = [
        int(max(part[0][:, place].max(initial=0) for part in (train, *others))) + 1 for place in categories
    ]

    def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = ((rows[:, numbers] - mean) / scale).clip(-5, 5)
        return rows[:, categories].astype(np.int64), scaled.astype(np.float32)

    return NetworkInputs([names[place] for place in categories], sizes, split)


def lightgbm(
    train: Tabulated, held: Tabulated, tests: list[Tabulated], tasks: list[str], seed: int
) -> list[Scores]:
    """One boosted model per task; the task ``watch`` is the median of watch time in ms."""
    import lightgbm as gbm

    scores: list[Scores] = [{} for _ in tests]
    for task in tasks:
        sets: list[gbm.Dataset] = []
        for table, _, _, columns in (train, held):
            wanted, known = label(columns, task) if task != "watch" else watch_target(columns)
            sets.append(gbm.Dataset(table[known], wanted[known], reference=sets[0] if sets else None))
        kind = {"objective": "regression_l1", "metric": "l1"} if task == "watch" else {"objective": "binary"}
        model = gbm.train(
            BOOSTING | kind | {"seed": seed}, sets[0], ROUNDS, valid_sets=sets[1:],
            callbacks=[gbm.early_stopping(PATIENCE, verbose=False)],
        )  # fmt: skip
        for found, test in zip(scores, tests, strict=True):
            said = model.predict(test[0], num_iteration=model.best_iteration)
            found[task] = np.asarray(said, np.float32)
        best = next(iter(model.best_score["valid_0"].items()))
        print(
            f"lightgbm {task}: {model.best_iteration} rounds, validation {best[0]} {best[1]:.4f}", flush=True
        )
    return scores


def watch_target(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Watch time in ms, whose median the absolute error asks for, and whether it is known."""
    return columns["watch_ms"].astype(np.float64), columns["watch_ms"] >= 0


def deepfm(
    train: Tabulated, held: Tabulated, tests: list[Tabulated], tasks: list[str], seed: int
) -> list[Scores]:
    """DeepCTR-Torch's DeepFM, one model per task."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DeepFM

    inputs = network_inputs(train, [held, *tests])
    scores: list[Scores] = [{} for _ in tests]

    def fed(rows: np.ndarray) -> list[np.ndarray]:
        categories, statistics = inputs.split(rows)
        return [*categories.T, statistics]

    for task in tasks:
        wide = train[0].shape[1] - len(inputs.names)
        columns = [
            *(SparseFeat(name, size, DIM) for name, size in zip(inputs.names, inputs.sizes, strict=True)),
            DenseFeat("statistics", wide),
        ]
        model = DeepFM(
            columns, columns, dnn_hidden_units=(256, 128), dnn_dropout=0.3, l2_reg_embedding=1e-4, seed=seed
        )
        model.compile("adam", "binary_crossentropy")
        best = _best_epoch(model, *_fitting(model, fed, train, held, task))
        print(f"deepfm {task}: validation auc {best:.4f}", flush=True)
        for found, test in zip(scores, tests, strict=True):
            found[task] = model.predict(fed(test[0]), 8192)[:, 0].astype(np.float32)
    return scores


def _fitting(
    model: Any, fed: Callable[[np.ndarray], list[np.ndarray]], train: Tabulated, held: Tabulated, task: str
) -> tuple[Callable[[], None], Callable[[], float]]:
    """One epoch of a DeepCTR-Torch model, and its validation AUC."""
    (true, known), (held_true, held_known) = label(train[3], task), label(held[3], task)
    wanted, held_rows = true[known].astype(np.float32), fed(held[0][held_known])

    def step() -> None:
        model.fit(fed(train[0][known]), wanted, batch_size=BATCH, epochs=1, verbose=0)

    def judge() -> float:
        said = model.predict(held_rows, 8192)[:, 0].astype(np.float64)
        return auc(said, held_true[held_known])

    return step, judge


def multi_task(
    kind: str, train: Tabulated, held: Tabulated, tests: list[Tabulated], tasks: list[str], seed: int
) -> list[Scores]:
    """torch-rechub's ``mmoe`` or ``ple``; rows with an unknown label are left out, as it knows none."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.manual_seed(seed)
    inputs = network_inputs(train, [held, *tests])

    def fed(rows: np.ndarray) -> dict[str, np.ndarray]:
        categories, statistics = inputs.split(rows)
        named = dict(zip(inputs.names, categories.T, strict=True))
        return named | {f"statistic_{place}": column for place, column in enumerate(statistics.T)}

    def labelled(part: Tabulated) -> tuple[dict[str, np.ndarray], np.ndarray]:
        found = [label(part[3], task) for task in tasks]
        known = np.logical_and.reduce([known for _, known in found])
        return fed(part[0][known]), np.stack([true[known] for true, _ in found], 1).astype(np.float32)

    wide = train[0].shape[1] - len(inputs.names)
    features = [
        *(SparseFeature(name, size, DIM) for name, size in zip(inputs.names, inputs.sizes, strict=True)),
        *(DenseFeature(f"statistic_{place}") for place in range(wide)),
    ]
    towers = [{"dims": [32], "dropout": 0.3} for _ in tasks]
    experts, types = {"dims": [128, 64], "dropout": 0.3}, ["classification"] * len(tasks)
    model = (
        MMOE(features, types, 3, experts, towers)
        if kind == "mmoe"
        else PLE(features, types, 1, 1, 1, experts, towers)
    )
    (rows, true), (held_rows, held_true) = labelled(train), labelled(held)
    batches, held_batches, _ = DataGenerator(rows, true).generate_dataloader(
        x_val=held_rows, y_val=held_true, x_test=held_rows, y_test=held_true, batch_size=BATCH
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = MTLTrainer(
            model, types, optimizer_params={"lr": 1e-3, "weight_decay": 1e-5}, model_path=folder
        )

        def judge() -> float:
            return float(np.mean(trainer.evaluate(model, held_batches)))

        best = _best_epoch(model, lambda: trainer.train_one_epoch(batches), judge)
    print(f"{kind}: mean validation auc {best:.4f}", flush=True)
    scores = []
    for test in tests:
        parts = []
        with torch.no_grad():
            for begin in range(0, len(test[0]), 8192):
                part = fed(test[0][begin : begin + 8192])
                parts.append(model({name: torch.from_numpy(x) for name, x in part.items()}).numpy())
        said = np.concatenate(parts).astype(np.float32)
        scores.append({task: said[:, place] for place, task in enumerate(tasks)})
    return scores


def _best_epoch(model: torch.nn.Module, step: Callable[[], None], judge: Callable[[], float]) -> float:
    """Train epoch by epoch; the model ends with the weights of the best validation AUC, which is returned."""
    best, waited, kept = -1.0, 0, copy.deepcopy(model.state_dict())
    for _ in range(EPOCHS):
        model.train()
        step()
        model.eval()
        reached = judge()
        if reached > best:
            best, waited, kept = reached, 0, copy.deepcopy(model.state_dict())
        else:
            waited += 1
            if waited > WAIT:
                break
    model.load_state_dict(kept)
    model.eval()
    return best
