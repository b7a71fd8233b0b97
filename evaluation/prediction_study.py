"""Everything that predictions tables say: metrics per model, comparisons, slices."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from evaluation.bootstrap import Estimate
from evaluation.comparison import compare_replicates, verdict
from evaluation.config import EvaluateConfig
from evaluation.findings import comparison_findings
from evaluation.inputs import is_predictions, named_paths
from evaluation.predictions import Measured, Predictions, measure, open_predictions, prediction_replicates
from evaluation.ranking_study import Comparison
from evaluation.report import Report
from evaluation.slices import simpson
from evaluation.value_curve import value_curve

#: A column of the predictions table with more values than this is not cut.
MAX_SLICE_VALUES = 12


def open_all(value: Any) -> dict[str, Predictions]:
    """The tables of ``predictions=`` by name, opened and checked; empty for None."""
    named = [] if value is None else named_paths(value)
    return {name: open_predictions(name, path) for name, path in named}


def study_predictions(config: EvaluateConfig, opened: dict[str, Predictions], report: Report) -> None:
    """Measure every predictions table into ``report`` and compare them with the baseline."""
    old = _baseline(config, opened)
    found: dict[str, Measured] = {}
    for name, data in opened.items():
        found[name] = measure(data, config.cutoffs, replicates=config.replicates, seed=config.seed)
        report.predictions[name] = found[name].estimates
        report.reliability[name] = found[name].reliability
        curve = value_curve(data, replicates=config.replicates, seed=config.seed)
        if curve:
            report.value_curves[name] = curve
        report.protocol.warnings += [*data.warnings, *found[name].warnings]
        report.protocol.facts.setdefault("predictions", {})[name] = {
            "path": data.path,
            "rows": data.table.count_rows(),
            "known_labels": {task: stats.rows for task, stats in found[name].binary.items()},
        }
    columns = _slice_columns(config, next(iter(opened.values())))
    for name, data in opened.items():
        report.prediction_slices[name] = {
            column: {label: _slice(config, data, where) for label, where in values.items()}
            for column, values in columns.items()
        }
    for name in opened:
        if old is not None and name != old:
            report.comparisons.append(_compare(config, name, old, found, report))
            report.findings += comparison_findings(report.comparisons[-1])


def _baseline(config: EvaluateConfig, opened: dict[str, Predictions]) -> str | None:
    """The name of the table to compare with; a table given as ``baseline=`` is opened here."""
    value = config.baseline
    if isinstance(value, str):
        if value in opened:
            return value
        place = Path(value) / "predictions.parquet" if Path(value).is_dir() else Path(value)
        if is_predictions(place):
            name = "baseline" if "baseline" not in opened else f"baseline/{place.stem}"
            opened[name] = open_predictions(name, str(place), key="baseline")
            return name
        return None
    return next(iter(opened)) if value is None and len(opened) > 1 else None


def _compare(
    config: EvaluateConfig, new: str, old: str, found: dict[str, Measured], report: Report
) -> Comparison:
    pair = [found[new], found[old]]
    draws = prediction_replicates(pair, replicates=config.replicates, seed=config.seed)
    differences = compare_replicates(
        pair[0].estimates, pair[1].estimates, draws[0], draws[1], correction=config.correction
    )
    primary = differences[0].metric if differences else ""
    by_column: dict[str, list[float]] = {}
    for column, values in report.prediction_slices[new].items():
        other = report.prediction_slices[old].get(column, {})
        deltas = [
            values[v][primary].value - other[v][primary].value
            for v in values
            if v in other and primary in values[v]
        ]
        by_column[column] = [delta for delta in deltas if not math.isnan(delta)]
    whole = differences[0].delta.value if differences else 0.0
    return Comparison(
        new, old, verdict(new, old, primary, differences), differences, simpson=simpson(whole, by_column)
    )


def _slice(config: EvaluateConfig, data: Predictions, where: ds.Expression) -> dict[str, Estimate]:
    return measure(
        data, config.cutoffs, replicates=max(100, config.replicates // 4), seed=config.seed, where=where
    ).estimates


def _slice_columns(config: EvaluateConfig, data: Predictions) -> dict[str, dict[str, ds.Expression]]:
    """Filters per value of each column to slice by: text, bool and small integer columns."""
    known = {
        "request_id",
        "user_id",
        "video_id",
        "watch_ms",
        "predicted_watch_ms",
        "order_value_minor",
        "currency",
    }
    auto = config.slices == ["auto"]
    result = {}
    for column in data.table.schema:
        name, kind = column.name, column.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        free = name not in known and not name.startswith(("p_", "label_", "predicted_"))
        discrete = pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind)
        if not discrete or not (free if auto else name in config.slices):
            continue
        values = pc.unique(data.table.to_table(columns=[name])[name]).drop_null()
        if 1 < len(values) <= MAX_SLICE_VALUES:
            result[name] = {str(value.as_py()): ds.field(name) == value for value in values}
    return result
