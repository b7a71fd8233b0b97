"""Typed configuration of ``model=ranker``; every default stands in ``configs/model/ranker.yaml``."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from data.schema import LABELS
from training.model_config import ModelConfig, OptimizerConfig


@dataclass(kw_only=True, slots=True)
class ValueConfig:
    """The value formula that the bundle starts with; see ``models.value``."""

    version: str = MISSING
    watch_s: float = MISSING
    gmv: float = MISSING
    tasks: dict[str, float] = MISSING

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(LABELS))
        if unknown:
            raise ValueError(f"model.value.tasks has {', '.join(unknown)}; labels are {', '.join(LABELS)}")


class CalibrationKind(Enum):
    """How a head's probability is bent to fit validation, before each market's own bias."""

    platt = "platt"
    isotonic = "isotonic"


@dataclass(kw_only=True, slots=True)
class RankerConfig(ModelConfig):
    """The ranker, its losses and its recipe."""

    field_dim: int = MISSING
    dim: int = MISSING
    width: int = MISSING
    heads: int = MISSING
    tastes: int = MISSING
    cross_layers: int = MISSING
    cross_rank: int = MISSING
    experts: int = MISSING
    hidden: int = MISSING
    dropout: float = MISSING
    id_dropout: float = MISSING
    id_rows: int = MISSING
    max_steps: int = MISSING
    attention_steps: int = MISSING
    half_life_days: list[float] = MISSING
    watch_bins: int = MISSING
    watch_groups: int = MISSING
    watch_weight: float = MISSING
    order_weight: float = MISSING
    counterfactual_weight: float = MISSING
    calibration: CalibrationKind = MISSING
    train_days: int = MISSING
    batch_size: int = MISSING
    max_epochs: int = MISSING
    patience: int = MISSING
    optimizer: OptimizerConfig = MISSING
    value: ValueConfig = MISSING

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"model.dim={self.dim} must be a multiple of model.heads={self.heads}")
        for key in ("dropout", "id_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must lie in [0, 1)")
        for key in (
            "field_dim", "dim", "width", "heads", "tastes", "cross_layers", "cross_rank", "experts", "hidden",
            "max_steps", "attention_steps", "watch_groups", "id_rows", "batch_size", "max_epochs", "patience",
        ):  # fmt: skip
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")
        if not self.half_life_days or min(self.half_life_days) <= 0:
            raise ValueError(
                f"model.half_life_days={list(self.half_life_days)} must list numbers of days above 0"
            )
        for key in ("watch_weight", "order_weight", "counterfactual_weight", "train_days", "watch_bins"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 0")
