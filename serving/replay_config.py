"""The arguments of ``shopreel replay`` and ``recommend``; defaults and meanings stand in their YAML."""

from dataclasses import dataclass
from enum import Enum

from data.errors import ConfigError
from data.schema import LABELS
from serving.publish_config import Device


class HeldOutSplit(Enum):
    """Which split is replayed."""

    validation = "validation"
    test = "test"


class Rules(Enum):
    """Whether market and stock rules apply."""

    on = "on"
    off = "off"


class Requests(Enum):
    """What one request is: a user at the start of the split, or a logged slate."""

    user = "user"
    slate = "slate"


class Baseline(Enum):
    """A counting model over the same requests."""

    popularity = "popularity"
    none = "none"


@dataclass(kw_only=True, slots=True)
class ReplayConfig:
    """See configs/replay.yaml."""

    bundle: str
    dataset: str
    out: str
    overwrite: bool
    gain: str
    split: HeldOutSplit
    k: int
    rules: Rules
    requests: Requests
    baseline: Baseline
    popularity_days: list[int]
    baselines: list[str]
    users_per_batch: int
    device: Device
    memory_limit_gb: float

    def __post_init__(self) -> None:
        if self.gain not in ("auto", "any", *LABELS):
            raise ConfigError(f"gain={self.gain}: choose auto, any or one of {', '.join(LABELS)}")
        refuse_small(self, "k", "users_per_batch")
        if self.baselines and self.requests is Requests.slate:
            raise ConfigError("baselines rank whole catalogues; use them with requests=user")
        if not self.popularity_days or min(self.popularity_days) < 0:
            raise ConfigError("popularity_days must list at least one number of days; 0 counts all of them")
        self.popularity_days = sorted(set(self.popularity_days))


@dataclass(kw_only=True, slots=True)
class RecommendConfig:
    """See configs/recommend.yaml."""

    bundle: str
    dataset: str
    out: str
    overwrite: bool
    k: int
    split: HeldOutSplit
    rules: Rules
    users_per_batch: int
    device: Device
    memory_limit_gb: float

    def __post_init__(self) -> None:
        refuse_small(self, "k", "users_per_batch")


def refuse_small(config: object, *names: str) -> None:
    """Refuse the first of the integer settings ``names`` that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
