"""The arguments of ``shopreel publish``; their defaults and meanings stand in configs/publish.yaml."""

from dataclasses import dataclass
from enum import Enum

from data.errors import ConfigError


class Kind(Enum):
    """Which index to build."""

    auto = "auto"
    exact = "exact"
    scan = "scan"
    hnsw = "hnsw"
    ivf = "ivf"
    ivf_scan = "ivf_scan"


class AsOf(Enum):
    """Where a bundle's knowledge of the log ends."""

    validation = "validation"
    test = "test"
    end = "end"


class Device(Enum):
    """Where to compute."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True, slots=True)
class IndexConfig:
    """The ``index`` section."""

    kind: Kind
    exact_below: int
    scan_below: int
    hnsw_links: int
    hnsw_build_width: int
    ivf_lists: int
    seed: int

    def __post_init__(self) -> None:
        if self.hnsw_links < 2 or self.hnsw_build_width < 1 or self.ivf_lists < 0:
            raise ConfigError("index: hnsw_links must be at least 2, hnsw_build_width 1, ivf_lists 0")


@dataclass(kw_only=True, slots=True)
class PublishConfig:
    """The whole command."""

    two_tower: str
    ranker: str | None
    dataset: str
    out: str
    activate: bool
    as_of: AsOf
    allow_other_dataset: bool
    device: Device
    memory_limit_gb: float
    recall_target: float
    k: int
    min_distinct_share: float
    sample_users: int
    golden_requests: int
    index: IndexConfig
    popularity_days: int

    def __post_init__(self) -> None:
        if not 0 < self.recall_target <= 1:
            raise ConfigError(f"recall_target={self.recall_target} is not in (0, 1]")
        if not 0 <= self.min_distinct_share <= 1:
            raise ConfigError(f"min_distinct_share={self.min_distinct_share} is not in [0, 1]")
        for name in ("k", "sample_users", "golden_requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.popularity_days < 0:
            raise ConfigError(f"popularity_days={self.popularity_days} is negative; 0 counts all days")
        if self.memory_limit_gb <= 0:
            raise ConfigError(f"memory_limit_gb={self.memory_limit_gb} must be above 0")
