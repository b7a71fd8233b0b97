"""The report as plain data: what ``report.json`` holds and the other views are drawn from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from evaluation.bootstrap import Estimate
from evaluation.experiment_study import ExperimentStudy
from evaluation.findings import Finding
from evaluation.outcomes import Tradeoff
from evaluation.policy_study import OffPolicyStudy
from evaluation.protocol import Protocol
from evaluation.ranking_study import Comparison, StageStudy
from evaluation.slices import SliceValue
from evaluation.value_curve import ValuePoint

SCHEMA_VERSION = 1
Metrics = dict[str, Estimate]


@dataclass(slots=True)
class Report:
    """Everything one evaluation found.

    ``runs`` maps a run's name to its metrics, ``predictions`` a predictions table's; ``primary`` names
    the run that ``metrics`` of the JSON and ``fail_under`` speak of (with the first predictions table):
    the last stage of the pipeline, or the first run given.
    """

    primary: str = ""
    runs: dict[str, Metrics] = field(default_factory=dict)
    slice_metric: str = ""
    slices: list[SliceValue] = field(default_factory=list)
    worst: list[SliceValue] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    stages: StageStudy | None = None
    findings: list[Finding] = field(default_factory=list)
    predictions: dict[str, Metrics] = field(default_factory=dict)
    prediction_slices: dict[str, dict[str, dict[str, Metrics]]] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, Estimate]]] = field(default_factory=dict)
    tradeoff: Tradeoff | None = None
    value_curves: dict[str, list[ValuePoint]] = field(default_factory=dict)
    beyond: dict[str, Metrics] = field(default_factory=dict)
    off_policy: OffPolicyStudy | None = None
    experiment: ExperimentStudy | None = None
    reliability: dict[str, dict[str, list[tuple[float, float, int]]]] = field(default_factory=dict)
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def metrics(self) -> Metrics:
        """The metrics of the primary run and of the first predictions table."""
        first = next(iter(self.predictions.values()), {})
        return {**self.runs.get(self.primary, {}), **self.beyond.get(self.primary, {}), **first}

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json`` (CONTRACTS section 4 and more); NaN becomes null."""
        return {
            "schema_version": SCHEMA_VERSION,
            "metrics": plain(self.metrics),
            "slices": _slices(self),
            "protocol": plain(self.protocol.facts),
            "warnings": self.protocol.warnings,
            "findings": plain(self.findings),
            "primary": self.primary,
            "runs": {
                name: {"metrics": plain({**metrics, **self.beyond.get(name, {})})}
                for name, metrics in self.runs.items()
            },
            "predictions": {name: {"metrics": plain(metrics)} for name, metrics in self.predictions.items()},
            "reliability": plain(self.reliability),
            "recall_curves": plain(self.curves),
            "tradeoff": plain(self.tradeoff),
            "value_curves": plain(self.value_curves),
            "comparisons": plain(self.comparisons),
            "stages": plain(self.stages),
            "off_policy": plain(self.off_policy),
            "experiment": plain(self.experiment),
        }


def plain(value: Any) -> Any:
    """Numbers, strings, lists and objects only; NaN and infinity become null."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _slices(report: Report) -> dict[str, Any]:
    """Per run or table, column and label: the metric's estimate; ranking slices carry gap and p."""
    found: dict[str, Any] = {}
    for value in report.slices:
        row = {"share": value.share, "gap": value.gap, "p": value.p}
        cell = {value.metric: plain(value.estimate), **plain(row)}
        found.setdefault(report.primary, {}).setdefault(value.column, {})[value.label] = cell
    for name, columns in report.prediction_slices.items():
        if columns:
            found[f"predictions/{name}"] = plain(columns)
    return found
