"""The report as plain data: what ``report.json`` holds and the other views are drawn from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.atomic import staged_directory, write_json
from evaluation.bootstrap import Estimate
from evaluation.protocol import Protocol

SCHEMA_VERSION = 1
Metrics = dict[str, Estimate]


@dataclass(slots=True)
class Report:
    """Everything one evaluation found.

    ``runs`` maps a run's name to its metrics; ``primary`` names the run that ``metrics`` of the JSON
    and ``fail_under`` speak of: the last stage of the pipeline, or the first run given.
    """

    primary: str = ""
    runs: dict[str, Metrics] = field(default_factory=dict)
    slices: dict[str, Any] = field(default_factory=dict)
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def metrics(self) -> Metrics:
        """The metrics of the primary run."""
        return dict(self.runs.get(self.primary, {}))

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json`` (CONTRACTS section 4 and more); NaN becomes null."""
        return {
            "schema_version": SCHEMA_VERSION,
            "metrics": _metrics(self.metrics),
            "slices": plain(self.slices),
            "protocol": plain(self.protocol.facts),
            "warnings": self.protocol.warnings,
            "primary": self.primary,
            "runs": {name: {"metrics": _metrics(metrics)} for name, metrics in self.runs.items()},
        }


def write_report(report: Report, out: str | Path, *, overwrite: bool) -> None:
    """Write ``report.json`` into a fresh directory that appears whole or not at all."""
    with staged_directory(out, overwrite=overwrite) as scratch:
        write_json(scratch / "report.json", report.to_json())


def plain(value: Any) -> Any:
    """Numbers, strings, lists and objects only; NaN and infinity become null."""
    if isinstance(value, Estimate):
        return {"value": plain(value.value), "low": plain(value.low), "high": plain(value.high), "n": value.n}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _metrics(metrics: Metrics) -> dict[str, Any]:
    return {name: plain(estimate) for name, estimate in metrics.items()}
