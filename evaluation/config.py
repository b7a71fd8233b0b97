"""The arguments of ``shopreel evaluate``; their defaults and meanings stand in configs/evaluate.yaml."""

from dataclasses import dataclass
from typing import Any

from evaluation.comparison import Correction
from evaluation.experiment_study import ExperimentConfig
from evaluation.gate import Condition, parse_conditions
from evaluation.policy_config import OffPolicyConfig
from evaluation.ranking import METRICS, parse_metric
from evaluation.ranking_study import Settings
from evaluation.tracking import MlflowConfig


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """See configs/evaluate.yaml."""

    run: Any
    truth: str | None
    predictions: Any
    log: str | None
    baseline: Any
    dataset: str | None
    out: str | None
    overwrite: bool
    metrics: list[str]
    cutoffs: list[int]
    verdict: str
    replicates: int
    correction: Correction
    seed: int
    slices: list[str]
    off_policy: OffPolicyConfig
    experiment: ExperimentConfig
    fail_under: str | None
    mlflow: MlflowConfig

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.metrics if kind not in METRICS]
        if unknown:
            raise ValueError(f"metrics={unknown[0]} is not one of {', '.join(METRICS)}")
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ValueError("cutoffs must be a list of ranks from 1, such as [10,20]")
        if self.replicates < 100:
            raise ValueError(f"replicates={self.replicates} is too few for a 95 % interval; use 1000 or more")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        try:
            parse_metric(self.verdict)
        except ValueError as error:
            raise ValueError(f"verdict: {error}") from None
        self.conditions()

    def conditions(self) -> list[Condition]:
        """The parsed ``fail_under``; empty where it is not set."""
        return parse_conditions(self.fail_under or "")

    def ranking_settings(self) -> Settings:
        """Every metric at every cutoff, the verdict's, and those that only ``fail_under`` names."""
        names = [f"{kind}@{k}" for kind in self.metrics for k in sorted(set(self.cutoffs))]
        for metric in [self.verdict, *(condition.metric for condition in self.conditions())]:
            try:
                parse_metric(metric)
            except ValueError:
                continue
            names.append(metric)
        kinds = {name: list(METRICS).index(name.partition("@")[0]) for name in names}
        ordered = sorted(set(names), key=lambda name: (kinds[name], parse_metric(name)[1]))
        return Settings(ordered, self.verdict, self.correction, self.replicates, self.seed)
