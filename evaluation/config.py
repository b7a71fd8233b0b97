"""The arguments of ``shopreel evaluate``; their defaults and meanings stand in configs/evaluate.yaml."""

from dataclasses import dataclass
from typing import Any

from evaluation.gate import Condition, parse_conditions
from evaluation.ranking import METRICS, parse_metric


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """See configs/evaluate.yaml."""

    run: Any
    truth: str | None
    out: str | None
    overwrite: bool
    metrics: list[str]
    cutoffs: list[int]
    replicates: int
    seed: int
    fail_under: str | None

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
        self.conditions()

    def conditions(self) -> list[Condition]:
        """The parsed ``fail_under``; empty where it is not set."""
        return parse_conditions(self.fail_under or "")

    def ranking_names(self) -> list[str]:
        """Every metric at every cutoff, cutoffs ascending, and those that only ``fail_under`` names."""
        names = [f"{kind}@{k}" for kind in self.metrics for k in sorted(set(self.cutoffs))]
        for condition in self.conditions():
            try:
                parse_metric(condition.metric)
            except ValueError:
                continue
            names.append(condition.metric)
        return list(dict.fromkeys(names))
