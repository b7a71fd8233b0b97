"""The predictions table: which tasks it holds, refused where malformed, and every metric of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from data.errors import ContractError
from evaluation import classification, watch
from evaluation.arrays import Bools, Floats, Words
from evaluation.bootstrap import Estimate, UserSums, replicate, sum_estimates
from evaluation.classification import BinaryStats, binary_stats
from evaluation.ids import id_words
from evaluation.money import gmv_names, gmv_sums
from evaluation.resampling import binary_replicates, interval
from evaluation.tables import Kind, batches, check_columns, open_table, refuse_nulls
from evaluation.watch import WatchStats, watch_replicates, watch_stats

USER = {"user_id": Kind.id}
WATCH = {"predicted_watch_ms": Kind.number, "watch_ms": Kind.number}
MONEY = {
    "request_id": Kind.id, "video_id": Kind.id, "predicted_order_value_minor": Kind.number,
    "order_value_minor": Kind.number,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Predictions:
    """An opened predictions table: ``tasks`` have both ``p_<task>`` and ``label_<task>``."""

    name: str
    path: str
    table: ds.Dataset
    tasks: list[str]
    has_watch: bool
    has_money: bool
    warnings: list[str]

    def columns(self) -> list[str]:
        """Every column of the table."""
        return list(self.table.schema.names)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one predictions table gave: final estimates and what comparisons and plots need.

    ``replicates`` [B] per metric share their draws with any other table measured with the same seed
    over the same users. ``reliability`` holds per task rows of (mean probability, rate, rows).
    """

    estimates: dict[str, Estimate]
    binary: dict[str, BinaryStats]
    watch: WatchStats | None
    money: UserSums | None
    money_cutoffs: list[int]
    reliability: dict[str, list[tuple[float, float, int]]]
    warnings: list[str] = field(default_factory=list)


def open_predictions(name: str, path: str, key: str = "predictions") -> Predictions:
    """Open and check a predictions table; refuses one without any task, watch time or order value."""
    table = open_table(key, path, USER)
    names = set(table.schema.names)
    tasks = [n.removeprefix("p_") for n in table.schema.names if n.startswith("p_")]
    whole = [task for task in tasks if f"label_{task}" in names]
    warnings = [f"{name}: p_{t} has no label_{t} and was not measured" for t in tasks if t not in whole]
    required = {f"p_{task}": Kind.number for task in whole} | {f"label_{task}": Kind.label for task in whole}
    if watch_found := set(WATCH) <= names:
        required |= WATCH
    if money_found := set(MONEY) <= names:
        required |= MONEY
    if not (whole or watch_found or money_found):
        raise ContractError(
            f"{key}={path}: nothing to measure; it needs p_<task> with label_<task>, or "
            "predicted_watch_ms with watch_ms"
        )
    for file in table.files:
        check_columns(key, Path(file), table.schema, required)
    return Predictions(name, path, table, whole, watch_found, money_found, warnings)


def measure(
    data: Predictions, cutoffs: list[int], *, replicates: int, seed: int, where: ds.Expression | None = None
) -> Measured:
    """Every metric that the table allows, over the rows that ``where`` keeps."""
    rows = data.table.count_rows()
    binary = {task: binary_stats(_task(data, task, where), rows) for task in data.tasks}
    watched = watch_stats(_watch(data, where), rows) if data.has_watch else None
    money: UserSums | None = None
    used: list[int] = []
    if data.has_money:
        money, used = gmv_sums(_money(data, where), rows, sorted(set(cutoffs)), seed)
    found = Measured({}, binary, watched, money, used, {task: _reliability(s) for task, s in binary.items()})
    draws = prediction_replicates([found], replicates=replicates, seed=seed)[0]
    for name, draw_B in draws.items():
        found.estimates[name] = _estimate(found, name, draw_B)
    if money is not None:
        exact = sum_estimates(money, replicates=replicates, seed=seed)
        found.estimates.update(zip(gmv_names(used), exact, strict=True))
    found.warnings.extend(_doubts(data.name, found))
    return found


def prediction_replicates(models: list[Measured], *, replicates: int, seed: int) -> list[dict[str, Floats]]:
    """Bootstrap replicates of the metrics that all ``models`` have, on the same resamples of users."""
    result: list[dict[str, Floats]] = [{} for _ in models]
    for task in models[0].binary:
        if all(task in model.binary for model in models):
            found = binary_replicates([model.binary[task] for model in models], replicates, seed)
            for mine, draws in zip(result, found, strict=True):
                mine.update({f"{name}/{task}": draw_B for name, draw_B in draws.items()})
    watched = [model.watch for model in models if model.watch is not None]
    if len(watched) == len(models):
        for mine, draws in zip(result, watch_replicates(watched, replicates, seed), strict=True):
            mine.update({f"{name}/watch": draw_B for name, draw_B in draws.items()})
    if all(model.money is not None for model in models):
        for mine, model in zip(result, models, strict=True):
            assert model.money is not None
            draws_BM = replicate(model.money, replicates, seed)
            mine.update(zip(gmv_names(model.money_cutoffs), draws_BM.T, strict=True))
    return result


def _estimate(found: Measured, name: str, draw_B: Floats) -> Estimate:
    kind, _, task = name.partition("/")
    if not task:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    if task == "watch" and found.watch is not None and task not in found.binary:
        return interval(found.watch.exact[kind], draw_B, found.watch.users)
    stats = found.binary[task]
    n = stats.users_of_both_classes if kind == "gauc" else stats.users
    return interval(stats.exact[kind], draw_B, n, centre=kind == "ece")


def _task(data: Predictions, task: str, where: ds.Expression | None) -> Iterator[tuple[Words, Floats, Bools]]:
    score, label = f"p_{task}", f"label_{task}"
    for batch in _rows(data, ["user_id", score, label], label, where):
        score_N = _numbers(data, batch, score)
        outside = ~((score_N >= 0) & (score_N <= 1))
        if outside.any():
            value = score_N[int(np.argmax(outside))]
            raise ContractError(
                f"{_where(data)}: {score} holds {value}, must be in [0, 1]; NaN is not a prediction"
            )
        yield (
            id_words(batch.column("user_id")),
            score_N,
            batch.column(label).to_numpy(zero_copy_only=False).astype(bool),
        )


def _watch(data: Predictions, where: ds.Expression | None) -> Iterator[tuple[Words, Floats, Floats]]:
    for batch in _rows(data, ["user_id", *WATCH], "watch_ms", where):
        columns = [_numbers(data, batch, name) for name in WATCH]
        _finite(data, "predicted_watch_ms", columns[0])
        yield id_words(batch.column("user_id")), columns[0], columns[1]


def _money(
    data: Predictions, where: ds.Expression | None
) -> Iterator[tuple[Words, Words, Words, Floats, Floats]]:
    names = ["user_id", *MONEY] + (["currency"] if "currency" in data.columns() else [])
    currencies: set[str] = set()
    for batch in _rows(data, names, "order_value_minor", where):
        if "currency" in names:
            currencies |= {str(c) for c in pc.unique(batch.column("currency")).to_pylist() if c is not None}
            if len(currencies) > 1:
                found = ", ".join(sorted(currencies))
                raise ContractError(
                    f"{_where(data)}: currency mixes {found}; convert to one before evaluating"
                )
        predicted_N, ordered_N = (_numbers(data, batch, name) for name in list(MONEY)[2:])
        _finite(data, "predicted_order_value_minor", predicted_N)
        words = [id_words(batch.column(name)) for name in ("request_id", "user_id", "video_id")]
        yield words[0], words[1], words[2], predicted_N, ordered_N


def _rows(
    data: Predictions, names: list[str], label: str, where: ds.Expression | None
) -> Iterator[pa.RecordBatch]:
    """Batches of the rows whose ``label`` is known; any other column must be known there."""
    for batch in batches("predictions", data.table, names, where):
        kept = batch
        if batch.column(label).null_count:
            kept = batch.filter(batch.column(label).is_valid())
        refuse_nulls(
            "predictions", data.table, kept, [name for name in names if name not in (label, "currency")]
        )
        if kept.num_rows:
            yield kept


def _numbers(data: Predictions, batch: pa.RecordBatch, name: str) -> Floats:
    numbers: Floats = batch.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _finite(data: Predictions, name: str, value_N: Floats) -> None:
    if not np.isfinite(value_N).all():
        raise ContractError(
            f"{_where(data)}: column {name} has NaN or infinity; a prediction is a finite number"
        )


def _where(data: Predictions) -> str:
    return f"predictions={data.path}"


def _reliability(stats: BinaryStats) -> list[tuple[float, float, int]]:
    bin_Q3: Any = stats.bin_GQ3.sum(axis=0)
    return [(p / n, positives / n, int(n)) for n, positives, p in bin_Q3.tolist() if n > 0]


def _doubts(name: str, found: Measured) -> list[str]:
    lines = []
    for task, stats in found.binary.items():
        if stats.rows == 0:
            lines.append(f"{name}: label_{task} is unknown in every row; nothing was measured")
        elif stats.positives in (0, stats.rows):
            lines.append(
                f"{name}: label_{task} is the same in all {stats.rows:,} known rows; AUC and NE are undefined"
            )
        elif len(stats.curve_GK2[0]) == 1:
            lines.append(f"{name}: p_{task} is the same in every row; is the model collapsed?")
        elif stats.exact["auc"] > 0.99:
            lines.append(
                f"{name}: auc/{task} is {stats.exact['auc']:.4f}; look for the label among the features"
            )
        if stats.auc_error > 5e-5:
            lines.append(f"{name}: auc/{task} is exact to ±{stats.auc_error:.1g} (scores counted in bins)")
    if found.watch is not None and found.watch.xauc_error > 5e-5:
        lines.append(f"{name}: xauc/watch is exact to ±{found.watch.xauc_error:.1g} (pairs counted in bins)")
    return lines


ORDER = [*classification.NAMES, *watch.NAMES]
