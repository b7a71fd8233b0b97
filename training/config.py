"""Typed configuration of ``shopreel train``; every default stands in ``configs/train.yaml`` and
``configs/model/*.yaml``.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from omegaconf import MISSING

from data.schema import LABELS
from models.layers import BlockKind
from models.similarity import Similarity
from training.admission import Eviction
from training.model_config import ModelConfig, OptimizerConfig
from training.precision import Precision
from training.ranking_config import RankerConfig


class Device(Enum):
    """Where to train: ``auto`` takes CUDA when there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class TableKind(Enum):
    """What holds the embedding tables: ``auto`` is ``plain`` in one process, ``torchrec`` in several."""

    auto = "auto"
    plain = "plain"
    torchrec = "torchrec"


@dataclass(kw_only=True, slots=True)
class TargetConfig:
    """Which impressions retrieval learns from, and how much; see ``data.targets.TargetWeights``."""

    weights: dict[str, float] = MISSING
    impression: float = MISSING

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(LABELS))
        if unknown:
            raise ValueError(f"model.target.weights has {', '.join(unknown)}; labels are {', '.join(LABELS)}")
        if min([self.impression, *self.weights.values()]) < 0:
            raise ValueError("model.target: weights must be at least 0")


@dataclass(kw_only=True, slots=True)
class ManagedConfig:
    """Who gets a row of a managed table; see ``training.admission``."""

    admission: int = MISSING
    eviction: Eviction = MISSING

    def __post_init__(self) -> None:
        if self.admission < 1:
            raise ValueError(f"model.managed.admission={self.admission} must be at least 1")


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """Full ranking of the validation split after every epoch."""

    gain: str = MISSING
    k: int = MISSING
    max_users: int = MISSING

    def __post_init__(self) -> None:
        if self.gain not in ("auto", "any", *LABELS):
            raise ValueError(
                f"model.validation.gain={self.gain}; choose auto, any or one of {', '.join(LABELS)}"
            )


@dataclass(kw_only=True, slots=True)
class CoEngagementConfig:
    """The linear model beside the towers, fitted in closed form."""

    rank: int = MISSING
    max_videos: int = MISSING

    def __post_init__(self) -> None:
        if self.rank < 0 or self.max_videos < 0:
            raise ValueError("model.co_engagement.rank and model.co_engagement.max_videos must be at least 0")


@dataclass(kw_only=True, slots=True)
class OutcomeConfig:
    """The towers of ``models.outcome_towers``: their dimensions, 0 for none, and how much they count."""

    dim: int = MISSING
    share: float | None = MISSING

    def __post_init__(self) -> None:
        if self.dim < 0 or (self.share is not None and self.share < 0):
            raise ValueError(
                "model.outcome: dim and share must be at least 0; share=null lets validation choose"
            )


@dataclass(kw_only=True, slots=True)
class TwoTowerConfig(ModelConfig):
    """The two-tower model, its loss and its recipe."""

    dim: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    dropout: float = MISSING
    block: BlockKind = MISSING
    max_steps: int = MISSING
    similarity: Similarity = MISSING
    id_dropout: float = MISSING
    ignored_weight: float = MISSING
    outcome: OutcomeConfig = MISSING
    full_softmax_below: int = MISSING
    uniform_negatives: int = MISSING
    tokens: int = MISSING
    max_epochs: int = MISSING
    patience: int = MISSING
    plateau_factor: float = MISSING
    average: float = MISSING
    refit_epochs: int = MISSING
    co_engagement: CoEngagementConfig = MISSING
    target: TargetConfig = MISSING
    managed: ManagedConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    validation: ValidationConfig = MISSING

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"model.dim={self.dim} must be a multiple of model.heads={self.heads}")
        if not 0 <= self.dropout < 1 or not 0 <= self.id_dropout < 1:
            raise ValueError("model.dropout and model.id_dropout must lie in [0, 1)")
        if not 0 < self.plateau_factor <= 1:
            raise ValueError(f"model.plateau_factor={self.plateau_factor} must lie in (0, 1]")
        if not 0 <= self.average < 1:
            raise ValueError(f"model.average={self.average} must lie in [0, 1)")
        for key in ("refit_epochs", "ignored_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 0")
        for key in ("dim", "heads", "max_steps", "tokens", "max_epochs", "patience"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")


@dataclass(kw_only=True, slots=True)
class BaselineConfig(ModelConfig):
    """What every counting baseline has."""

    target: TargetConfig = MISSING
    validation: ValidationConfig = MISSING


@dataclass(kw_only=True, slots=True)
class PopularityConfig(BaselineConfig):
    """The most engaged-with videos, the same for everybody."""


@dataclass(kw_only=True, slots=True)
class ItemKnnConfig(BaselineConfig):
    """Nearest neighbours of what the user engaged with."""

    neighbours: int = MISSING
    shrink: float = MISSING
    recency: float = MISSING


@dataclass(kw_only=True, slots=True)
class EaseConfig(BaselineConfig):
    """Closed-form linear autoencoder."""

    ridge: float = MISSING


@dataclass(kw_only=True, slots=True)
class IalsConfig(BaselineConfig):
    """Alternating least squares."""

    rank: int = MISSING
    ridge: float = MISSING
    confidence: float = MISSING
    iterations: int = MISSING


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    GROUPS: ClassVar[dict[str, Any]] = {
        "model": {
            "two_tower": TwoTowerConfig,
            "ranker": RankerConfig,
            "popularity": PopularityConfig,
            "item_knn": ItemKnnConfig,
            "ease": EaseConfig,
            "ials": IalsConfig,
        }
    }

    model: ModelConfig = MISSING
    prepared: str = MISSING
    out: str = MISSING
    seed: int = MISSING
    device: Device = MISSING
    precision: Precision = MISSING
    threads: int = MISSING
    max_minutes: float = MISSING
    resume: bool = MISSING
    overwrite: bool = MISSING
    checkpoint_steps: int = MISSING
    log_steps: int = MISSING
    tables: TableKind = MISSING
    timeout_minutes: float = MISSING

    def __post_init__(self) -> None:
        for key in ("max_minutes", "timeout_minutes"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}={getattr(self, key)} must be above 0")
        for key in ("checkpoint_steps", "log_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.resume and self.overwrite:
            raise ValueError("resume=true continues a run, overwrite=true replaces it; choose one")
