"""Logging a report to MLflow, an optional extra that is imported only when asked for."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from evaluation.report import Report


@dataclass(kw_only=True, slots=True)
class MlflowConfig:
    """The arguments under ``mlflow.``; see configs/evaluate.yaml."""

    uri: str | None
    experiment: str
    run_name: str | None


def require_mlflow(config: MlflowConfig) -> Any | None:
    """The ``mlflow`` module where a URI is set, else None; raises before any work where it is missing."""
    if config.uri is None:
        return None
    try:
        return importlib.import_module("mlflow")
    except ImportError:
        raise ConfigError("mlflow.uri is set, but mlflow is not installed: pip install mlflow") from None


def log_report(mlflow: Any, config: MlflowConfig, report: Report, out: str | None) -> None:
    """One MLflow run: every defined metric with its bounds, the protocol as parameters, the files of ``out``.

    MLflow allows no ``@`` in names: ``ndcg@20`` is logged as ``ndcg_at_20``.
    """
    mlflow.set_tracking_uri(config.uri)
    mlflow.set_experiment(config.experiment)
    with mlflow.start_run(run_name=config.run_name or report.primary or None):
        for name, estimate in report.metrics.items():
            base = name.replace("@", "_at_")
            parts = {base: estimate.value, f"{base}.low": estimate.low, f"{base}.high": estimate.high}
            mlflow.log_metrics({key: value for key, value in parts.items() if value == value})  # noqa: PLR0124
        facts = report.protocol.facts
        mlflow.log_params(
            {key: str(value)[:500] for key, value in facts.items() if key not in ("runs", "predictions")}
        )
        if out is not None:
            mlflow.log_artifacts(str(Path(out)))
